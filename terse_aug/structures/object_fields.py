"""Fields of a target that seem to have an entry per object, but are none of those that follow the pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from terse_aug.structures.annotations import OBJECT_FIELDS, Target

Lengths = Mapping[str, tuple[int, int]]
"""For each unknown field of a target its number of entries and that of the objects."""


def unknown_fields(target: Target) -> dict[str, tuple[int, int]]:
    """The :data:`Lengths` of a checked target: of its tensors, arrays, lists and tuples.

    Sizes of the image, which have two or three entries, are left out.
    """
    count = len(target["boxes"])
    return {
        name: (len(value), count)
        for name, value in target.items()
        if name not in OBJECT_FIELDS and _has_entries(value) and not _is_size(name, value)
    }


def check_unknown_fields(lengths: Sequence[Lengths]) -> dict[str, str]:
    """Refuse what certainly is a field per object: its entries follow the number of objects through the batch.

    Args:
        lengths: of each target of a batch.

    Returns:
        Texts to warn of once, by kind, about fields of which one batch cannot say it. A target with a single object
        says nothing alone: an image's id has one entry, too.

    Raises:
        ValueError: naming a field.
    """
    warnings = {}
    for name in sorted({name for own in lengths for name in own}):
        seen = [own[name] for own in lengths if name in own]
        counts = {count for _, count in seen}
        if all(entries == count for entries, count in seen) and len(counts) > 1 and max(counts) > 1:
            raise ValueError(
                f"the field {name!r} of the targets has an entry per object, which pasted objects do not have: leave "
                "it out, and give each object a number in the field 'ids', by which to look it up afterwards; pasted "
                f"objects have negative ids. Fields that follow the objects are {', '.join(OBJECT_FIELDS)}"
            )
        if any(entries == count > 1 for entries, count in seen):
            warnings[f"field {name}"] = (
                f"the field {name!r} seems to have an entry per object; it is passed through unchanged and no "
                f"longer matches the objects. Fields that follow them are {', '.join(OBJECT_FIELDS)}"
            )
    return warnings


def _has_entries(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim > 0
    return isinstance(value, list | tuple)


def _is_size(name: str, value: Any) -> bool:
    return name.endswith(("size", "shape")) and np.ndim(value[0]) == 0 and len(value) in (2, 3) if len(value) else False

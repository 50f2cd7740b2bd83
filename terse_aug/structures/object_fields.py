"""Fields of a target that seem to have an entry per object, but are none of those that follow the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from terse_aug.structures.annotations import OBJECT_FIELDS, Target

_OF_IMAGE = (
    "scale",
    "scale_factor",
    "pad",
    "image_shape",
    "img_shape",
    "ori_shape",
    "orig_shape",
    "pad_shape",
)
"""Fields of an image that frameworks have, with as many entries as an image has sides or corners."""


def unknown_field_warnings(targets: Sequence[Target]) -> dict[str, str]:
    """Texts to warn of once, by kind, about fields with as many entries as objects, in each target that has them.

    They are passed through: a list of the image's own may have this length by chance. So one batch can refuse none.
    A target with a single object says nothing alone: an image's id has one entry, too.

    Args:
        targets: checked ones. Of their fields tensors, arrays, lists and tuples count; sizes of the image do not.
    """
    warnings = {}
    for name in sorted({name for target in targets for name in target if name not in (*OBJECT_FIELDS, *_OF_IMAGE)}):
        having = [target for target in targets if name in target]
        matched = [_has_entry_per_object(name, target) for target in having]
        if all(matched) and max(len(target["boxes"]) for target in having) > 1:
            warnings[f"field {name}"] = (
                f"the field {name!r} of the targets seems to have an entry per object: it is passed through unchanged "
                "and does not match the objects of composites. If it is one, leave it out, and give each object a "
                "number in the field 'ids', by which to look it up afterwards; pasted objects have negative ids. "
                f"Fields that follow the objects are {', '.join(OBJECT_FIELDS)}"
            )
    return warnings


def _has_entry_per_object(name: str, target: Target) -> bool:
    value = target[name]
    listed = value.ndim > 0 if isinstance(value, Tensor | np.ndarray) else isinstance(value, list | tuple)
    return listed and len(value) == len(target["boxes"]) and not _is_size(name, value)


def _is_size(name: str, value: Any) -> bool:
    return name.endswith(("size", "shape")) and len(value) in (2, 3) and np.ndim(value[0]) == 0

"""What the arguments of a bank's views mean. Pure functions; imports numpy only."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def checked_positions(indices: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Positions 0 to ``count - 1`` that a list of numbers or a bool mask means."""
    if indices.dtype == bool:
        if indices.shape != (count,):
            raise ValueError(f"expected a bool mask of shape ({count},), got {indices.shape}")
        return np.flatnonzero(indices)
    if indices.ndim != 1 or (indices.size and not np.issubdtype(indices.dtype, np.integer)):
        raise ValueError(f"expected a list of whole numbers, got {indices.dtype} of shape {indices.shape}")
    positions = indices.astype(np.int64)
    wrong = positions[(positions < -count) | (positions >= count)]
    if wrong.size:
        raise IndexError(f"index {wrong[0]} is out of range for a bank of {count} cut-outs")
    return positions % count


def label_per_name(classes: Mapping[str, int] | Sequence[str], offset: int) -> dict[str, int]:
    """The detector's label per class name, without spaces around it; ``ValueError`` for names with two labels."""
    if isinstance(classes, str):
        raise ValueError(f"expected a list of class names or a mapping of them to labels, got {classes!r}")
    if odd := [name for name in classes if not isinstance(name, str)]:
        raise ValueError(f"expected class names as text, got {odd[0]!r}")
    if isinstance(classes, Mapping):
        if offset:
            raise ValueError("offset is for a list of class names; a mapping already has the labels")
        known: dict[str, int] = {}
        for name, label in classes.items():
            if known.setdefault(name.strip(), operator.index(label)) != operator.index(label):
                raise ValueError(f"class names are listed twice: {name.strip()}")
        return known
    names = [name.strip() for name in classes]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"class names are listed twice: {listed(twice)}")
    return {name: position + offset for position, name in enumerate(names)}


def mapped_labels(
    labels: NDArray[np.int64], categories: Mapping[int, str], known: Mapping[str, int]
) -> NDArray[np.int64]:
    """``labels`` in the detector's numbers; those of unknown categories keep theirs."""
    values, positions = np.unique(labels, return_inverse=True)
    renamed = [known.get(categories.get(value, ""), value) for value in values.tolist()]
    return np.asarray(renamed, dtype=np.int64)[positions]


def unknown_advice(some_known: bool) -> str:
    """What to do about categories that the detector lacks."""
    if some_known:
        return 'Add them to the detector, or leave their cut-outs out with bank.relabel(..., unknown="drop")'
    return 'None of the bank\'s categories would be left, so unknown="drop" cannot help: check the names'


def listed(names: Iterable[str]) -> str:
    """Names in a sentence, cut short after twenty."""
    every = list(names)
    return ", ".join(every[:20]) + (f" and {len(every) - 20} more" if len(every) > 20 else "")

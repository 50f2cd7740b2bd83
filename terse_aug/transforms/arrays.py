"""Tensors and NumPy arrays alike, and ranges of parameters.

On small arrays a call of NumPy takes a fraction of the time of one of torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terse_aug.utils.transfer import constant, to_device

Array: TypeAlias = Any
"""A tensor or a NumPy array."""


def library_of(array: Array) -> Any:
    """torch or NumPy. Only what both have under the same name is used of it."""
    return torch if isinstance(array, Tensor) else np


def arrays_like(arrays: Sequence[NDArray[Any]], like: Array) -> list[Array]:
    """Arrays in the kind, type and device of another one; to a device by one copy."""
    if isinstance(like, Tensor):
        return to_device([torch.from_numpy(own).to(like.dtype) for own in arrays], like.device)
    return [own.astype(like.dtype, copy=False) for own in arrays]


def constants_like(array: NDArray[Any], like: Array) -> Array:
    """An array that never changes in the kind, type and device of another one; on a device it stays there."""
    if isinstance(like, Tensor):
        return constant(tuple(array.ravel().tolist()), like.device, like.dtype).view(array.shape)
    return array.astype(like.dtype, copy=False)


def value_range(low: float, high: float, help_text: str, least: float = -math.inf, most: float = math.inf) -> Any:
    """A field ``(low, high)`` of :class:`Ranges`: its default, its help, and what values may be."""
    return field(default=(low, high), metadata={"help": help_text, "ends": (least, most)})


@dataclass(frozen=True)
class Ranges:
    """Base of the allowed ranges ``(low, high)`` of parameters, fields by :func:`value_range`.

    Raises:
        ValueError: a range is no pair of numbers, not ordered, not finite, or outside what its unit allows.
    """

    def __post_init__(self) -> None:
        for own in fields(self):
            if "ends" in own.metadata:
                pair = checked_range(own.name, getattr(self, own.name), *own.metadata["ends"])
                object.__setattr__(self, own.name, pair)

    def limits(self, names: Sequence[str]) -> NDArray[np.float64]:
        """The ends of some ranges, float ``[2, len(names)]``."""
        ends: NDArray[np.float64] = np.array([getattr(self, name) for name in names], np.float64).reshape(-1, 2).T
        return ends


def checked_range(name: str, pair: Any, low: float = -math.inf, high: float = math.inf) -> tuple[float, float]:
    """A range as a tuple, whatever kind of sequence a config library makes of it.

    Raises:
        ValueError: it is no pair of finite numbers within [low, high], the lower one first.
    """
    if isinstance(pair, Sequence) and not isinstance(pair, str):
        pair = tuple(pair)
    if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(end, Real) for end in pair)):
        raise ValueError(f"{name}: expected a pair (low, high) of numbers, got {pair!r}")
    if not (math.isfinite(pair[0]) and math.isfinite(pair[1]) and pair[0] <= pair[1]):
        raise ValueError(f"{name}: expected (low, high) with low <= high, got ({pair[0]}, {pair[1]})")
    if not low <= pair[0] <= pair[1] <= high:
        ends = f"of at least {low:g}" if high == math.inf else f"within [{low:g}, {high:g}]"
        raise ValueError(f"{name}: expected values {ends}, got ({pair[0]}, {pair[1]})")
    return pair[0], pair[1]

"""How a paste is blended into its background: one of several ways, drawn with its transform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from terse_aug.transforms.arrays import Array, library_of

BLENDS = ("gaussian", "alpha", "none", "poisson")
"""How a paste may be blended in."""


def checked_blends(value: Any) -> tuple[str, ...]:
    """Blends as a tuple, whatever kind of sequence a config library makes of it.

    Raises:
        ValueError: it is none, or has others than ``BLENDS``, or one twice.
    """
    blends = () if isinstance(value, str) or not isinstance(value, Sequence) else tuple(value)
    if not blends or not set(blends) <= set(BLENDS) or len(set(blends)) < len(blends):
        raise ValueError(f"blends: expected a list of some of {', '.join(BLENDS)}, got {value!r}")
    return blends


def blend_number(unit: Array, count: int) -> Array:
    """Which of so many blends points in [0, 1] stand for, 0 to ``count - 1``, equally many for each."""
    return library_of(unit).clip(unit * count, 0, count - 1) // 1

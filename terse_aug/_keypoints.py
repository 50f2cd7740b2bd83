"""Keypoints by name."""

from __future__ import annotations

from collections.abc import Sequence


def mirror_order(names: Sequence[str]) -> tuple[int, ...]:
    """For each keypoint the index of its mirror image, by names with "left" and "right"."""
    swapped = [_swap_sides(name) for name in names]
    return tuple(names.index(name) if name in names else index for index, name in enumerate(swapped))


def _swap_sides(name: str) -> str:
    return name.replace("left", "\0").replace("right", "left").replace("\0", "right")

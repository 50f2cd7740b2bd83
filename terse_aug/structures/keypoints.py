"""Keypoints by name."""

from __future__ import annotations

from collections.abc import Sequence

Flips = Sequence[tuple[str, str]]
"""Pairs of keypoint names that are swapped in a flipped object."""


def keypoint_flip_order(names: Sequence[str], flips: Flips | None = None) -> tuple[int, ...]:
    """For each keypoint the index of its mirror image: the other of its pair, or by default by "left" and "right".

    Raises:
        ValueError: not pairs, a pair that names a keypoint that there is not, or one keypoint in two pairs.
    """
    if flips is None:
        partners = {name: _swap_sides(name) for name in names}
    else:
        if any(len(pair) != 2 for pair in flips):
            raise ValueError(f"keypoint flips: expected pairs of names, got {list(flips)}")
        named = [name for pair in flips for name in set(pair)]
        if names and (unknown := sorted(set(named) - set(names))):
            raise ValueError(f"keypoint flips name {unknown}; the keypoints are {list(names)}")
        if len(named) > len(set(named)):
            raise ValueError(f"keypoint flips: a keypoint is in two pairs of {[tuple(pair) for pair in flips]}")
        partners = {one: other for pair in flips for one, other in (pair, reversed(pair))}
    swapped = [partners.get(name, name) for name in names]
    return tuple(names.index(name) if name in names else index for index, name in enumerate(swapped))


def _swap_sides(name: str) -> str:
    return name.replace("left", "\0").replace("right", "left").replace("\0", "right")

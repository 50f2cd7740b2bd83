"""Near duplicates of thin objects: different rods are no copies of each other, and copies are found all the same."""

from __future__ import annotations

import gzip
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from terse_aug.bank.analysis.near_duplicates import NearDuplicates, appearance_of, find_near_duplicates


def rod(length: float, thickness: float, angle: float, tone: int = 180) -> NDArray[np.uint8]:
    """A shaded rod, rotated by degrees, in its tight box."""
    image = np.zeros((300, 300, 4), np.uint8)
    across = np.abs(np.linspace(-1, 1, round(thickness)))[:, None, None]
    top, left = 150 - round(thickness) // 2, 150 - round(length) // 2
    inner = image[top : top + round(thickness), left : left + round(length)]
    inner[:] = np.concatenate([np.repeat(tone * (1 - across / 2), 3, axis=2), np.full_like(across, 255)], axis=2)
    turned = cv2.warpAffine(image, cv2.getRotationMatrix2D((150, 150), angle, 1), (300, 300))
    return cropped(turned)


def cropped(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(rgba[..., 3]))
    return np.ascontiguousarray(rgba[y : y + height, x : x + width])


def found(images: list[NDArray[np.uint8]]) -> NearDuplicates:
    looks = [appearance_of(one) for one in images]
    sizes = np.array([one.shape[:2] for one in images], np.int32)
    return find_near_duplicates(
        np.array([look.bits for look in looks]), np.stack([look.thumbnail for look in looks]), sizes
    )


def test_rods_of_other_lengths_are_different() -> None:
    """Scaled to a square, all of them look the same."""
    assert found([rod(60 * 1.15**step, 16, 0) for step in range(10)]).groups == []


def test_slanted_rods_of_other_thickness_and_tone_are_different() -> None:
    """Most of their boxes is transparent."""
    rods = [rod(200, thickness, 45, tone) for thickness in (8, 12, 18, 27) for tone in (90, 150, 240)]
    assert found(rods).groups == []


@pytest.mark.parametrize("angle", [0, 45])
def test_copies_of_rods_are_found(angle: float) -> None:
    rods = [rod(length, 20, angle) for length in (100, 140, 180)]
    halves = [cv2.resize(one, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for one in rods]
    assert sorted(group.tolist() for group in found([*rods, *halves]).groups) == [[0, 3], [1, 4], [2, 5]]


def test_a_slow_change_is_no_group() -> None:
    """Each rod is a near duplicate of the next, the last is none of the first."""
    rods = [rod(200, 24, 45, tone) for tone in range(100, 240, 8)]
    groups = found(rods).groups
    assert all(found([rods[group[0]], rods[member]]).groups for group in groups for member in group[1:])
    assert 2 <= len(groups) <= 9


def test_handwritten_ones_are_different(data_root: Path) -> None:
    """Strokes in one color, as similar as real objects get."""
    folder = data_root / "mnist"
    images, labels = (
        np.frombuffer(gzip.decompress((folder / f"t10k-{name}-ubyte.gz").read_bytes()), np.uint8)
        for name in ("images-idx3", "labels-idx1")
    )
    ones = images[16:].reshape(-1, 28, 28)[labels[8:] == 1]
    digits = [cropped(np.dstack([np.full((28, 28, 3), 255, np.uint8), np.where(one < 8, 0, one)])) for one in ones]
    assert found(digits).groups == []

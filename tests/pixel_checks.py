"""Compares banks with masks that are known to the pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from terse_aug import ForegroundBank
from terse_aug.bank import BuildReport

HEIGHT, WIDTH = 96, 128

Mask = NDArray[np.bool_]


def noise(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """An image in which no two places look the same: uint8 ``[height, width, 3]``."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save_image(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Save without loss, and return the pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def rectangle(left: int, top: int, width: int, height: int) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def disk(x: int, y: int, radius: int) -> Mask:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)


def polygon(points: Sequence[Sequence[float]]) -> Mask:
    """The pixels whose centre lies in a polygon of x, y in px."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    outline = np.array(points, np.float32)
    inside = [
        cv2.pointPolygonTest(outline, (float(x) + 0.5, float(y) + 0.5), False) >= 0
        for x, y in zip(columns.ravel(), rows.ravel(), strict=True)
    ]
    return np.array(inside).reshape(HEIGHT, WIDTH)


def alpha_in_place(pixels: NDArray[np.uint8], rgba: NDArray[np.uint8]) -> Mask:
    """The mask of a foreground at the only place where its colours are those of the image, but at its softest edge."""
    visible, solid = rgba[..., 3] > 0, rgba[..., 3] >= 128
    row, column = np.argwhere(solid)[0]
    for top, left in np.argwhere((pixels == rgba[row, column, :3]).all(2)) - [row, column]:
        if top < 0 or left < 0:
            continue
        window = pixels[top : top + rgba.shape[0], left : left + rgba.shape[1]]
        if window.shape[:2] == visible.shape and (window[solid] == rgba[solid][:, :3]).all():
            mask = np.zeros(pixels.shape[:2], bool)
            mask[top : top + rgba.shape[0], left : left + rgba.shape[1]] = visible
            return mask
    raise AssertionError("the colours of the foreground are nowhere in the image")


def found_masks(report: BuildReport, pixels: NDArray[np.uint8]) -> dict[str, list[Mask]]:
    """Masks of all foregrounds by class."""
    found: dict[str, list[Mask]] = {}
    with ForegroundBank.open(report.path) as bank:
        for foreground in bank:
            found.setdefault(bank.categories[foreground.label], []).append(alpha_in_place(pixels, foreground.rgba))
    return found


def assert_masks(
    report: BuildReport, pixels: NDArray[np.uint8], expected: Mapping[str, Sequence[Mask]], outline: bool = False
) -> None:
    """The bank has these objects, in any order within a class, to the pixel.

    Args:
        report: of the bank.
        pixels: of the image that all objects are of.
        expected: masks of each class.
        outline: pixels within one of the outline may differ, as pycocotools rasterises polygons.
    """
    found = found_masks(report, pixels)
    assert {name: len(own) for name, own in found.items()} == {name: len(own) for name, own in expected.items()}
    for name, own in expected.items():
        for mask in own:
            differences = [int((mask ^ other).sum()) for other in found[name]]
            nearest = found[name].pop(int(np.argmin(differences)))
            wrong = mask ^ nearest
            if outline:
                square = np.ones((3, 3), np.uint8)
                inner, outer = cv2.erode(mask.astype(np.uint8), square), cv2.dilate(mask.astype(np.uint8), square)
                wrong &= ~((outer > 0) & (inner == 0))
            assert not wrong.any(), f"{name}: {wrong.sum()} of {mask.sum()} px differ"

"""Random images, objects and banks, so that the benchmarks need no data.

Shape letters: K objects, H and W the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank import BankWriter, Foreground, ForegroundBank

RADII = (0.08, 0.2)
"""Radius of an object as a fraction of the image's side, smallest and largest."""

_PLACING_TRIES = 50


@dataclass(frozen=True)
class DrawnImage:
    """An image with its own objects.

    Attributes:
        image: uint8 ``[H, W, 3]``, RGB.
        masks: uint8 ``[K, H, W]``, 0 or 1, the visible pixels.
        boxes: float32 ``[K, 4]``, XYXY pixels.
        labels: int64 ``[K]``, 1 or 2.
        foregrounds: K objects uint8 ``[h, w, 4]``, RGBA, before anything covered them.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    foregrounds: list[NDArray[np.uint8]]


def draw_image(side: int, count: int, generator: np.random.Generator) -> DrawnImage:
    """A textured square image with ``count`` textured objects, apart from each other where there is room."""
    image = _texture(side, side, generator)
    foregrounds = [make_foreground(side * generator.uniform(*RADII), generator) for _ in range(count)]
    masks = np.zeros((count, side, side), np.uint8)
    for row, foreground in enumerate(foregrounds):
        top, left = _place(foreground, masks[:row].any(0), generator)
        height, width = foreground.shape[:2]
        opaque = foreground[:, :, 3] > 127
        image[top : top + height, left : left + width][opaque] = foreground[opaque, :3]
        masks[:row, top : top + height, left : left + width][:, opaque] = 0
        masks[row, top : top + height, left : left + width] = opaque
    boxes = np.array([bounding_box(mask) for mask in masks], np.float32).reshape(-1, 4)
    return DrawnImage(image, masks, boxes, generator.integers(1, 3, count), foregrounds)


def make_foreground(radius: float, generator: np.random.Generator) -> NDArray[np.uint8]:
    """An irregular ellipse of about this radius (pixels), uint8 ``[h, w, 4]``, alpha 0 or 255."""
    reach = math.ceil(radius * 1.4)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    squeeze = np.sqrt(generator.uniform(0.7, 1 / 0.7))
    angles, distances = np.arctan2(rows * squeeze, columns / squeeze), np.hypot(rows * squeeze, columns / squeeze)
    outline = np.ones_like(angles)
    for wave in (2, 3, 5):
        outline += generator.uniform(0, 0.06) * np.cos(wave * angles + generator.uniform(0, 2 * np.pi))
    mask = (distances <= radius * outline).astype(np.uint8)
    left, top, right, bottom = bounding_box(mask)
    mask = mask[top:bottom, left:right]
    return np.dstack([_texture(*mask.shape, generator), mask * 255])


def write_bank(path: Path, foregrounds: Sequence[NDArray[np.uint8]], side: float) -> ForegroundBank:
    """A bank of foregrounds that come from square images of this side (pixels)."""
    with BankWriter(path, {1: "first", 2: "second"}) as writer:
        for index, rgba in enumerate(foregrounds):
            writer.add(Foreground(rgba, 1 + index % 2, f"drawn#{index}", max(rgba.shape[:2]) / side))
    return ForegroundBank.open(path)


def bounding_box(mask: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the nonzero pixels, the last two exclusive; zeros where there are none."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _texture(height: int, width: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Noise on several scales around a colour."""
    canvas = np.full((height, width, 3), generator.uniform(60, 190, 3), np.float32)
    for cells, strength in ((3, 40.0), (12, 25.0), (max(height, width), 10.0)):
        noise = generator.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        canvas += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return canvas.clip(0, 255).astype(np.uint8)


def _place(foreground: NDArray[np.uint8], taken: NDArray[np.bool_], generator: np.random.Generator) -> tuple[int, int]:
    """Top and left of a place inside the image, free of other objects if such a place is found."""
    free = [limit - size + 1 for limit, size in zip(taken.shape, foreground.shape[:2], strict=True)]
    top = left = 0
    for _ in range(_PLACING_TRIES):
        top, left = (int(generator.integers(limit)) for limit in free)
        if not taken[top : top + foreground.shape[0], left : left + foreground.shape[1]].any():
            break
    return top, left

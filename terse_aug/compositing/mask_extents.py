"""Bounding rectangles and areas of masks on the CPU.

Shape letters: n masks, H and W the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.compositing.patches import Rectangle

Mask = NDArray[Any]
"""bool or uint8 ``[..., H, W]``."""


@dataclass(frozen=True)
class Extent:
    """The bounding rectangle of the pixels that are set in a mask, empty where there are none, and their number."""

    window: Rectangle
    pixels: int

    @property
    def box(self) -> list[float]:
        """The rectangle as XYXY."""
        return [float(side) for side in (self.window.left, self.window.top, self.window.right, self.window.bottom)]


@dataclass(frozen=True)
class MaskChange:
    """What pasting does to a mask that is not on the CPU.

    Attributes:
        before: pixels.
        after: what is left of it.
    """

    before: int
    after: Extent


def window_of(mask: Mask, region: Rectangle) -> tuple[Rectangle, int]:
    """A rectangle that all pixels of a mask lie in, not the smallest one, and their number.

    Args:
        mask: bool or uint8 ``[H, W]``.
        region: the pixels of the object's box, where all of its mask is expected.
    """
    height, width = mask.shape
    # With a pixel around it, because the boxes of polygons and their masks are rounded apart.
    near = Rectangle(
        max(region.top - 1, 0), max(region.left - 1, 0), min(region.bottom + 1, height), min(region.right + 1, width)
    )
    pixels = count_pixels(mask)
    return near if count_pixels(near.of(mask)) == pixels else Rectangle(0, 0, height, width), pixels


def extent_of(mask: Mask, window: Rectangle) -> Extent:
    """The extent of bool or uint8 ``[h, w]`` over the rectangle ``window``."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    tight = Rectangle(top, left, top + height, left + width)
    y, x = top + window.top, left + window.left
    return Extent(Rectangle(y, x, y + height, x + width), 0 if tight.empty else count_pixels(tight.of(mask)))


def count_pixels(mask: Mask) -> int:
    """The number of pixels that are set in bool or uint8 ``[h, w]``, which has some."""
    return int(cv2.countNonZero(mask.view(np.uint8)))


def pixels_of_box(box: list[float], size: tuple[int, int]) -> Rectangle:
    """The pixels whose center lies in a box, at least one."""
    height, width = size
    left = min(max(math.ceil(box[0] - 0.5), 0), width - 1)
    top = min(max(math.ceil(box[1] - 0.5), 0), height - 1)
    right = min(max(math.ceil(box[2] - 0.5), left + 1), width)
    bottom = min(max(math.ceil(box[3] - 0.5), top + 1), height)
    return Rectangle(top, left, bottom, right)

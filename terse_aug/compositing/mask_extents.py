"""Bounding rectangles and areas of masks on the CPU.

Shape letters: n masks, H and W the image.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def extents_of(masks: Mask, regions: Sequence[Rectangle]) -> list[Extent]:
    """The extent of each of bool or uint8 ``[n, H, W]``.

    Args:
        masks: of the objects.
        regions: the pixels of their boxes, where all of a mask is expected; one that is elsewhere takes longer.
    """
    found = []
    for mask, region in zip(masks, regions, strict=True):
        height, width = mask.shape
        # With a pixel around it, because the boxes of polygons and their masks are rounded apart.
        near = Rectangle(
            max(region.top - 1, 0),
            max(region.left - 1, 0),
            min(region.bottom + 1, height),
            min(region.right + 1, width),
        )
        everything = count_pixels(near.of(mask)) == count_pixels(mask)
        window = near if everything else Rectangle(0, 0, height, width)
        found.append(extent_of(window.of(mask), window))
    return found


def extent_of(mask: Mask, window: Rectangle) -> Extent:
    """The extent of bool or uint8 ``[h, w]`` over the rectangle ``window``."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    tight = Rectangle(top, left, top + height, left + width)
    return Extent(_moved(tight, window), 0 if tight.empty else count_pixels(tight.of(mask)))


def _moved(rectangle: Rectangle, window: Rectangle) -> Rectangle:
    """A rectangle within ``window`` as one of the image."""
    y, x = window.top, window.left
    return Rectangle(rectangle.top + y, rectangle.left + x, rectangle.bottom + y, rectangle.right + x)


def count_pixels(mask: Mask) -> int:
    """The number of pixels that are set in bool or uint8 ``[h, w]``, which has some."""
    return int(cv2.countNonZero(mask.view(np.uint8)))

"""Outlines of silhouettes in units of their bounding box, and measures of their shape. Pure functions."""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Outline: TypeAlias = list[NDArray[np.float32]]
"""A closed polygon for each part: float32 ``[k, 2]``, x and y, k at least 3, the first corner not repeated."""

_HALF_OPAQUE = 128
_SQUARE = np.ones((2, 2), np.uint8)


def silhouette(alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The object's pixels, tightly cropped: those at least half opaque; where there are none, those with alpha above 0.

    Args:
        alpha: uint8 ``[h, w]``.

    Returns:
        uint8 ``[h', w']``, 0 or 1.

    Raises:
        ValueError: all of it is 0.
    """
    mask = (alpha >= _HALF_OPAQUE).view(np.uint8)
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        mask = (alpha > 0).view(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
    if not width:
        raise ValueError(f"expected an alpha with pixels above 0, got {list(alpha.shape)} of zeros")
    return np.ascontiguousarray(mask[top : top + height, left : left + width])


def unit_outline(mask: NDArray[np.uint8]) -> Outline:
    """Outer borders of all parts of a silhouette, its bounding box scaled to the unit square.

    Borders run along the edges of pixels, so that a mask of one row is a rectangle like any other. Parts that touch
    by a corner or are one pixel apart are one part. Holes are ignored.

    Args:
        mask: uint8 ``[h, w]``, 0 or not, tight: something in the first and last row and column.
    """
    height, width = mask.shape
    # A corner of pixels belongs to the object where one of the four pixels around it does.
    corners = cv2.dilate(cv2.copyMakeBorder(mask, 0, 1, 0, 1, cv2.BORDER_CONSTANT, value=0), _SQUARE)
    contours, _ = cv2.findContours(corners, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    size = np.array([width, height], np.float32)
    return [contour[:, 0].astype(np.float32) / size for contour in contours]


def simplified(outline: Outline, tolerance: float = 0.01) -> Outline:
    """The outline with the fewest corners that the algorithm of Douglas & Peucker (1973) finds.

    A part that is smaller than the tolerance may become a point.

    Args:
        outline: see :func:`unit_outline`.
        tolerance: how far a corner that is left out may be from the line that replaces it, in sides of the bounding
            box; by default as in BigDatasetGAN.
    """
    return [np.asarray(cv2.approxPolyDP(part[:, None], tolerance, True), np.float32)[:, 0] for part in outline]


def shape_complexity(simple: Outline) -> int:
    """Corners of a :func:`simplified` unit outline, all parts together (BigDatasetGAN, Li et al. 2022, supplement).

    A rectangle has 4, a disk 20 to 25 at 100 px and more. Below some 50 px a side the steps of pixels are larger than
    the tolerance of a hundredth, and count: a disk of 20 to 30 px has 40.
    """
    return sum(len(part) for part in simple)


def outline_length(simple: Outline) -> float:
    """Length of a :func:`simplified` unit outline, all parts together (BigDatasetGAN, supplement), in sides of the box.

    ``sum |p[i + 1] - p[i]|``, closed: 4 for a rectangle, pi for an ellipse. The outline is simplified because one that
    follows pixels is up to 8 % longer than the slanted line it approximates, at any resolution.
    """
    return sum(cv2.arcLength(part[:, None], True) for part in simple)


def parts_and_holes(mask: NDArray[np.uint8]) -> tuple[int, int]:
    """Number of parts (joined by sides or corners) and of holes (joined by sides) of a mask, uint8 ``[h, w]``."""
    _, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    holes = int(np.count_nonzero(tree[0, :, 3] >= 0))
    return len(tree[0]) - holes, holes


def even_points(outline: Outline, count: int = 128) -> NDArray[np.float32]:
    """Points at equal distances along a :func:`unit_outline`, over its parts by length: float32 ``[count, 2]``."""
    starts = np.concatenate(outline)
    ends = np.concatenate([np.roll(part, -1, axis=0) for part in outline])
    along = np.concatenate([[0.0], np.hypot(*(ends - starts).T).cumsum()])
    places = (np.arange(count) + 0.5) * (along[-1] / count)
    side = np.clip(np.searchsorted(along, places, "right") - 1, 0, len(starts) - 1)
    fraction = (places - along[side]) / np.maximum(along[side + 1] - along[side], 1e-12)
    points = starts[side] + fraction[:, None] * (ends[side] - starts[side])
    return np.asarray(points, np.float32)

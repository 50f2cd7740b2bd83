"""Masks as single polygons, as YOLO's text files have one for each object."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_STEPS = 2
"""Points of the outline lie on a grid of half a pixel, so that a line of one pixel has an area."""
_TOLERANCE = 0.5
"""How far an outline may be from the mask's, pixels."""

Points = NDArray[np.float64]
"""Float ``[n, 2]``, x and y in pixels."""


def mask_to_polygon(mask: NDArray[np.generic]) -> Points | None:
    """The outline of a mask as one polygon; holes and further parts hang on it by lines without an area.

    Outlines run a quarter of a pixel inside of the mask's edge, so that the polygon covers the centers of the mask's
    pixels and no others, and its corners cut down to whole numbers are pixels of the mask. Corners are left out where
    the outline moves by less than half a pixel.

    Args:
        mask: ``[H, W]``, bool or 0 and 1.

    Returns:
        At least three points; ``None`` if the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    fine = part.repeat(_STEPS, axis=0).repeat(_STEPS, axis=1)
    outlines = [
        _simplified(own[:, 0].astype(np.int32))
        for own in cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]
    ]
    joined = _joined(sorted(outlines, key=len, reverse=True))
    return (joined + 0.5) / _STEPS + (left, top)


def _simplified(outline: NDArray[np.int32]) -> NDArray[np.int32]:
    """With fewer points, unless these would have no area."""
    fewer = cv2.approxPolyDP(outline, _TOLERANCE * _STEPS, closed=True)[:, 0]
    return np.asarray(fewer if len(fewer) > 2 and cv2.contourArea(fewer) > 0 else outline, dtype=np.int32)


def _joined(outlines: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    """One closed line through all outlines, each entered and left at its point nearest to those before."""
    joined, *rest = outlines
    for outline in rest:
        distances = ((joined[:, None] - outline[None]).astype(np.int64) ** 2).sum(2)
        here, there = np.unravel_index(int(distances.argmin()), distances.shape)
        turned = np.roll(outline, -int(there), axis=0)
        joined = np.concatenate([joined[: here + 1], turned, turned[:1], joined[here:]])
    return joined

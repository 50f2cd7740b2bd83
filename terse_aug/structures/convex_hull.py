"""The outline of a cut-out: how far its object reaches, however it is turned. Imports numpy and OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def convex_outline(alpha: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Corners of the convex hull of the pixels that are not quite transparent, each pixel a square.

    Args:
        alpha: uint8 ``[h, w]``; the whole rectangle counts if all of it is 0.

    Returns:
        float32 ``[n, 2]``, x and y in pixels from the middle of the cut-out, n at least 4.
    """
    height, width = alpha.shape
    shown = alpha > 0
    rows = np.flatnonzero(shown.any(1))
    if not len(rows):
        rows, shown = np.arange(height), np.ones_like(shown)
    # Of each row only the ends can be corners: both ends of its first and of its last pixel.
    first = shown[rows].argmax(1)
    beyond = width - shown[rows, ::-1].argmax(1)
    ends = [np.stack([x, y], 1) for x in (first, beyond) for y in (rows, rows + 1)]
    hull = cv2.convexHull(np.concatenate(ends).astype(np.int32))[:, 0]
    return hull.astype(np.float32) - np.array([width / 2, height / 2], np.float32)

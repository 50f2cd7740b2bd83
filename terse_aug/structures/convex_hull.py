"""The convex outline of a foreground, which bounds it under any affine map."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def convex_outline(alpha: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Corners of the convex hull of the pixels with alpha above 0, each pixel a square.

    Args:
        alpha: uint8 ``[h, w]``; of all zeros, the whole rectangle counts.

    Returns:
        float32 ``[n, 2]``, x and y in pixels from the middle of the foreground, n at least 4.
    """
    height, width = alpha.shape
    shown = alpha > 0
    rows = np.flatnonzero(shown.any(1))
    if not len(rows):
        rows, shown = np.arange(height), np.ones_like(shown)
    # Only the ends of a row can be corners: the left edge of its first pixel and the right edge of its last.
    first = shown[rows].argmax(1)
    end = width - shown[rows, ::-1].argmax(1)
    ends = [np.stack([x, y], 1) for x in (first, end) for y in (rows, rows + 1)]
    hull = cv2.convexHull(np.concatenate(ends).astype(np.int32))[:, 0]
    return hull.astype(np.float32) - np.array([width / 2, height / 2], np.float32)

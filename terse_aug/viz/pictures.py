"""What all pictures for a person have in common. Imports OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""uint8 ``[H', W', 3]``, RGB."""
Color = tuple[int, int, int]

SKY_BLUE: Color = (86, 180, 233)
"""Of the palette of Okabe and Ito (2008), which colour-blind people can tell apart."""
ORANGE: Color = (230, 159, 0)
"""Of the same palette."""


def enlarged(pixels: Picture, smallest: int, largest: int) -> Picture:
    """A picture whose larger side is within ``smallest`` to ``largest`` px."""
    height, width = pixels.shape[:2]
    longer = max(height, width)
    factor = min(max(longer, smallest), largest) / longer
    if factor == 1:
        return pixels
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    # Far enlarged, the pixels themselves are what is to be seen.
    enlarging = cv2.INTER_CUBIC if factor < 4 else cv2.INTER_NEAREST
    method = cv2.INTER_AREA if factor < 1 else enlarging
    return np.asarray(cv2.resize(pixels, size, interpolation=method), dtype=np.uint8)

"""Image type, colors and resizing for what is drawn; free of torch, for the bank."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RGBImage = NDArray[np.uint8]
"""uint8 ``[H, W, 3]``, RGB."""
Color = tuple[int, int, int]

SKY_BLUE: Color = (86, 180, 233)
"""From the color-blind safe palette of Okabe and Ito (2008)."""
ORANGE: Color = (230, 159, 0)
"""From the same palette."""

_NEAREST_FROM = 4


def resize(image: RGBImage, factor: float) -> RGBImage:
    """An image scaled by a factor, at least one px wide and high; single pixels stay visible from factor 4 on."""
    if factor == 1:
        return image
    size = (max(round(image.shape[1] * factor), 1), max(round(image.shape[0] * factor), 1))
    method = Image.Resampling.BICUBIC if factor < _NEAREST_FROM else Image.Resampling.NEAREST
    return np.array(Image.fromarray(image).resize(size, method))


def resize_within(image: RGBImage, smallest: int, largest: int) -> RGBImage:
    """An image scaled so that its longer side is within ``smallest`` to ``largest`` px."""
    longer = max(image.shape[:2])
    return resize(image, min(max(longer, smallest), largest) / longer)

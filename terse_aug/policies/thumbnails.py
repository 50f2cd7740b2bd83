"""Small images of backgrounds and foregrounds, for policies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from terse_aug.compositing.geometry import ForegroundLike
from terse_aug.data.foreground_cache import THUMBNAIL_SIDE, small_image
from terse_aug.structures.annotations import Target
from terse_aug.structures.pixel_format import PixelFormat


def background_thumbnail(image: Tensor, target: Target, pixel_format: PixelFormat, side: int) -> Tensor:
    """An image stretched to a square: RGB in [0, 1] by area averaging, and a map of the boxes of its objects.

    Args:
        image: float ``[3, H, W]``.
        target: its target.
        pixel_format: of the image.
        side: of the square, pixels.

    Returns:
        float ``[4, side, side]``.
    """
    small = F.adaptive_avg_pool2d(image.detach().float()[None], side)[0]
    occupied = torch.zeros(1, side, side, device=image.device)
    scale = target["boxes"].new_tensor([side / image.shape[-1], side / image.shape[-2]] * 2)
    for left, top, right, bottom in (target["boxes"].detach() * scale).tolist():
        occupied[0, math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = 1
    # An image that is not finite gets no pastes, but a NaN would reach a policy's weights all the same.
    return torch.cat([pixel_format.decode(small).nan_to_num(0.0, 1.0, 0.0).clamp(0, 1), occupied])


def foreground_thumbnails(foregrounds: Sequence[ForegroundLike], flipped: Sequence[bool]) -> Tensor:
    """Foregrounds centered in squares, float ``[M, 4, THUMBNAIL_SIDE, THUMBNAIL_SIDE]`` in [0, 1], on the CPU."""
    images = [_centered(small_image(own), flag) for own, flag in zip(foregrounds, flipped, strict=True)]
    empty = np.zeros((0, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 4), np.uint8)
    return torch.from_numpy(np.stack(images) if images else empty).permute(0, 3, 1, 2) / 255


def _centered(small: NDArray[np.uint8], flipped: bool) -> NDArray[np.uint8]:
    height, width = small.shape[:2]
    square = np.zeros((THUMBNAIL_SIDE, THUMBNAIL_SIDE, 4), np.uint8)
    top, left = (THUMBNAIL_SIDE - height) // 2, (THUMBNAIL_SIDE - width) // 2
    square[top : top + height, left : left + width] = small[:, ::-1] if flipped else small
    return square

"""Small pictures of images and cut-outs, for policies. Imports torch and numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from terse_aug.data.foreground_cache import ForegroundLike, small_picture
from terse_aug.policies.base import THUMBNAIL
from terse_aug.structures.annotations import Target
from terse_aug.structures.pixel_format import PixelFormat


def background_picture(image: Tensor, target: Target, pixels: PixelFormat, side: int) -> Tensor:
    """An image filling a square: RGB in [0, 1] by area averaging, and a map of the boxes of its objects.

    Args:
        image: float ``[3, H, W]``.
        target: its target.
        pixels: its format.
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
    return torch.cat([pixels.decode(small).nan_to_num(0.0, 1.0, 0.0).clamp(0, 1), occupied])


def foreground_pictures(shown: Sequence[ForegroundLike], mirrored: Sequence[bool]) -> Tensor:
    """Cut-outs in the middle of pictures of one size, float ``[M, 4, THUMBNAIL, THUMBNAIL]`` in [0, 1], on the CPU."""
    pictures = [_centred(small_picture(each), flag) for each, flag in zip(shown, mirrored, strict=True)]
    empty = np.zeros((0, THUMBNAIL, THUMBNAIL, 4), np.uint8)
    return torch.from_numpy(np.stack(pictures) if pictures else empty).permute(0, 3, 1, 2) / 255


def _centred(small: NDArray[np.uint8], mirrored: bool) -> NDArray[np.uint8]:
    """A small picture in the middle of one of uint8 ``[T, T, 4]``."""
    height, width = small.shape[:2]
    picture = np.zeros((THUMBNAIL, THUMBNAIL, 4), np.uint8)
    top, left = (THUMBNAIL - height) // 2, (THUMBNAIL - width) // 2
    picture[top : top + height, left : left + width] = small[:, ::-1] if mirrored else small
    return picture

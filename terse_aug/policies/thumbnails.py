"""Small images of backgrounds and foregrounds, for policies."""

from __future__ import annotations

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
from terse_aug.utils.transfer import to_device


def background_thumbnails(
    images: Sequence[Tensor], targets: Sequence[Target], pixel_format: PixelFormat, side: int
) -> Tensor:
    """Images stretched to squares: RGB in [0, 1] by area averaging, and a map of the boxes of their objects.

    Args:
        images: B tensors ``[3, H, W]``, float or uint8.
        targets: of the images.
        pixel_format: of the images.
        side: of the square, pixels.

    Returns:
        float ``[B, 4, side, side]``.
    """
    device, levels = images[0].device, images[0].dtype == torch.uint8
    small = torch.stack([F.adaptive_avg_pool2d(image.detach().float(), side) for image in images])
    # An image that is not finite gets no pastes, but a NaN would reach a policy's weights all the same.
    color = pixel_format.decode(small, levels).nan_to_num(0.0, 1.0, 0.0).clamp(0, 1)
    boxes = torch.cat([target["boxes"].detach().float() for target in targets])
    scales = [[side / image.shape[-1], side / image.shape[-2]] * 2 for image in images]
    counts = [len(target["boxes"]) for target in targets]
    of_box = [scale for scale, count in zip(scales, counts, strict=True) for _ in range(count)]
    pixels = torch.arange(side, dtype=torch.float32)
    of_box_there, pixels, boxes = to_device([torch.tensor(of_box).view(-1, 4), pixels, boxes], device)
    scaled = (boxes * of_box_there)[:, :, None]
    covered = ((pixels >= scaled[:, :2].floor()) & (pixels < scaled[:, 2:].ceil())).float()
    # An outer product for each box, added up over those of an image.
    maps = [columns_rows[:, 1].T @ columns_rows[:, 0] for columns_rows in covered.split_with_sizes(counts)]
    return torch.cat([color, torch.stack(maps)[:, None].clamp_(max=1)], 1)


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

"""Patches: what a paste puts into a rectangle of its background, and what all renderers share.

Shape letters: M pastes, H and W the background, h and w a rectangle of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.transforms import Placement
from terse_aug.utils.memory import empty

RAMP_LOW, RAMP_HIGH = 0.25, 0.75
"""The mask clean-up maps this interval of the warped mask to [0, 1]. It is symmetric, so the area where alpha
exceeds one half is the area where the warped mask does."""


_FRAME = 2
"""Pixels around a patch, so that its border is one of the background also at the border of an image."""

Array = TypeVar("Array", Tensor, NDArray[Any])


class Rectangle(NamedTuple):
    """A rectangle of whole background pixels: rows ``top`` to ``bottom``, columns ``left`` to ``right``.

    The lower bounds belong to it, the upper do not.
    """

    top: int
    left: int
    bottom: int
    right: int

    @property
    def empty(self) -> bool:
        """Whether it holds no pixel."""
        return self.bottom <= self.top or self.right <= self.left

    def within(self, outer: Rectangle) -> tuple[slice, slice]:
        """Slices of this rectangle in an array over another one."""
        return (
            slice(self.top - outer.top, self.bottom - outer.top),
            slice(self.left - outer.left, self.right - outer.left),
        )

    def overlap(self, other: Rectangle) -> Rectangle:
        """What two rectangles share; may be empty."""
        return Rectangle(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def of(self, array: Array) -> Array:
        """The view ``[..., h, w]`` of this rectangle in an array ``[..., H, W]`` over the background."""
        view: Array = array[..., self.top : self.bottom, self.left : self.right]
        return view


@dataclass(frozen=True)
class Patch:
    """What one paste puts into a background.

    Attributes:
        rectangle: where.
        color: ``[3, h, w]``, channels in the order of the background: 8-bit levels, or float in its range.
        alpha: float ``[1, h, w]`` in [0, 1].
        pixel_format: of the background, if that is float.
        cloned: whether its gradients are blended in instead of its colors, see :func:`cloned`.
    """

    rectangle: Rectangle
    color: Tensor
    alpha: Tensor
    pixel_format: PixelFormat = field(default_factory=PixelFormat)
    cloned: bool = False

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """bool ``[h, w]``: the pixels that count as the object (alpha above one half)."""
        alpha: NDArray[np.float32] = self.alpha.numpy()[0]
        return alpha > 0.5

    def color_like(self, region: Tensor) -> Tensor:
        """``color`` in the type and range of a region of the background."""
        if self.color.is_floating_point() or region.dtype == torch.uint8:
            return self.color.to(region.dtype)
        return self.pixel_format.encode_levels(self.color).to(region.dtype)


def covered_rectangles(
    placement: Placement, frame_sizes: Sequence[tuple[int, int]], edge_sigma: float
) -> list[Rectangle]:
    """The pixels that each paste can touch, cut at the frame.

    Args:
        placement: of M pastes, NumPy arrays.
        frame_sizes: (height, width) of each paste's background.
        edge_sigma: see :func:`~terse_aug.compositing.render.render`.

    Returns:
        M rectangles; an empty one where the paste lies outside the frame.
    """
    rectangles = []
    parts = (own.tolist() for own in (placement.box_center, placement.half_size, placement.matrix))
    for center, half_size, matrix, frame in zip(*parts, frame_sizes, strict=True):
        low, high = [], []
        for middle, half, row, limit in zip(center, half_size, matrix, frame[::-1], strict=True):
            # The bilinear edge fades outside the foreground, over a fraction of one of its own pixels: many when
            # enlarged.
            fringe = (abs(row[0]) + abs(row[1])) * (0.5 - RAMP_LOW)
            reach = half + fringe + blur_radius(edge_sigma) + 1
            low.append(min(max(math.floor(middle - reach), 0), limit))
            high.append(max(min(math.ceil(middle + reach), limit), 0))
        rectangles.append(Rectangle(low[1], low[0], high[1], high[0]))
    return rectangles


def blend(background: Tensor, patches: Sequence[Patch]) -> Tensor:
    """Alpha-blend patches into a copy of the background on a CPU, the last one in front.

    Args:
        background: float or uint8 ``[3, H, W]``, left untouched.
        patches: for this background.

    Returns:
        ``[3, H, W]``, equal to the background where no patch is.
    """
    if background.dtype == torch.uint8:
        levels = background.numpy().copy()
        for patch in patches:
            patch = seamless(patch, torch.from_numpy(levels)) if patch.cloned else patch
            region, alpha = patch.rectangle.of(levels), patch.alpha.numpy()[0]
            behind = 1 - alpha
            for plane, front in zip(region, patch.color.numpy(), strict=True):
                cv2.blendLinear(plane, front, behind, alpha, plane)
        return torch.from_numpy(levels)
    composite = empty(background.shape, background).copy_(background)
    for patch in patches:
        patch = seamless(patch, composite) if patch.cloned else patch
        region = patch.rectangle.of(composite)
        region.lerp_(patch.color_like(region), patch.alpha.to(region.dtype))
    return composite


def seamless(patch: Patch, background: Tensor) -> Patch:
    """A patch with the colors that have its gradients, and meet those of the background at its border, as 8-bit levels.

    Perez et al., Poisson Image Editing (2003), by OpenCV. What is narrower than three pixels keeps its colors.

    Args:
        patch: with an alpha of 0 and 1.
        background: ``[3, H, W]``, what it is blended into.
    """
    front, behind = (
        cv2.copyMakeBorder(own, _FRAME, _FRAME, _FRAME, _FRAME, cv2.BORDER_REPLICATE)
        for own in (_as_levels(patch.color, patch), _as_levels(patch.rectangle.of(background), patch))
    )
    mask = np.pad(patch.mask.astype(np.uint8) * 255, _FRAME)
    left, top, width, height = cv2.boundingRect(mask)
    if min(width, height) < 3:
        return patch
    place = (left + width // 2, top + height // 2)
    color = np.asarray(cv2.seamlessClone(front, behind, mask, place, cv2.NORMAL_CLONE), dtype=np.uint8)
    inner = np.ascontiguousarray(color[_FRAME:-_FRAME, _FRAME:-_FRAME].transpose(2, 0, 1))
    return replace(patch, color=torch.from_numpy(inner))


def _as_levels(color: Tensor, patch: Patch) -> NDArray[np.uint8]:
    """Colors ``[3, h, w]``, 8-bit or in the format of a patch, as ``[h, w, 3]``."""
    levels = color if color.dtype == torch.uint8 else patch.pixel_format.decode_levels(color).round().clamp(0, 255)
    return np.ascontiguousarray(levels.byte().permute(1, 2, 0).numpy())


def clean_up(alpha: Tensor) -> Tensor:
    """The ramp of the mask clean-up, see :mod:`terse_aug.compositing.render`: warped alpha to alpha, in [0, 1]."""
    return (alpha - RAMP_LOW).div_(RAMP_HIGH - RAMP_LOW).clamp(0, 1)


@lru_cache(maxsize=8)
def gaussian_weights(sigma: float, margin: int = 0) -> tuple[float, ...]:
    """A sampled Gaussian, cut at two standard deviations: weights that add up to 1, for offsets to both sides.

    Args:
        sigma: standard deviation, pixels.
        margin: to how many pixels it is filled up with zeros.
    """
    radius = blur_radius(sigma)
    weights = [math.exp(-(offset**2) / (2 * sigma**2)) if offset else 1.0 for offset in range(-radius, radius + 1)]
    zeros = (0.0,) * (margin - radius)
    return (*zeros, *(weight / sum(weights) for weight in weights), *zeros)


def blur_radius(sigma: float) -> int:
    """How far the Gaussian reaches, pixels."""
    return math.ceil(2 * sigma)


def inverse_2x2(matrix: Tensor) -> Tensor:
    """Inverse of 2x2 matrices in closed form: no solver call, and it has a gradient on every device."""
    a, b, c, d = matrix.flatten(1).unbind(1)
    return torch.stack([d, -b, -c, a], 1).view(-1, 2, 2) / (a * d - b * c)[:, None, None]

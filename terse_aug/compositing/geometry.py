"""Where pastes land: sizes of foregrounds and images, placements, and foregrounds reduced to the size they will have.

Shape letters: M pastes, P transform parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terse_aug.bank import Foreground
from terse_aug.transforms import PasteGeometry, Placement, TransformRanges, place


class ForegroundLike(Protocol):
    """What a placement depends on: a whole foreground, or its thumbnail."""

    @property
    def label(self) -> int:
        """Its class."""

    @property
    def relative_size(self) -> float:
        """See :class:`terse_aug.bank.Foreground`."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""

    @property
    def outline(self) -> NDArray[np.float32]:
        """Corners of its convex hull, see :class:`terse_aug.bank.Foreground`."""


def frame_of(image: Tensor) -> tuple[int, int]:
    """(H, W) of an image ``[..., H, W]``."""
    return image.shape[-2], image.shape[-1]


def paste_geometry(
    foregrounds: Sequence[ForegroundLike], flipped: Sequence[bool], frames: Sequence[tuple[int, int]], like: Tensor
) -> PasteGeometry:
    """Sizes and outlines of M pastes.

    Args:
        foregrounds: M foregrounds.
        flipped: M flags.
        frames: (H, W) of each paste's background.
        like: gives dtype and device.
    """
    sizes = [foreground.size for foreground in foregrounds]
    base_scales = [
        foreground.relative_size * math.sqrt(height * width) / max(size)
        for foreground, size, (height, width) in zip(foregrounds, sizes, frames, strict=True)
    ]
    return PasteGeometry(
        like.new_tensor(sizes).view(-1, 2),
        like.new_tensor([(width, height) for height, width in frames]).view(-1, 2),
        like.new_tensor(base_scales),
        like.new_tensor([-1.0 if flag else 1.0 for flag in flipped]),
        _padded([foreground.outline for foreground in foregrounds], like),
    )


def place_unit(unit: Tensor, geometry: PasteGeometry, ranges: TransformRanges) -> Placement:
    """Where pastes land, for transforms float ``[M, P]`` in the unit cube; differentiable in them."""
    return place(ranges.physical(unit), geometry, ranges.keep_inside)


def _padded(outlines: Sequence[NDArray[np.float32]], like: Tensor) -> Tensor | None:
    """Outlines ``[n_i, 2]`` as one tensor ``[M, n, 2]``: the last point of the shorter ones is repeated."""
    if not outlines:
        return None
    filled = np.empty((len(outlines), max(map(len, outlines)), 2), np.float32)
    for own, outline in zip(filled, outlines, strict=True):
        own[: len(outline)] = outline
        own[len(outline) :] = outline[-1]
    return torch.from_numpy(filled).to(like)


def reduced_foreground(foreground: Foreground, scale: float) -> NDArray[np.uint8]:
    """A foreground at a size from which a bilinear warp takes it to its final size.

    Args:
        foreground: the foreground.
        scale: largest factor by which it will be scaled; below one half it is first reduced by area averaging,
            because a bilinear warp would skip pixels.

    Returns:
        uint8 ``[h', w', 4]``, RGBA.
    """
    rgba = foreground.rgba
    if scale > 0.5:
        return rgba
    height, width = rgba.shape[:2]
    factor = 2.0 ** math.floor(math.log2(1 / max(scale, 1e-6)))
    return _area_averaged(rgba, (max(round(width / factor), 1), max(round(height / factor), 1)))


def _area_averaged(rgba: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Reduce to ``size`` (width, height); colour is weighted by alpha, so that the surroundings do not bleed in."""
    plain = cv2.resize(rgba, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], 4)
    if plain[..., 3].min() == 255:
        return np.asarray(plain, dtype=np.uint8)
    weighted = cv2.resize(cv2.cvtColor(rgba, cv2.COLOR_RGBA2mRGBA), size, interpolation=cv2.INTER_AREA)
    straight = cv2.cvtColor(weighted.reshape(size[1], size[0], 4), cv2.COLOR_mRGBA2RGBA)
    return np.where(plain[..., 3:] > 0, straight, plain).astype(np.uint8)

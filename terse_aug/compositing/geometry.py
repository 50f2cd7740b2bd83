"""Where pastes land: sizes of foregrounds and images, placements, and foregrounds reduced to the size they will have.

Shape letters: M pastes, P transform parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from terse_aug.bank import Foreground
from terse_aug.transforms import Array, PasteGeometry, Placement, TransformRanges, arrays_like, place


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
    foregrounds: Sequence[ForegroundLike], flipped: Sequence[bool], frames: Sequence[tuple[int, int]], like: Array
) -> PasteGeometry:
    """Sizes and outlines of M pastes.

    Args:
        foregrounds: M foregrounds.
        flipped: M flags.
        frames: (H, W) of each paste's background.
        like: a tensor or a NumPy array, which gives kind, dtype and device.
    """
    rows = []
    for foreground, flag, (height, width) in zip(foregrounds, flipped, frames, strict=True):
        size = foreground.size
        base_scale = foreground.relative_size * math.sqrt(height * width) / max(size)
        rows.append((*size, width, height, base_scale, -1.0 if flag else 1.0))
    outlines = [_padded([foreground.outline for foreground in foregrounds])] if rows else []
    values, *outlines = arrays_like([np.array(rows, np.float64).reshape(-1, 6), *outlines], like)
    return PasteGeometry(values[:, :2], values[:, 2:4], values[:, 4], values[:, 5], *outlines)


def place_unit(unit: Array, geometry: PasteGeometry, ranges: TransformRanges) -> Placement:
    """Where pastes land, for transforms float ``[M, P]`` in the unit cube; differentiable in them."""
    return place(ranges.physical(unit), geometry, ranges.keep_inside)


def _padded(outlines: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Outlines ``[n_i, 2]`` as one array ``[M, n, 2]``: the last point of the shorter ones is repeated."""
    filled = np.empty((len(outlines), max(map(len, outlines)), 2), np.float32)
    for own, outline in zip(filled, outlines, strict=True):
        own[: len(outline)] = outline
        own[len(outline) :] = outline[-1]
    return filled


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

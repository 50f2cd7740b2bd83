"""Real photographs in memory, and random crops of them.

Shape letters: N photographs, B images of a batch, M side of the stored images, S side of those trained on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from terse_aug.bank.inputs.folders import check_folders, visible_files
from terse_aug.bank.inputs.image_endings import is_image_name
from terse_aug.bank.inputs.images import read_image

MIN_IMAGES = 200
"""With fewer, the discriminator knows them by heart before layers emerge."""
_MARGIN = 1.25
_SMALLEST_CROP = 0.8
_MIN_SIDE = 0.5
_DAMAGED, _TINY = "image file is damaged or of an unknown kind", "image is smaller than half the size trained on"


@dataclass(frozen=True)
class Photographs:
    """Photographs to learn from.

    Attributes:
        images: uint8 ``[N, 3, M, M]``, RGB: the largest centered squares.
        left_out: number of files for each reason that they were left out.
    """

    images: Tensor
    left_out: Mapping[str, int]


def read_photographs(
    images: str | Path | Iterable[NDArray[np.uint8]],
    size: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> Photographs:
    """Read photographs.

    Args:
        images: a folder, read at any depth, or arrays uint8 ``[H, W, 3]`` RGB.
        size: side in px of the images that are trained on.
        progress: called with a description, the number done and their total.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: fewer than :data:`MIN_IMAGES` can be used.
        TypeError: an array is not uint8 ``[H, W, 3]``.
    """
    left_out: Counter[str] = Counter()
    squares: list[NDArray[np.uint8]] = []
    files: Sequence[Path | NDArray[np.uint8]]
    if isinstance(images, str | Path):
        check_folders(Path(images), content="images")
        files = [path for path in visible_files(Path(images)) if is_image_name(path)]
    else:
        files = list(images)
    if len(files) >= MIN_IMAGES:
        for number, file in enumerate(files):
            if progress is not None:
                progress("reading photographs", number, len(files))
            try:
                pixels = read_image(file) if isinstance(file, Path) else _checked(file, number)
            except ValueError:
                left_out[_DAMAGED] += 1
                continue
            if min(pixels.shape[:2]) < _MIN_SIDE * size:
                left_out[_TINY] += 1
            else:
                squares.append(square(pixels, stored_side(size)))
    if len(squares) < MIN_IMAGES:
        reasons = "".join(f"; {count} left out: {reason}" for reason, count in left_out.items())
        raise ValueError(
            f"expected at least {MIN_IMAGES} photographs to learn from, got {len(files) - sum(left_out.values())}"
            f"{reasons}; annotate boxes instead and cut out with --boxes grabcut"
        )
    return Photographs(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous(), dict(left_out))


def _checked(pixels: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise TypeError(f"image {number}: expected uint8 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    return pixels


def stored_side(size: int) -> int:
    """Side of stored images, somewhat larger than what is trained on, for random crops."""
    return math.ceil(size * _MARGIN)


def square(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The largest centered square of an image ``[H, W, C]``, resized to ``side``."""
    height, width = pixels.shape[:2]
    own = min(height, width)
    top, left = (height - own) // 2, (width - own) // 2
    cut = np.ascontiguousarray(pixels[top : top + own, left : left + own])
    resized = cv2.resize(cut, (side, side), interpolation=cv2.INTER_AREA if own > side else cv2.INTER_LINEAR)
    return resized.astype(np.uint8, copy=False)


def random_crops(images: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Random photographs, flipped left to right at random, in random crops of 80 to 100 % of their side.

    Args:
        images: uint8 ``[N, 3, M, M]``.
        count: B.
        size: S.
        generator: of the random numbers, on the CPU.

    Returns:
        float ``[B, 3, S, S]`` in [-1, 1].
    """
    numbers = torch.randint(len(images), (count,), generator=generator)
    unit = torch.rand(4, count, generator=generator)
    part = _SMALLEST_CROP + (1 - _SMALLEST_CROP) * unit[0]
    flip = torch.where(unit[1] < 0.5, -1.0, 1.0)
    x, y = (2 * unit[2:] - 1) * (1 - part)
    zero = torch.zeros_like(part)
    affine = torch.stack([torch.stack([flip * part, zero, x]), torch.stack([zero, part, y])]).permute(2, 0, 1)
    grid = F.affine_grid(affine, [count, 3, size, size], align_corners=False)
    pixels = images[numbers].float() / 127.5 - 1
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def random_colors(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random brightness, contrast and gains of the channels; images float ``[B, 3, S, S]`` in [-1, 1]."""
    unit = (2 * torch.rand(5, len(images), generator=generator) - 1).to(images)
    mean = images.mean((1, 2, 3), keepdim=True)
    contrast, brightness = 1 + 0.3 * unit[0], 0.2 * unit[1]
    gains = 1 + 0.15 * unit[2:].T[..., None, None]
    changed = (images - mean) * contrast[:, None, None, None] + mean + brightness[:, None, None, None]
    return (((changed + 1) * gains) - 1).clamp(-1, 1)

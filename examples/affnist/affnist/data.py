"""MNIST from its idx files, a bank of its digits, and the AffNIST test set made from its test digits."""

from __future__ import annotations

import gzip
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from terse_aug import Foreground, ForegroundBank, TransformRanges
from terse_aug.bank import BankWriter

CANVAS = 40
"""Side of an AffNIST image, pixels; MNIST's 28 are padded by 6 on every side."""
_INK = 0.1  # a pixel as bright as this belongs to the digit


@dataclass(frozen=True)
class AffineRanges:
    """Ranges of AffNIST; sources differ on the last two, see the README.

    Attributes:
        rotation: degrees, each way.
        shear: tangent of the shear angle, each way.
        scale: factor of x and of y, independent, uniform.
    """

    rotation: float = 20.0
    shear: float = 0.2
    scale: tuple[float, float] = (0.8, 1.2)

    def for_pasting(self) -> TransformRanges:
        """The same as ranges of terse-aug's transforms.

        ``keep_inside`` applies to the foreground with its margin of one pixel, about a tenth of half the digit.
        With 0.88 the spread of centres, and the fraction of digits at the border, equal those of the test set.
        """
        return TransformRanges(
            rotation=(-self.rotation, self.rotation),
            shear=(-self.shear, self.shear),
            scale=(1.0, 1.0),
            scale_x=self.scale,
            scale_y=self.scale,
            keep_inside=0.88,
        )


@dataclass(frozen=True)
class Digits:
    """Images uint8 ``[N, 28, 28]`` and their classes int64 ``[N]``."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: Tensor | slice) -> Digits:
        """A part of them."""
        return Digits(self.images[rows], self.labels[rows])

    def padded(self) -> Tensor:
        """Float ``[N, 1, CANVAS, CANVAS]`` in [0, 1]."""
        margin = (CANVAS - self.images.shape[-1]) // 2
        return F.pad(self.images.float() / 255, (margin,) * 4)[:, None]


def read_mnist(folder: Path, part: str) -> Digits:
    """Read ``train`` or ``t10k`` from idx files, plain or gzipped.

    Raises:
        ValueError: a file is missing or is not an idx file.
    """
    images = _read_idx(folder, f"{part}-images-idx3-ubyte")
    labels = _read_idx(folder, f"{part}-labels-idx1-ubyte")
    if len(images) != len(labels):
        raise ValueError(f"{folder}: {len(images)} images, but {len(labels)} labels of {part}")
    return Digits(torch.from_numpy(images), torch.from_numpy(labels).long())


def _read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    for path, read in ((folder / f"{name}.gz", gzip.open), (folder / name, open)):
        if path.exists():
            with read(path, "rb") as file:
                content = file.read()
            break
    else:
        raise ValueError(f"{folder}: expected {name} or {name}.gz, as from torchvision.datasets.MNIST's raw folder")
    dimensions = content[3] if len(content) > 4 else 0
    shape = np.frombuffer(content, ">u4", dimensions, 4).tolist()
    if content[:3] != b"\0\0\x08" or len(content) != 4 + 4 * dimensions + math.prod(shape):
        raise ValueError(f"{name} in {folder} is not an idx file of bytes, or it is truncated")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()


def digit_bank(digits: Digits, path: Path) -> ForegroundBank:
    """A bank of digits: the ink's convex hull and a pixel around it, all opaque, so that pasting one onto black is
    exactly the transformed digit."""
    if not path.exists():
        with BankWriter(path, {label: str(label) for label in range(10)}) as writer:
            for number, (image, label) in enumerate(zip(digits.images.numpy(), digits.labels.tolist(), strict=True)):
                writer.add(_digit_foreground(image, label, number))
    return ForegroundBank.open(path)


def _digit_foreground(image: NDArray[np.uint8], label: int, number: int) -> Foreground:
    ink = image > _INK * 255
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    crop, shown = np.pad(image[box], 1), np.pad(ink[box], 1)
    hull = cv2.convexHull(cv2.findNonZero(shown.astype(np.uint8)))
    filled = cv2.fillConvexPoly(np.zeros(crop.shape, np.uint8), hull, 255)
    rgba = np.repeat(crop[:, :, None], 4, axis=2)
    rgba[:, :, 3] = cv2.dilate(filled, np.ones((3, 3), np.uint8))
    return Foreground(rgba, label, f"mnist#{number}", max(crop.shape) / CANVAS)


def affnist(digits: Digits, ranges: AffineRanges, seed: int) -> tuple[Tensor, Tensor]:
    """Digits under random affine maps, anywhere where their ink stays inside the frame.

    ``x = centre + Rotation @ Shear @ diag(scale) @ u``, u being measured from the middle of the digit's image.

    Returns:
        Images float ``[N, 1, CANVAS, CANVAS]`` in [0, 1], and labels int64 ``[N]``.
    """
    draw = torch.rand(len(digits), 6, generator=torch.Generator().manual_seed(seed))
    angle = (2 * draw[:, 0] - 1) * math.radians(ranges.rotation)
    shear = (2 * draw[:, 1] - 1) * ranges.shear
    low, high = ranges.scale
    scale = low + draw[:, 2:4] * (high - low)
    cosine, sine = angle.cos(), angle.sin()
    matrix = torch.stack(
        [
            torch.stack([cosine * scale[:, 0], (cosine * shear - sine) * scale[:, 1]], 1),
            torch.stack([sine * scale[:, 0], (sine * shear + cosine) * scale[:, 1]], 1),
        ],
        1,
    )
    lowest, highest = _ink_extent(digits, matrix)
    half = CANVAS / 2
    room_low, room_high = -half - lowest, half - highest
    middle, width = (room_low + room_high) / 2, (room_high - room_low).clamp(min=0)
    centre = middle + (draw[:, 4:] - 0.5) * width
    inverse = torch.linalg.inv(matrix)
    theta = torch.cat([inverse, -(inverse @ centre[:, :, None]) / half], 2)
    size = (len(digits), 1, CANVAS, CANVAS)
    grid = F.affine_grid(theta, list(size), align_corners=False)
    return F.grid_sample(digits.padded(), grid, align_corners=False), digits.labels


def _ink_extent(digits: Digits, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Extent of the mapped ink from the centre: lowest and highest x and y, ``[N, 2]`` each."""
    side = digits.images.shape[-1]
    ink = digits.images > _INK * 255
    at = torch.arange(side) + 0.5 - side / 2
    x = torch.where(ink, at[None, None], torch.nan)
    y = torch.where(ink, at[None, :, None], torch.nan)
    mapped_x = matrix[:, 0, 0, None, None] * x + matrix[:, 0, 1, None, None] * y
    mapped_y = matrix[:, 1, 0, None, None] * x + matrix[:, 1, 1, None, None] * y
    both = torch.stack([mapped_x, mapped_y], 1).flatten(2)
    return both.nan_to_num(torch.inf).amin(2) - 0.5, both.nan_to_num(-torch.inf).amax(2) + 0.5


def describe(ranges: AffineRanges, seed: int) -> dict[str, object]:
    """The settings of the test set, for the results."""
    return asdict(ranges) | {"translation": "uniform where the ink stays inside", "seed": seed, "canvas": CANVAS}

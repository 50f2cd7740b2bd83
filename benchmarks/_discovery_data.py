"""Images whose foregrounds are known, for measuring cutters that never saw a mask.

``digits``: MNIST digits cut from one photograph and put over another, so that only the shape says what is foreground.
Both are blurred: outlines of what a photograph shows are no foreground.
``flowers``: photographs of flowers, those with a trimap held out for measuring.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from terse_aug.bank import read_image

DIGIT_SIDE = 40
"""Stored side of the digit images, for training at 32 px."""
_MIN_SHARE, _MAX_SHARE = 0.15, 0.3
_CROP, _BLUR_SIGMA = (0.4, 1.0), 3.0
"""Fraction of a photograph's shorter side, and px: several colors in both layers, and no outlines but the digit's."""
_UNDECIDED = 128


@dataclass(frozen=True)
class MeasuredImages:
    """Images, and what is true of the held-out ones.

    Attributes:
        train: uint8 ``[H, W, 3]`` each, for learning without masks.
        test: likewise, held out.
        masks: bool ``[H, W]``, foreground of the test images.
        ignored: bool ``[H, W]``, pixels that are not counted.
    """

    train: list[NDArray[np.uint8]]
    test: list[NDArray[np.uint8]]
    masks: list[NDArray[np.bool_]]
    ignored: list[NDArray[np.bool_]]


def digits(root: Path, train: int, test: int) -> MeasuredImages:
    """Digits cut from one photograph over another; photographs and digits of the test images are others."""
    photographs = _photographs(root)
    order = np.random.default_rng(0).permutation(len(photographs))
    held_out = {int(number) for number in order[: len(order) // 5]}
    parts = [[own for n, own in enumerate(photographs) if (n in held_out) == test_part] for test_part in (False, True)]
    made = []
    for part, (name, count, sources) in enumerate((("train", train, parts[0]), ("t10k", test, parts[1]))):
        draw, shapes = np.random.default_rng([part, 1]), _mnist(root / "mnist" / f"{name}-images-idx3-ubyte.gz")
        made.append([_digit_image(shapes, sources, draw) for _ in range(count)])
    masks = [mask for _, mask in made[1]]
    return MeasuredImages(
        [own for own, _ in made[0]], [own for own, _ in made[1]], masks, [~own & own for own in masks]
    )


def flowers(root: Path) -> MeasuredImages:
    """Photographs of flowers; those with a trimap are held out, pixels that it leaves undecided are not counted."""
    folder = root / "flowers"
    train, test, masks, ignored = [], [], [], []
    trimaps = {path.stem: path for path in (folder / "trimaps").iterdir()}
    for path in sorted((folder / "images").iterdir()):
        if path.stem not in trimaps:
            train.append(read_image(path))
            continue
        test.append(read_image(path))
        trimap = np.asarray(Image.open(trimaps[path.stem]))
        masks.append(trimap > _UNDECIDED)
        ignored.append(trimap == _UNDECIDED)
    return MeasuredImages(train, test, masks, ignored)


def _photographs(root: Path) -> list[NDArray[np.uint8]]:
    paths = [*sorted((root / "coco_mini").rglob("*.jpg")), *sorted((root / "flowers" / "images").iterdir())]
    found = []
    for path in paths:
        pixels = read_image(path)
        scale = 160 / min(pixels.shape[:2])
        if scale < 1:
            pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        found.append(pixels)
    return found


def _digit_image(
    shapes: NDArray[np.uint8], photographs: list[NDArray[np.uint8]], draw: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    alpha = _digit_alpha(shapes[draw.integers(len(shapes))], draw)
    above, below = (photographs[int(number)] for number in draw.choice(len(photographs), 2, replace=False))
    layers = [_crop(own, draw).astype(np.float32) for own in (above, below)]
    composite = alpha[..., None] * layers[0] + (1 - alpha[..., None]) * layers[1]
    return np.rint(composite).astype(np.uint8), alpha > 0.5


def _digit_alpha(shape: NDArray[np.uint8], draw: np.random.Generator) -> NDArray[np.float32]:
    """Alpha ``[DIGIT_SIDE, DIGIT_SIDE]`` of an enlarged digit, thickened to a share of 0.15 or more."""
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    tight = shape[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32) / 255
    scale = draw.uniform(0.65, 0.85) * DIGIT_SIDE / max(tight.shape)
    large = cv2.resize(tight, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    height, width = large.shape
    alpha = np.zeros((DIGIT_SIDE, DIGIT_SIDE), np.float32)
    top, left = ((DIGIT_SIDE - side) // 2 + int(draw.integers(-3, 4)) for side in (height, width))
    top, left = min(max(top, 1), DIGIT_SIDE - height - 1), min(max(left, 1), DIGIT_SIDE - width - 1)
    alpha[top : top + height, left : left + width] = large
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    while (alpha > 0.5).mean() < _MIN_SHARE:
        alpha = cv2.dilate(alpha, disk)
    while (alpha > 0.5).mean() > _MAX_SHARE:
        alpha = cv2.erode(alpha, disk)
    return np.clip((alpha - 0.5) * 2 + 0.5, 0, 1)


def _crop(photograph: NDArray[np.uint8], draw: np.random.Generator) -> NDArray[np.uint8]:
    height, width = photograph.shape[:2]
    side = int(min(height, width) * draw.uniform(*_CROP))
    top, left = int(draw.integers(height - side + 1)), int(draw.integers(width - side + 1))
    part = photograph[top : top + side, left : left + side]
    interpolation = cv2.INTER_AREA if side > DIGIT_SIDE else cv2.INTER_LINEAR
    part = cv2.resize(part, (DIGIT_SIDE, DIGIT_SIDE), interpolation=interpolation)
    return cv2.GaussianBlur(part, (0, 0), _BLUR_SIGMA)


def _mnist(path: Path) -> NDArray[np.uint8]:
    content = gzip.decompress(path.read_bytes())
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)

"""The demo's detection set: few, uniform images to train on, and a more varied test set.

Training and test share neither photographs nor handwriting. The split and every image are functions of the sizes
below alone, not of the run's seed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from terse_aug.bank import BuildReport, ExtractionRules, build_from_coco
from terse_demo.digits import (
    TEST_PHOTOGRAPHS,
    TRAIN_PHOTOGRAPHS,
    Handwriting,
    Pixels,
    Pose,
    crop,
    handwriting,
    ink,
    photograph,
    write_digit,
)

SIZE = 128
"""Side of every image, px."""
CLASSES = tuple("01234")
"""Class names; label 1 is the first, 0 is background. Five digits, because ten take longer to learn than a demo may."""

_TRIES = 50
_GAP = 2


@dataclass(frozen=True)
class Placing:
    """How digits are placed on the images of one part of the data, all uniform within (low, high).

    Attributes:
        count: digits on an image.
        height: of a digit's grid, px.
        rotation: degrees.
        shear: tangent of the shear angle.
        x: centre, as a fraction of the image's width.
        y: centre, as a fraction of the image's height.
    """

    count: tuple[int, int]
    height: tuple[float, float]
    rotation: tuple[float, float]
    shear: tuple[float, float]
    x: tuple[float, float]
    y: tuple[float, float]

    def draw(self, rng: np.random.Generator) -> Pose:
        """One pose."""
        return Pose(
            x=SIZE * rng.uniform(*self.x),
            y=SIZE * rng.uniform(*self.y),
            height=float(np.exp(rng.uniform(*np.log(self.height)))),
            rotation=rng.uniform(*self.rotation),
            shear=rng.uniform(*self.shear),
        )


TRAIN_PLACING = Placing((1, 3), (28, 36), (-4, 4), (0, 0), (0.15, 0.85), (0.5, 0.8))
"""Upright, of one size, in the lower half: as a small data set from one place would have them."""
TEST_PLACING = Placing((1, 4), (20, 54), (-30, 30), (-0.15, 0.15), (0.1, 0.9), (0.1, 0.9))
"""Anywhere, turned, small and large."""


@dataclass(frozen=True)
class LabelledImage:
    """An image with its digits.

    Attributes:
        pixels: uint8 ``[SIZE, SIZE, 3]``, RGB.
        masks: bool ``[N, SIZE, SIZE]``, the digits.
        labels: N labels.
        photograph: what it was cropped from.
        rows: of the digits in scikit-learn's set.
    """

    pixels: Pixels
    masks: NDArray[np.bool_]
    labels: list[int]
    photograph: str
    rows: list[int]

    @property
    def boxes(self) -> NDArray[np.float32]:
        """float ``[N, 4]``, XYXY, tight around the masks."""
        return np.array([_box(mask) for mask in self.masks], np.float32).reshape(-1, 4)

    def tensors(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Image and target in torchvision's convention."""
        image = torch.from_numpy(self.pixels.transpose(2, 0, 1).copy()).float() / 255
        return image, {"boxes": torch.from_numpy(self.boxes), "labels": torch.tensor(self.labels)}


def training_images(count: int) -> list[LabelledImage]:
    """The training part."""
    return _images(count, TRAIN_PHOTOGRAPHS, handwriting(test=False), TRAIN_PLACING, seed=1)


def test_images(count: int) -> list[LabelledImage]:
    """The test part."""
    return _images(count, TEST_PHOTOGRAPHS, handwriting(test=True), TEST_PLACING, seed=2)


def save_coco(images: Sequence[LabelledImage], folder: Path) -> Path:
    """Write images and a COCO JSON with masks.

    Returns:
        The JSON file, ``folder.json``; the images lie in ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        if not cv2.imwrite(str(folder / _file_name(number)), image.pixels[..., ::-1]):
            raise OSError(f"{folder / _file_name(number)} cannot be written")
    path = folder.with_suffix(".json")
    path.write_text(json.dumps(as_coco(images)))
    return path


def as_coco(images: Sequence[LabelledImage]) -> dict[str, Any]:
    """The content of a COCO JSON."""
    annotations = [
        annotation
        for number, image in enumerate(images)
        for annotation in map(_annotation, [number] * len(image.labels), image.labels, image.masks, image.boxes)
    ]
    return {
        "images": [
            {"id": number, "file_name": _file_name(number), "height": SIZE, "width": SIZE}
            for number in range(len(images))
        ],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)],
        "categories": [{"id": label, "name": name} for label, name in enumerate(CLASSES, 1)],
    }


def build_bank(annotations: Path, images: Path, bank: Path) -> BuildReport:
    """A bank of the digits of the training images, as `terse-aug bank build coco` makes it."""
    return build_from_coco(annotations, images, bank, rules=ExtractionRules(min_area=40, min_side=4), overwrite=True)


def _images(count: int, names: Sequence[str], digits: Handwriting, placing: Placing, seed: int) -> list[LabelledImage]:
    rng = np.random.default_rng(seed)
    photographs = [photograph(name) for name in names]
    values = _balanced_values(count * placing.count[1], rng)
    images = []
    for number in range(count):
        background = crop(photographs[number % len(names)], SIZE, rng)
        wanted = [next(values) for _ in range(rng.integers(placing.count[0], placing.count[1] + 1))]
        images.append(_write_digits(background, wanted, digits, placing, names[number % len(names)], rng))
    return images


def _balanced_values(count: int, rng: np.random.Generator):
    """The digits in random order, each again only when all have been."""
    for _ in range(count // len(CLASSES) + 1):
        yield from rng.permutation(len(CLASSES)).tolist()


def _write_digits(
    pixels: Pixels,
    values: Sequence[int],
    digits: Handwriting,
    placing: Placing,
    source: str,
    rng: np.random.Generator,
) -> LabelledImage:
    masks: list[NDArray[np.bool_]] = []
    labels, rows = [], []
    for value in values:
        position = int(rng.choice(digits.of(value)))
        coverage = _free_place(digits.images[position], placing, masks, rng)
        if coverage is None:
            continue
        pixels = write_digit(pixels, coverage, rng)
        masks.append(coverage > 0.5)
        labels.append(value + 1)
        rows.append(int(digits.rows[position]))
    return LabelledImage(pixels, np.array(masks, bool).reshape(-1, SIZE, SIZE), labels, source, rows)


def _free_place(
    digit: NDArray[np.float32], placing: Placing, taken: Sequence[NDArray[np.bool_]], rng: np.random.Generator
) -> NDArray[np.float32] | None:
    """Coverage of a digit that lies inside the image and off the boxes of the others; ``None`` if none is found."""
    boxes = [_box(mask) for mask in taken]
    for _ in range(_TRIES):
        coverage = ink(digit, placing.draw(rng), SIZE)
        edge = np.concatenate([coverage[0], coverage[-1], coverage[:, 0], coverage[:, -1]])
        if edge.max() > 0 or not (coverage > 0.5).any():
            continue
        box = _box(coverage > 0.5)
        if not any(_touch(box, other) for other in boxes):
            return coverage
    return None


def _touch(one: Sequence[float], other: Sequence[float]) -> bool:
    return (
        one[0] < other[2] + _GAP and other[0] < one[2] + _GAP and one[1] < other[3] + _GAP and other[1] < one[3] + _GAP
    )


def _box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _annotation(image: int, label: int, mask: NDArray[np.bool_], box: NDArray[np.float32]) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    left, top, right, bottom = box.tolist()
    return {
        "image_id": image,
        "category_id": label,
        "bbox": [left, top, right - left, bottom - top],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
    }


def _file_name(number: int) -> str:
    return f"{number:04d}.png"

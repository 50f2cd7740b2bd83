"""The data sets of :mod:`benchmarks.finetune`, written once as small images with COCO annotations."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks._finetune_example import DetectionDataset, encode_mask
from terse_aug import PasteConfig, TransformRanges
from terse_aug.bank import read_image

Image = NDArray[np.uint8]
Objects = Sequence[tuple[int, NDArray[np.bool_]]]
"""Label and mask of each object of an image."""
Split = Iterable[tuple[Image, Objects]]

PERSON = 1  # COCO's category id
_DIGIT_SIDE = 40
"""Side of an MNIST image on a background, pixels."""
_INK = 80


@dataclass(frozen=True)
class DataSet:
    """A data set and what is usual on it.

    Attributes:
        classes: names, of labels from 1 on.
        side: shorter side of the images, pixels.
        images: numbers of training and of test images, at most.
        read: from the data folder, side, and numbers of images to training and test images.
        backgrounds: from the data folder to images that have nothing to do with the data set.
        paste: settings of pasting that fit it.
        detector: name of its detector.
        iterations: of the baseline and of fine-tuning, 4 images each.
        flip: whether training images are flipped.
    """

    classes: Sequence[str]
    side: int
    images: tuple[int, int]
    read: Callable[[Path, int, tuple[int, int]], tuple[Split, Split]]
    backgrounds: Callable[[Path], list[Path]]
    paste: PasteConfig = field(default_factory=PasteConfig)
    detector: str = "fasterrcnn_mobilenet_v2_fpn"
    iterations: tuple[int, int] = (900, 300)
    flip: bool = True


class CachedDataset(DetectionDataset):
    """A data set whose images are decoded once."""

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        cache = self.__dict__.setdefault("_decoded", {})
        if index not in cache:
            cache[index] = super().__getitem__(index)
        image, target = cache[index]
        return image, dict(target)


def prepare(name: str, data: Path, out: Path, images: tuple[int, int] | None = None, side: int | None = None) -> Path:
    """Write a data set into ``out`` unless it is there: ``images``, ``train.json``, ``test.json``; its folder."""
    kind = DATA_SETS[name]
    images, side = images or kind.images, side or kind.side
    folder = out / f"{name}-{side}px-{images[0]}-{images[1]}"
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        (part / "images").mkdir(parents=True)
        for split, samples in zip(("train", "test"), kind.read(data, side, images), strict=True):
            content = _write(samples, kind.classes, part / "images", split)
            (part / f"{split}.json").write_text(json.dumps(content))
        os.replace(part, folder)
    return folder


def open_split(folder: Path, split: str, classes: Sequence[str]) -> CachedDataset:
    """The images of ``train`` or ``test``; those without objects are kept."""
    return CachedDataset(folder / f"{split}.json", folder / "images", classes=list(classes), keep_empty=True)


def _write(samples: Split, classes: Sequence[str], folder: Path, split: str) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (image, objects) in enumerate(samples, start=1):
        name = f"{split}-{number:04d}.png"
        cv2.imwrite(str(folder / name), image[..., ::-1])
        images.append({"id": number, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
        annotations += [
            {"id": len(annotations) + place, "image_id": number} | annotation(label, mask)
            for place, (label, mask) in enumerate(objects, start=1)
        ]
    categories = [{"id": label, "name": name} for label, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def annotation(label: int, mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Fields of a COCO annotation that follow from a mask, which is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    encoded = encode_mask(mask)
    return {
        "category_id": label,
        "bbox": [float(value) for value in box],
        "area": float(mask.sum()),
        "segmentation": {"size": list(mask.shape), "counts": encoded["counts"].decode()},
        "iscrowd": 0,
    }


def _resized(image: Image, masks: Sequence[tuple[int, NDArray[Any]]], side: int) -> tuple[Image, Objects]:
    """An image and its masks with another shorter side; objects that vanish are left out."""
    height, width = image.shape[:2]
    factor = side / min(height, width)
    size = round(width * factor), round(height * factor)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    scaled = [
        (label, cv2.resize(np.asarray(mask, np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5)
        for label, mask in masks
    ]
    return small, [(label, mask) for label, mask in scaled if mask.any(0).sum() > 1 < mask.any(1).sum()]


def _shuffled(names: Sequence[Any]) -> list[Any]:
    return [names[place] for place in np.random.default_rng(0).permutation(len(names))]


def _penn_fudan(data: Path, side: int, images: tuple[int, int]) -> tuple[Split, Split]:
    folder = data / "penn_fudan"
    names = _shuffled(sorted(path.stem for path in (folder / "PNGImages").glob("*.png")))

    def read(part: Sequence[str]) -> Split:
        for name in part:
            numbered = cv2.imread(str(folder / "PedMasks" / f"{name}_mask.png"), cv2.IMREAD_UNCHANGED)
            masks = [(PERSON, numbered == person) for person in np.unique(numbered[numbered > 0])]
            yield _resized(read_image(folder / "PNGImages" / f"{name}.png"), masks, side)

    return read(names[: images[0]]), read(names[::-1][: images[1]])


def _coco_people(data: Path, side: int, images: tuple[int, int]) -> tuple[Split, Split]:
    def read(split: str, count: int) -> Split:
        source = json.loads((data / "coco_mini" / "annotations" / f"instances_{split}.json").read_bytes())
        people = [own for own in source["annotations"] if own["category_id"] == PERSON]
        source["annotations"] = [own for own in people if not own["iscrowd"]]
        source["categories"] = [{"id": PERSON, "name": "person"}]
        dataset = DetectionDataset(source, data / "coco_mini" / split, keep_empty=True, limit=count)
        for image, target in (dataset[index] for index in range(len(dataset))):
            pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            masks = target["masks"] if len(target["boxes"]) else ()
            yield _resized(pixels, [(PERSON, mask.numpy()) for mask in masks], side)

    return read("train2017", images[0]), read("val2017", images[1])


def _flowers(data: Path, side: int, images: tuple[int, int]) -> tuple[Split, Split]:
    numbers = _shuffled(sorted(int(path.stem[-4:]) for path in (data / "flowers" / "trimaps").glob("*.png")))
    by_kind = {kind: [n for n in numbers if (n - 1) // 80 == kind] for kind in FLOWER_KINDS}

    def read(part: Mapping[int, Sequence[int]]) -> Split:
        for label, kind in enumerate(FLOWER_KINDS, start=1):
            for number in part[kind]:
                image = read_image(data / "flowers" / "images" / f"image_{number:04d}.jpg")
                trimap = cv2.imread(str(data / "flowers" / "trimaps" / f"image_{number:04d}.png"), cv2.IMREAD_GRAYSCALE)
                yield _resized(image, [(label, trimap == 255)], side)

    train, test = (math.ceil(count / len(FLOWER_KINDS)) for count in images)
    return (
        read({kind: own[:train] for kind, own in by_kind.items()}),
        read({kind: own[::-1][: min(test, len(own) - train)] for kind, own in by_kind.items()}),
    )


FLOWER_KINDS = (0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 16)
"""Kinds of flowers with at least 40 trimaps."""


def _mnist_coco(data: Path, side: int, images: tuple[int, int]) -> tuple[Split, Split]:
    """Upright digits in training images; in test images under AffNIST's transforms."""

    def photographs(split: str) -> list[Path]:
        return sorted((data / "coco_mini" / split).glob("*.jpg"))

    train = _digit_images(data, "train", photographs("train2017"), side, images[0], False)
    return train, _digit_images(data, "t10k", photographs("val2017"), side, images[1], True)


def _digit_images(data: Path, part: str, photographs: Sequence[Path], side: int, count: int, moved: bool) -> Split:
    random = np.random.default_rng([side, int(moved)])
    digits, labels = _read_mnist(data / "mnist", part)
    order = iter(random.permutation(len(digits)))
    for number in range(count):
        image = _crop(read_image(photographs[number % len(photographs)]), side, random)
        objects: list[tuple[int, NDArray[np.bool_]]] = []
        for _ in range(random.integers(1, 4)):
            digit = next(order)
            drawn = _draw_digit(digits[digit], image, [mask for _, mask in objects], moved, random)
            if drawn is not None:
                image, mask = drawn
                objects.append((int(labels[digit]) + 1, mask))
        yield image, objects


def _crop(image: Image, side: int, random: np.random.Generator) -> Image:
    own = int(min(image.shape[:2]) * random.uniform(0.6, 1))
    top, left = (random.integers(0, length - own + 1) for length in image.shape[:2])
    return cv2.resize(image[top : top + own, left : left + own], (side, side), interpolation=cv2.INTER_AREA)


def _draw_digit(
    digit: Image, image: Image, masks: Sequence[NDArray[np.bool_]], moved: bool, random: np.random.Generator
) -> tuple[Image, NDArray[np.bool_]] | None:
    """The image with a digit where it covers no other one, and the digit's mask; ``None`` where there is no room."""
    side, color = image.shape[0], random.uniform(140, 256, 3)
    for _ in range(20):
        angle, shear = (math.radians(random.uniform(-20, 20)), random.uniform(-0.2, 0.2)) if moved else (0.0, 0.0)
        scale = random.uniform(0.8, 1.2, 2) if moved else np.ones(2)
        cosine, sine = math.cos(angle), math.sin(angle)
        turn = np.array([[cosine, cosine * shear - sine], [sine, sine * shear + cosine]])
        matrix = turn * scale * (_DIGIT_SIDE / digit.shape[0])
        center = random.uniform(0, side, 2)
        offset = center - matrix @ np.full(2, digit.shape[0] / 2)
        warped = cv2.warpAffine(digit, np.column_stack([matrix, offset]), (side, side), flags=cv2.INTER_LINEAR)
        mask = warped > _INK
        ink = warped.astype(float).sum() / (digit.astype(float).sum() * abs(np.linalg.det(matrix)))
        box = cv2.dilate(_filled_box(mask), np.ones((5, 5), np.uint8)) > 0
        if ink > 0.97 and mask.any() and not any((own & box).any() for own in masks):
            alpha = np.clip(warped / 200.0, 0, 1)[..., None]
            return (image * (1 - alpha) + color * alpha).astype(np.uint8), mask
    return None


def _filled_box(mask: NDArray[np.bool_]) -> Image:
    return np.outer(mask.any(1), mask.any(0)).astype(np.uint8)


def _read_mnist(folder: Path, part: str) -> tuple[Image, Image]:
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def _without_people(data: Path) -> list[Path]:
    """COCO's training photographs that show no person."""
    folder = data / "coco_mini"
    source = json.loads((folder / "annotations" / "instances_train2017.json").read_bytes())
    shown = {own["image_id"] for own in source["annotations"] if own["category_id"] == PERSON}
    names = sorted(own["file_name"] for own in source["images"] if own["id"] not in shown)
    return [folder / "train2017" / name for name in names]


def _flower_photographs(data: Path) -> list[Path]:
    return sorted((data / "flowers" / "images").glob("*.jpg"))[::17]


_AFFNIST = TransformRanges(
    rotation=(-20, 20), shear=(-0.2, 0.2), scale=(1, 1), scale_x=(0.8, 1.2), scale_y=(0.8, 1.2), keep_inside=1
)
_DIGIT_PASTES = PasteConfig(
    objects=(1, 3), flip_probability=0, decoys=(0, 0), edge_blur_sigma=0.5, min_side=2, ranges=_AFFNIST
)
DATA_SETS = {
    "penn-fudan": DataSet(("person",), 240, (100, 70), _penn_fudan, _without_people),
    "coco-people": DataSet(("person",), 240, (80, 79), _coco_people, _without_people),
    "flowers": DataSet(
        tuple(f"kind {kind + 1}" for kind in FLOWER_KINDS),
        128,
        (140, 280),
        _flowers,
        _without_people,
        detector="fasterrcnn_mobilenet_v2_small",
        iterations=(900, 200),
    ),
    "mnist-coco": DataSet(
        tuple("0123456789"),
        128,
        (100, 150),
        _mnist_coco,
        _flower_photographs,
        _DIGIT_PASTES,
        "fasterrcnn_mobilenet_v2_small",
        (1200, 200),
        flip=False,
    ),
}
"""By name."""

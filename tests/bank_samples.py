"""Small banks and data sets that the tests of the bank are run on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from terse_aug.bank import BankWriter, Foreground

CATEGORIES = {1: "person", 3: "car", 90: "toothbrush"}


def make_foreground(seed: int = 0, **changes: Any) -> Foreground:
    """A foreground that depends on ``seed`` only."""
    generator = np.random.default_rng(seed)
    height, width = generator.integers(4, 60, size=2)
    rgba = generator.integers(1, 256, size=(height, width, 4), dtype=np.uint8)
    values: dict[str, Any] = {
        "rgba": rgba,
        "label": (1, 3, 90)[seed % 3],
        "source": f"bild ä {seed}.jpg#{seed}",
        "relative_size": float(np.float32(0.1 + seed / 1000)),
    }
    return Foreground(**(values | changes))


def write_bank(path: Path, count: int = 12, **writer: Any) -> list[Foreground]:
    """Write a bank of ``count`` foregrounds and return them."""
    foregrounds = [make_foreground(seed) for seed in range(count)]
    with BankWriter(path, CATEGORIES, **writer) as bank:
        for foreground in foregrounds:
            bank.add(foreground)
    return foregrounds


def assert_equal(actual: Foreground, expected: Foreground) -> None:
    """Both foregrounds are the same, to the bit."""
    np.testing.assert_array_equal(actual.rgba, expected.rgba)
    assert (actual.label, actual.source) == (expected.label, expected.source)
    assert actual.relative_size == float(np.float32(expected.relative_size))
    assert (actual.keypoints is None) == (expected.keypoints is None)
    if actual.keypoints is not None:
        np.testing.assert_array_equal(actual.keypoints, expected.keypoints)


def gradient(height: int, width: int) -> NDArray[np.uint8]:
    """An RGB image in which no two places of a row or column look the same."""
    rows, columns = np.mgrid[:height, :width]
    return np.dstack([rows * 255 // max(height - 1, 1), columns * 255 // max(width - 1, 1), rows // 2]).astype(np.uint8)


class CocoSample:
    """A COCO data set of one image of 80x120 px, to be changed by a test."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.images = folder / "images"
        self.images.mkdir()
        self.json = folder / "annotations.json"
        self.pixels = gradient(80, 120)
        Image.fromarray(self.pixels).save(self.images / "a.png")
        self.content: dict[str, Any] = {
            "images": [{"id": 7, "file_name": "a.png", "height": 80, "width": 120}],
            "categories": [{"id": 3, "name": "car"}, {"id": 90, "name": "toothbrush"}],
            "annotations": [],
        }
        self.add()

    def add(self, **changes: Any) -> None:
        """Add an annotation: by default a rectangle of 40x20 px at (30, 10)."""
        entry = {
            "id": len(self.content["annotations"]) + 1,
            "image_id": 7,
            "category_id": 3,
            "bbox": [30, 10, 40, 20],
            "segmentation": [[30, 10, 70, 10, 70, 30, 30, 30]],
            "iscrowd": 0,
        } | changes
        self.content["annotations"].append({key: value for key, value in entry.items() if value is not None})

    def write(self) -> tuple[Path, Path]:
        """Save the JSON; returns it and the folder of images."""
        self.json.write_text(json.dumps(self.content), encoding="utf-8")
        return self.json, self.images

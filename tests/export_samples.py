"""A small data set with masks, a bank, and the commands that write composites of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from factories import make_bank, make_foreground
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from terse_aug.cli import main

SIZES = ((72, 96), (80, 64), (64, 64), (96, 72), (88, 88))
NAMES = ("a.png", "sub/a.png", "sub/images/b.png", "c.png", "A.jpg")
CLASSES = {9: "cat", 4: "dog"}
"""Labels of the images, other than the bank's."""


def shapes(height: int, width: int) -> list[NDArray[np.uint8]]:
    """Masks of a ring, and of a cross whose arms are two pixels wide."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - 26, columns - 24)
    ring = (distance < 18) & (distance > 9)
    cross = (abs(rows - height + 20) < 1.5) | (abs(columns - width + 20) < 1.5)
    return [mask.astype(np.uint8) for mask in (ring, cross & (rows > height - 34) & (columns > width - 34))]


class Data:
    """Five images with two objects each; the last image has none.

    Attributes:
        images: folder of the images.
        json: their annotations.
        bank: path of the bank.
        folder: where they all are.
    """

    def __init__(self, folder: Path, masks: bool = True) -> None:
        self.folder, self.images, self.json = folder, folder / "photographs", folder / "labels.json"
        self.bank = folder / "x.bank"
        (folder / "banks").mkdir(parents=True)
        foregrounds = [make_foreground(seed, label=1 + seed % 2, side=30) for seed in range(6)]
        make_bank(folder / "banks", foregrounds).close()
        (folder / "banks" / "0.bank").rename(self.bank)
        generator = np.random.default_rng(0)
        self.content: dict[str, Any] = {"images": [], "annotations": []}
        self.content["categories"] = [{"id": label, "name": name} for label, name in CLASSES.items()]
        for number, (name, (height, width)) in enumerate(zip(NAMES, SIZES, strict=True)):
            (self.images / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.images / name)
            self.content["images"].append({"id": number, "file_name": name, "height": height, "width": width})
            self.content["annotations"] += self._annotations(number, height, width, masks)
        self.write(self.content["annotations"])

    def write(self, annotations: list[dict[str, Any]]) -> None:
        """Write the JSON with these annotations."""
        self.content["annotations"] = annotations
        self.json.write_text(json.dumps(self.content))

    @staticmethod
    def _annotations(number: int, height: int, width: int, masks: bool) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for category, mask in zip(CLASSES, shapes(height, width), strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask))
            own = {"id": 2 * number + len(found), "image_id": number, "category_id": category, "iscrowd": 0}
            own |= {"bbox": coco_mask.toBbox(rle).tolist()}
            if masks:
                own["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
            found.append(own)
        return found if number < len(NAMES) - 1 else []

    def arguments(self, out: Path, *more: str) -> list[str]:
        """Of ``terse-aug compose``; in this process, with objects on every image."""
        source = ["--images", str(self.images), "--annotations", str(self.json), "--classes", "cat", "dog"]
        pasting = ["--paste-probability", "1", "--objects", "2", "4", "--seed", "3"]
        return ["compose", str(self.bank), *source, "--out", str(out), "--jobs", "1", *pasting, *more]

    def compose(self, name: str, *more: str) -> Path:
        """Run the command; the output folder."""
        out = self.folder / name
        assert main(self.arguments(out, *more)) == 0
        return out


def files_of(out: Path) -> dict[str, bytes]:
    """All files of a folder and their contents."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def coco_of(out: Path) -> dict[str, Any]:
    """The written COCO JSON, with the annotations of each image in their order under ``by_image``."""
    content: dict[str, Any] = json.loads((out / "annotations.json").read_text())
    own = {image["id"]: [] for image in content["images"]}
    for entry in content["annotations"]:
        own[entry["image_id"]].append(entry)
    return content | {"by_image": own}

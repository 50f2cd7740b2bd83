"""One small image, annotated in every format: all readers have to give the same foregrounds."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from terse_aug import ForegroundBank
from terse_aug.bank import (
    BuildReport,
    build_from_labelme,
    build_from_panoptic,
    build_from_via,
    build_from_voc,
    build_from_yolo,
)

HEIGHT, WIDTH = 96, 128
POLYGON = [[20, 10], [70, 10], [70, 60], [20, 60]]
"""Of the first object, a ``cat``."""
BOX = (80, 30, 30, 40)
"""Of the second, a ``dog``: x, y, width, height."""


@dataclass
class AnnotatedImage:
    """``root/images/scene.png``, and a folder for annotations; pixels are uint8 ``[HEIGHT, WIDTH, 3]``, RGB."""

    root: Path
    pixels: NDArray[np.uint8]

    @property
    def images(self) -> Path:
        return self.root / "images"

    def write_json(self, name: str, content: Any) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        return path


def make_sample(root: Path) -> AnnotatedImage:
    """Noise with two bright objects on it."""
    pixels = np.random.default_rng(0).integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[10:60, 20:70] = (220, 40, 40)
    pixels[30:70, 80:110] = (40, 220, 40)
    (root / "images").mkdir(parents=True)
    Image.fromarray(pixels).save(root / "images" / "scene.png")
    return AnnotatedImage(root, pixels)


def true_masks() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Of both objects, 0 and 1."""
    first, second = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(first, [np.array(POLYGON) - [[0, 0], [1, 0], [1, 1], [0, 1]]], 1)
    x, y, width, height = BOX
    second[y : y + height, x : x + width] = 1
    return first, second


def as_voc(sample: AnnotatedImage, masks: bool = True, **changes: str) -> Path:
    """As VOC; ``changes`` replace texts of the XML."""
    root = sample.root / "voc"
    for name in ("Annotations", "JPEGImages", "SegmentationObject", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    Image.fromarray(sample.pixels).save(root / "JPEGImages" / "scene.png")
    x, y, width, height = BOX
    boxes = {"cat": (21, 11, 70, 60), "dog": (x + 1, y + 1, x + width, y + height)}
    text = f"<annotation><filename>scene.png</filename><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    for name, corners in boxes.items():
        places = "".join(f"<{key}>{value}</{key}>" for key, value in zip(_CORNERS, corners, strict=True))
        text += f"<object><name>{name}</name><difficult>0</difficult><bndbox>{places}</bndbox></object>"
    text += "</annotation>"
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (root / "Annotations" / "scene.xml").write_text(text)
    (root / "ImageSets" / "Main" / "train.txt").write_text("scene\n")
    if masks:
        first, second = true_masks()
        numbers = Image.fromarray(np.where(second > 0, 2, first).astype(np.uint8), mode="P")
        numbers.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        numbers.save(root / "SegmentationObject" / "scene.png")
    return root


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def as_yolo(sample: AnnotatedImage, lines: list[str] | None = None) -> None:
    """As YOLO, the first object a polygon, the second a box."""
    x, y, width, height = BOX
    points = " ".join(f"{px / WIDTH} {py / HEIGHT}" for px, py in POLYGON)
    box = f"{(x + width / 2) / WIDTH} {(y + height / 2) / HEIGHT} {width / WIDTH} {height / HEIGHT}"
    (sample.root / "labels").mkdir()
    (sample.root / "labels" / "scene.txt").write_text("\n".join(lines or [f"0 {points}", f"1 {box}"]))
    (sample.root / "data.yaml").write_text("path: .\ntrain: images\nnames:\n  0: cat\n  1: dog\n")


def labelme_shapes() -> list[dict[str, Any]]:
    x, y, width, height = BOX
    return [
        {"label": "cat", "shape_type": "polygon", "points": POLYGON, "group_id": None},
        {"label": "dog", "shape_type": "rectangle", "points": [[x + width, y + height], [x, y]]},
    ]


def as_labelme(sample: AnnotatedImage, shapes: list[Any] | None = None) -> Path:
    """As LabelMe, from a Windows machine."""
    content = {
        "version": "5.4.1",
        "imagePath": "..\\images\\scene.png",
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        "shapes": labelme_shapes() if shapes is None else shapes,
    }
    return sample.write_json("labelme/scene.json", content).parent


def png_in_base64(mask: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def via_regions() -> list[dict[str, Any]]:
    x, y, width, height = BOX
    across, down = zip(*POLYGON, strict=True)
    return [
        {
            "shape_attributes": {"name": "polygon", "all_points_x": list(across), "all_points_y": list(down)},
            "region_attributes": {"kind": "cat", "note": "x"},
        },
        {
            "shape_attributes": {"name": "rect", "x": x, "y": y, "width": width, "height": height},
            "region_attributes": {"kind": "dog"},
        },
    ]


def as_via(sample: AnnotatedImage, form: str = "json", regions: list[Any] | None = None) -> Path:
    """As VIA: ``json``, ``json1`` (version 1), ``project`` or ``csv``."""
    own = via_regions() if regions is None else regions
    if form == "csv":
        path = sample.root / "via.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["#filename", "file_size", "file_attributes", "region_count", "region_id", *_VIA_COLUMNS])
            for row, region in enumerate(own):
                parts = [
                    json.dumps(region[column.removeprefix("region_") if "shape" in column else column])
                    for column in _VIA_COLUMNS
                ]
                writer.writerow(["scene.png", 1, "{}", len(own), row, *parts])
        return path
    listed: Any = {str(row): region for row, region in enumerate(own)} if form == "json1" else own
    entries = {"scene.png1": {"filename": "scene.png", "size": 1, "regions": listed, "file_attributes": {}}}
    return sample.write_json("via.json", {"_via_img_metadata": entries} if form == "project" else entries)


_VIA_COLUMNS = ("region_shape_attributes", "region_attributes")


def as_panoptic(sample: AnnotatedImage) -> tuple[Path, Path]:
    """As COCO's panoptic format, with stuff around; JSON and folder of masks."""
    first, second = true_masks()
    numbers = np.where(second > 0, 70_000, np.where(first > 0, 300, 5)).astype(np.int64)
    colors = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)
    masks = sample.root / "panoptic"
    masks.mkdir()
    Image.fromarray(colors).save(masks / "scene.png")
    segments = [
        {"id": 300, "category_id": 1, "iscrowd": 0, "bbox": [20, 10, 50, 50], "area": 2500},
        {"id": 70_000, "category_id": 2, "iscrowd": 0, "bbox": list(BOX), "area": 1200},
        {"id": 5, "category_id": 9, "iscrowd": 0},
    ]
    content = {
        "images": [{"id": 3, "file_name": "scene.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"image_id": 3, "file_name": "scene.png", "segments_info": segments}],
        "categories": [
            {"id": 1, "name": "cat", "isthing": 1},
            {"id": 2, "name": "dog", "isthing": 1},
            {"id": 9, "name": "grass", "isthing": 0},
        ],
    }
    return sample.write_json("panoptic.json", content), masks


BOTH = {"cat": 1, "dog": 1}
"""What is kept of the image."""


def build_voc(sample: AnnotatedImage, out: Path, changes: dict[str, str] | None = None, **more: Any) -> BuildReport:
    return build_from_voc(as_voc(sample, **(changes or {})), out, **more)


def build_voc_boxes(sample: AnnotatedImage, out: Path, **more: Any) -> BuildReport:
    return build_from_voc(as_voc(sample, masks=False), out, split="train", **more)


def build_yolo(sample: AnnotatedImage, out: Path, lines: list[str] | None = None, **more: Any) -> BuildReport:
    as_yolo(sample, lines)
    return build_from_yolo(sample.images, out, **more)


def build_labelme(sample: AnnotatedImage, out: Path, shapes: list[Any] | None = None, **more: Any) -> BuildReport:
    return build_from_labelme(as_labelme(sample, shapes), out, images=sample.images, **more)


def build_via(form: str) -> Callable[..., BuildReport]:
    return lambda sample, out, **more: build_from_via(as_via(sample, form), sample.images, out, **more)


def build_via_regions(sample: AnnotatedImage, out: Path, regions: list[Any], **more: Any) -> BuildReport:
    return build_from_via(as_via(sample, regions=regions), sample.images, out, **more)


def build_panoptic(sample: AnnotatedImage, out: Path, **more: Any) -> BuildReport:
    return build_from_panoptic(*as_panoptic(sample), sample.images, out, **more)


def by_name(report: BuildReport) -> dict[str, Any]:
    """Foregrounds by class; one of each."""
    with ForegroundBank.open(report.path) as bank:
        return {bank.categories[foreground.label]: foreground for foreground in bank}

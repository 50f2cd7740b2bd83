"""LabelMe: images within the JSON, rotated rectangles and quadrilaterals, regions to ignore."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pixel_checks import HEIGHT, WIDTH, assert_masks, noise, polygon, rectangle, save_image

from terse_aug.bank import BuildReport, build_from_labelme

POLYGON = {"label": "a", "points": [[20, 10], [70, 10], [70, 60], [20, 60]]}
SQUARE = rectangle(20, 10, 50, 50)
TILTED = [[60, 10], [100, 40], [70, 80], [30, 50]]


def image_data(seed: int = 0) -> str:
    file = io.BytesIO()
    Image.fromarray(noise(seed)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def write(folder: Path, name: str, shapes: list[dict[str, Any]], **more: Any) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    (folder / name).write_text(json.dumps({"imagePath": "a.png", "shapes": shapes} | size | more))


def build(folder: Path, shapes: list[dict[str, Any]], **options: Any) -> BuildReport:
    write(folder, "a.json", shapes)
    save_image(folder / "a.png", noise())
    return build_from_labelme(folder, folder / "out.bank", **options)


def test_an_image_within_the_json_is_used_if_there_is_no_file(tmp_path: Path) -> None:
    for seed, part in enumerate(("x", "y")):
        write(tmp_path / "json", f"{part}/a.json", [POLYGON], imageData=image_data(seed))
    report = build_from_labelme(tmp_path / "json", tmp_path / "one.bank", image_list=["a.png"])
    assert (report.kept, report.rejected) == ({"a": 2}, {})
    for seed, part in enumerate(("x", "y")):
        report = build_from_labelme(tmp_path / "json" / part, tmp_path / f"{part}.bank")
        assert_masks(report, noise(seed), {"a": [SQUARE]})
    # A file of the same name in another folder may belong to either.
    save_image(tmp_path / "images" / "a.png", noise(5))
    report = build_from_labelme(tmp_path / "json" / "x", tmp_path / "own.bank", images=tmp_path / "images")
    assert_masks(report, noise(5), {"a": [SQUARE]})
    report = build_from_labelme(tmp_path / "json", tmp_path / "both.bank", images=tmp_path / "images", jobs=1)
    assert (report.kept, report.rejected) == ({"a": 2}, {})


def test_damaged_image_data_is_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.json", [POLYGON], imageData="AAAA")
    write(tmp_path, "b.json", [POLYGON], imageData=5)
    write(tmp_path, "c.json", [POLYGON], imageData=None)
    write(tmp_path, "good.json", [POLYGON], imageData=image_data())
    report = build_from_labelme(tmp_path, tmp_path / "out.bank")
    assert report.kept == {"a": 1}
    assert report.rejected == {"image file cannot be read": 2, "image file is missing": 1}


@pytest.mark.parametrize("kind", ["rotation", "quadrilateral", "oriented_rectangle", "rectangle"])
def test_four_corners_are_a_polygon(kind: str, tmp_path: Path) -> None:
    shape = {"label": "a", "shape_type": kind, "points": TILTED, "direction": 0.6}
    assert_masks(build(tmp_path, [shape]), noise(), {"a": [polygon(TILTED)]}, outline=True)
    report = build(tmp_path, [POLYGON, shape | {"points": TILTED[:3]}], overwrite=True)
    assert [count for reason, count in report.rejected.items() if "points" in reason] == [1]


def test_four_upright_corners_are_a_box(tmp_path: Path) -> None:
    corners = np.array(POLYGON["points"]) + np.array([[0.4, 0], [0, 0.3], [0, 0], [0, 0]])
    report = build(tmp_path, [POLYGON | {"shape_type": "rectangle", "points": corners.tolist()}], boxes="box")
    assert report.mask_sources == {"box": 1}
    assert_masks(report, noise(), {"a": [SQUARE]})


def test_regions_to_ignore_are_no_objects(tmp_path: Path) -> None:
    report = build(tmp_path, [POLYGON, POLYGON | {"label": "__ignore__"}, POLYGON | {"label": "_background_"}])
    assert_masks(report, noise(), {"a": [SQUARE]})
    assert report.rejected == {"marked as no object (__ignore__)": 1, "marked as no object (_background_)": 1}

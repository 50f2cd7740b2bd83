"""Formats without classes: SA-1B, and VIA without attributes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_samples import build_via_regions, make_sample, via_regions
from pixel_checks import HEIGHT, WIDTH, Mask, assert_masks, disk, noise, rectangle, save_image
from pycocotools import mask as coco_mask

from terse_aug.bank import build_from_sa1b
from terse_aug.bank.readers.sa1b import OTHER_NAME

FIRST, SECOND = disk(30, 30, 15), rectangle(60, 20, 30, 40)


def annotation(mask: Mask, **more: Any) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    rows, columns = np.nonzero(mask)
    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    segmentation = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
    return {"id": 5, "bbox": [float(v) for v in box], "segmentation": segmentation, "predicted_iou": 0.9} | more


def write(folder: Path, name: str, *annotations: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    image = {"image_id": 1, "width": WIDTH, "height": HEIGHT, "file_name": f"{name}.jpg"}
    (folder / f"{name}.json").write_text(json.dumps({"image": image, "annotations": annotations}))


def test_masks_of_sa1b(tmp_path: Path) -> None:
    write(tmp_path / "set", "sa_1", annotation(FIRST), annotation(SECOND))
    write(tmp_path / "set", "sa_2", annotation(FIRST))
    save_image(tmp_path / "set" / "sa_1.png", noise())  # without loss, for the comparison
    report = build_from_sa1b(tmp_path / "set", tmp_path / "out.bank", category="thing")
    assert_masks(report, noise(), {"thing": [FIRST, SECOND]})
    assert report.rejected == {"image file is missing": 1}
    (tmp_path / "set" / "sa_1.png").rename(tmp_path / "sa_1.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "sa_1.png").rename(tmp_path / "images" / "sa_1.png")
    report = build_from_sa1b(tmp_path / "set", tmp_path / "b.bank", images=tmp_path / "images", image_list=["sa_1"])
    assert_masks(report, noise(), {"object": [FIRST, SECOND]})


def test_the_image_is_the_one_that_the_json_names(tmp_path: Path) -> None:
    content = {"image": {"width": WIDTH, "height": HEIGHT, "file_name": "photo.bmp"}, "annotations": []}
    for number, (mask, sort) in enumerate(((FIRST, False), (SECOND, True))):  # annotations may come first
        content["annotations"] = [annotation(mask) | {"segments": [0] * 5000}]
        (tmp_path / f"{number}.json").write_text(json.dumps(content, sort_keys=sort))
    write(tmp_path, "sa_1", annotation(FIRST))
    (tmp_path / "sa_1.json").rename(tmp_path / "sa_2.json")  # as its image
    save_image(tmp_path / "photo.bmp", noise())
    save_image(tmp_path / "0.jpg", noise(1))
    report = build_from_sa1b(tmp_path, tmp_path / "out.bank")
    assert_masks(report, noise(), {"object": [FIRST, SECOND]})
    assert report.rejected == {"image file is missing": 1}
    save_image(tmp_path / "sa_2.png", noise())
    report = build_from_sa1b(tmp_path, tmp_path / "b.bank")
    assert_masks(report, noise(), {"object": [FIRST, SECOND, FIRST]})
    assert report.repaired[OTHER_NAME] == 1


def test_hidden_files_are_no_annotations(tmp_path: Path) -> None:
    write(tmp_path, "sa_1", annotation(FIRST))
    save_image(tmp_path / "sa_1.png", noise())
    (tmp_path / "._sa_1.json").write_bytes(b"\0\5\x16\7")
    assert build_from_sa1b(tmp_path, tmp_path / "out.bank").rejected == {}


def test_a_folder_without_json_files(tmp_path: Path) -> None:
    save_image(tmp_path / "sa_1.png", noise())
    with pytest.raises(FileNotFoundError, match="no JSON file"):
        build_from_sa1b(tmp_path, tmp_path / "out.bank")


def test_what_cannot_be_used_is_counted(tmp_path: Path) -> None:
    damaged = {"size": [HEIGHT, WIDTH], "counts": "x"}
    odd = [
        7,
        annotation(FIRST, segmentation=damaged),
        annotation(FIRST, bbox=[1]),
        annotation(FIRST, bbox=[90, 0, 9, 9]),
    ]
    write(tmp_path, "sa_1", annotation(SECOND), *odd)
    save_image(tmp_path / "sa_1.png", noise())
    (tmp_path / "coco.json").write_text('{"images": [], "annotations": []}')
    report = build_from_sa1b(tmp_path, tmp_path / "out.bank")
    assert report.kept == {"object": 1}
    assert sorted(report.rejected) == [
        "JSON file is not of SA-1B",
        "RLE is damaged",
        "box is not x, y, width, height",
        "mask and box disagree: IoU below 0.5 (min_box_agreement)",
        "no mask, and no box to make one of",
    ]


@pytest.mark.parametrize(("categories", "name"), [(None, "object"), (["cell"], "cell"), ("cell", "cell")])
def test_via_without_attributes_has_the_class_that_is_given(categories: Any, name: str, tmp_path: Path) -> None:
    sample = make_sample(tmp_path)
    regions = [region | {"region_attributes": {"note": ""}} for region in via_regions()]
    report = build_via_regions(sample, tmp_path / "out.bank", regions, boxes="box", categories=categories)
    assert report.kept == {name: 2}


def test_via_without_attributes_takes_one_class(tmp_path: Path) -> None:
    regions = [region | {"region_attributes": {}} for region in via_regions()]
    with pytest.raises(ValueError, match="expected one category"):
        build_via_regions(make_sample(tmp_path), tmp_path / "out.bank", regions, categories=["a", "b"])

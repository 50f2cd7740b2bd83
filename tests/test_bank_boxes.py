"""Masks of objects with a box only: GrabCut, shapes, and functions of the user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from annotated_samples import AnnotatedImage, make_sample
from numpy.typing import NDArray
from PIL import Image

from terse_aug import ForegroundBank
from terse_aug.bank import BoxMasks, build_from_coco
from terse_aug.bank.extract import RejectedObject
from terse_aug.bank.inputs.masks import segmentation_to_mask
from terse_aug.bank.segmenters.box import Box, box_alpha, ellipse_alpha, grabcut_mask, grabcut_quality

SIDE = 120


def photograph(seed: int = 0, shown: bool = True) -> tuple[NDArray[np.uint8], NDArray[np.bool_], Box]:
    """A textured disc on a textured background of other colours; its mask and its box."""
    generator = np.random.default_rng(seed)
    rows, columns = np.ogrid[:SIDE, :SIDE]
    mask = np.hypot(rows - 55, columns - 65) <= 30
    image = generator.normal((60, 90, 60), 15, (SIDE, SIDE, 3))
    if shown:
        image[mask] = generator.normal((190, 120, 60), 15, (int(mask.sum()), 3))
    return image.clip(0, 255).astype(np.uint8), mask, (35.0, 25.0, 61.0, 61.0)


def iou(first: NDArray[Any], second: NDArray[Any]) -> float:
    return float(((first > 0) & (second > 0)).sum() / ((first > 0) | (second > 0)).sum())


def coco(boxes: list[Any]) -> dict[str, Any]:
    """A JSON of objects with boxes only, and one with a mask."""
    objects = [{"id": 9, "image_id": 1, "category_id": 1, "segmentation": [[20, 10, 70, 10, 70, 60, 20, 60]]}]
    objects += [{"id": row, "image_id": 1, "category_id": 1, "bbox": box} for row, box in enumerate(boxes)]
    return {
        "images": [{"id": 1, "file_name": "scene.png"}],
        "annotations": objects,
        "categories": [{"id": 1, "name": "thing"}],
    }


@pytest.fixture
def sample(tmp_path: Path) -> AnnotatedImage:
    return make_sample(tmp_path)


@pytest.mark.parametrize("factor", [1, 6])
def test_grabcut_finds_what_stands_out(factor: int) -> None:
    """Also in large images, which it sees at a smaller size."""
    image, mask, (x, y, width, height) = photograph()
    image, mask = image.repeat(factor, 0).repeat(factor, 1), mask.repeat(factor, 0).repeat(factor, 1)
    box = (factor * x, factor * y, factor * width, factor * height)
    found = grabcut_mask(image, box)
    assert set(np.unique(found)) == {0, 255}
    assert iou(found, mask) > 0.95
    # The whole box has an IoU of pi / 4 with its disc.
    assert iou(box_alpha(image.shape, box), mask) < 0.8


@pytest.mark.parametrize("box", [(0.0, 0.0, 120.0, 120.0), (-5.0, -5.0, 200.0, 200.0)])
def test_grabcut_needs_surroundings(box: Box) -> None:
    with pytest.raises(RejectedObject, match="box fills the image"):
        grabcut_mask(photograph()[0], box)


def test_specks_are_removed_and_small_holes_filled() -> None:
    image, mask, box = photograph()
    image[52:57, 83:88] = image[2:7, 2:7]  # background inside the disc
    image[28:31, 36:39] = (190, 120, 60)  # a speck of the disc's colour in a corner of the box
    found = grabcut_mask(image, box)
    assert found[54, 85] == 255
    assert found[29, 37] == 0
    assert iou(found, mask) > 0.95


def test_quality_separates_good_masks_from_poor_ones() -> None:
    image, mask, box = photograph()
    good = grabcut_quality(image, mask.astype(np.uint8), box)
    half = mask.copy()
    half[:, 65:] = False
    empty = photograph(shown=False)[0]
    assert good > 0.8
    assert grabcut_quality(image, half.astype(np.uint8), box) < 0.6 * good
    assert grabcut_quality(empty, mask.astype(np.uint8), box) < 0.5 * good
    assert grabcut_quality(image, np.zeros((SIDE, SIDE), np.uint8), box) == 0


@pytest.mark.parametrize("shape", [ellipse_alpha, box_alpha])
def test_shapes_are_soft_at_the_rim_and_nothing_outside(shape: Any) -> None:
    alpha = shape((60, 80, 3), (20.0, 10.0, 40.0, 30.0))
    assert alpha.shape == (60, 80)
    assert alpha[25, 40] == 255
    row = alpha[25, 20:40].astype(int)
    assert (np.diff(row) >= 0).all()
    assert len(set(row.tolist())) >= 3
    outside = np.ones((60, 80), bool)
    outside[10:40, 20:60] = False
    assert (alpha[outside] == 0).all()
    fraction = float((alpha > 127).sum()) / (40 * 30)
    assert fraction == pytest.approx(*((0.67, 0.05) if shape is ellipse_alpha else (0.86, 0.05)))


def test_methods_and_fallbacks_are_reported(sample: AnnotatedImage, tmp_path: Path) -> None:
    content = coco([[80, 30, 30, 40], [75, 20, 50, 70]])  # the second is far too large for what it shows
    report = build_from_coco(content, sample.images, tmp_path / "a.bank", boxes=BoxMasks("grabcut", 0.7))
    assert report.mask_sources == {"mask": 1, "grabcut": 1}
    assert list(report.rejected) == ["GrabCut's mask is poor: quality below 0.7 (min_quality)"]
    shaped = BoxMasks("grabcut", 0.7, fallback="ellipse")
    report = build_from_coco(content, sample.images, tmp_path / "b.bank", boxes=shaped)
    assert report.mask_sources == {"mask": 1, "grabcut": 1, "ellipse": 1}
    assert report.rejected == {}
    with ForegroundBank.open(report.path) as bank:
        assert bank.info()["built"]["mask_sources"] == report.mask_sources
        assert bank.info()["built"]["boxes"] == "grabcut"
        soft = next(bank[row] for row in range(3) if bank[row].source == "scene.png#1")
    assert len(np.unique(soft.rgba[..., 3])) > 5
    assert "masks from" in report.summary()


def test_a_function_makes_the_masks(sample: AnnotatedImage, tmp_path: Path) -> None:
    """Also one called ``mask``, which is the name of annotated masks in the report."""
    boxes: list[Box] = []

    def mask(image: NDArray[np.uint8], box: Box) -> NDArray[Any]:
        boxes.append(tuple(box))  # type: ignore[arg-type]  # four numbers
        assert image.dtype == np.uint8
        if len(boxes) == 2:
            return np.zeros((2, 2), bool)
        if len(boxes) == 3:
            raise RuntimeError("no memory")
        alpha = np.zeros(image.shape[:2], np.uint8)
        alpha[30:70, 80:110] = 100
        return alpha if len(boxes) == 1 else alpha > 0

    given = [[80, 30, 30, 40], [0, 0, 40, 40], [1, 0, 40, 40], [80, 30, 30, 40]]
    report = build_from_coco(coco(given), sample.images, tmp_path / "a.bank", boxes=mask)
    assert report.mask_sources == {"mask": 1, "function mask": 2}
    assert report.rejected == {
        "the function returned no mask of the image's size, bool or uint8": 1,
        "function mask failed (RuntimeError)": 1,
    }
    assert boxes == [tuple(box) for box in given]
    with ForegroundBank.open(report.path) as bank:
        assert sorted(int(foreground.rgba[..., 3].max()) for foreground in bank) == [100, 255, 255]


@pytest.mark.parametrize("segmentation", [[], [[]], None, ""])
def test_an_empty_segmentation_is_no_mask(sample: AnnotatedImage, tmp_path: Path, segmentation: Any) -> None:
    content = coco([[80, 30, 30, 40]])
    content["annotations"][1]["segmentation"] = segmentation
    report = build_from_coco(content, sample.images, tmp_path / "a.bank", boxes="box")
    assert report.mask_sources == {"mask": 1, "box": 1}


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([0, 0, 0, 10], "box has no area"),
        ([200, 0, 10, 10], "box lies outside the image"),
        ([0, 0, float("nan"), 10], "box is not finite"),
        ([0, 0, 10], "box is not x, y, width, height"),
        (["a", 0, 10, 10], "box is not x, y, width, height"),
    ],
)
def test_invalid_boxes_are_rejected_with_the_reason(
    sample: AnnotatedImage, tmp_path: Path, box: list[Any], reason: str
) -> None:
    report = build_from_coco(coco([box]), sample.images, tmp_path / "a.bank", boxes="grabcut")
    assert report.rejected == {reason: 1}


@pytest.mark.parametrize("arguments", [("magic",), ("grabcut", 1.5), ("grabcut", 0.5, "magic")])
def test_unknown_methods_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        BoxMasks(*arguments)


def test_real_objects_are_found_better_than_by_shapes(data_root: Path) -> None:
    """People and animals of COCO with their masks hidden."""
    content = json.loads((data_root / "coco_mini" / "annotations" / "instances_val2017.json").read_bytes())
    images = {image["id"]: image for image in content["images"]}
    found: dict[str, list[float]] = {"grabcut": [], "ellipse": [], "box": []}
    quality = []
    objects = [entry for entry in content["annotations"] if not entry["iscrowd"] and min(entry["bbox"][2:]) >= 60]
    for entry in objects[:40]:
        name = images[entry["image_id"]]["file_name"]
        with Image.open(data_root / "coco_mini" / "val2017" / name) as file:
            whole = np.asarray(file.convert("RGB"))
        # At half their size, which is found as well and takes a quarter of the time.
        truth = segmentation_to_mask(entry["segmentation"], *whole.shape[:2])[::2, ::2]
        pixels, box = np.ascontiguousarray(whole[::2, ::2]), tuple(side / 2 for side in entry["bbox"])
        try:
            mask = grabcut_mask(pixels, box)
        except RejectedObject:
            continue
        found["grabcut"].append(iou(mask, truth))
        quality.append(grabcut_quality(pixels, mask, box))
        if len(quality) <= 5:  # the same, whatever ran before
            cv2.setRNGSeed(7)
            assert (grabcut_mask(pixels, box) == mask).all()
        found["ellipse"].append(iou(ellipse_alpha(pixels.shape, box) > 127, truth))
        found["box"].append(iou(box_alpha(pixels.shape, box) > 0, truth))
    means = {method: float(np.mean(values)) for method, values in found.items()}
    assert len(quality) >= 30
    assert means["grabcut"] > max(means["ellipse"], means["box"])
    # The purpose of quality: to find the good ones.
    assert np.corrcoef(quality, found["grabcut"])[0, 1] > 0.3
    # The default keeps nearly all good ones, and what it leaves out is worse.
    kept, overlap = np.asarray(quality) >= BoxMasks("grabcut").min_quality, np.asarray(found["grabcut"])
    assert kept[overlap > 0.7].mean() > 0.8
    assert overlap[kept].mean() > overlap[~kept].mean() + 0.1

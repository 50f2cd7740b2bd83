"""Boxes with room around their objects: GrabCut's masks are kept, and what is rejected is shown with its mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from terse_aug import ForegroundBank
from terse_aug.bank import BoxMasks, ExtractionRules, build_from_coco, read_image
from terse_aug.bank.extract import tight_box
from terse_aug.bank.segmenters.box import Box, grabcut_mask, grabcut_quality
from terse_aug.viz.images import SKY_BLUE

CENTERS = ((30, 30), (30, 90), (80, 40), (85, 95))
RADIUS = 9


def discs(folder: Path, room: int) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """A COCO JSON of boxes with ``room`` px on all sides of small discs, and the mask of the discs."""
    generator = np.random.default_rng(0)
    rows, columns = np.ogrid[:120, :130]
    mask = np.any([np.hypot(rows - row, columns - column) <= RADIUS for row, column in CENTERS], 0)
    image = generator.normal((60, 90, 60), 15, (120, 130, 3))
    image[mask] = generator.normal((190, 120, 60), 15, (int(mask.sum()), 3))
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "scene.png")
    side = 2 * (RADIUS + room) + 1
    boxes = [[column - RADIUS - room, row - RADIUS - room, side, side] for row, column in CENTERS]
    objects = [{"id": at, "image_id": 1, "category_id": 1, "bbox": box} for at, box in enumerate(boxes)]
    images = [{"id": 1, "file_name": "scene.png"}]
    return {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "disc"}]}, mask


@pytest.mark.parametrize("room", [0, 5, 9])
def test_small_objects_in_loose_boxes_are_kept(tmp_path: Path, room: int) -> None:
    """With 9 px on each side the IoU of an object and its box is a quarter."""
    content, _ = discs(tmp_path, room)
    report = build_from_coco(content, tmp_path, tmp_path / "a.bank", boxes="grabcut")
    assert report.kept == {"disc": len(CENTERS)}
    with ForegroundBank.open(report.path) as bank:
        for foreground in bank:
            assert np.count_nonzero(foreground.rgba[..., 3]) == pytest.approx(np.pi * RADIUS**2, rel=0.1)


def test_an_annotated_mask_still_has_to_agree_with_its_box(tmp_path: Path) -> None:
    content, _ = discs(tmp_path, 9)
    x, y, side, _ = content["annotations"][0]["bbox"]
    left, top, right, bottom = x + 9, y + 9, x + side - 9, y + side - 9
    content["annotations"][0]["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
    report = build_from_coco(content, tmp_path, tmp_path / "a.bank", boxes="grabcut")
    assert report.rejected == {"mask and box disagree: IoU below 0.5 (min_box_agreement)": 1}


def test_a_piece_at_one_side_of_the_box_is_worse_than_a_small_object_in_its_middle(tmp_path: Path) -> None:
    """Both leave as much of the box empty."""
    _, mask = discs(tmp_path, 0)
    image, middle = read_image(tmp_path / "scene.png"), mask.astype(np.uint8)
    middle[60:], middle[:, 60:] = 0, 0
    box: Box = (12.0, 12.0, 37.0, 37.0)
    beside: Box = (21.0, 21.0, 37.0, 37.0)
    assert grabcut_quality(image, middle, box) > 1.5 * grabcut_quality(image, middle, beside)


def test_a_mask_of_a_function_lies_in_its_box(tmp_path: Path) -> None:
    content, mask = discs(tmp_path, 9)
    report = build_from_coco(content, tmp_path, tmp_path / "a.bank", boxes=lambda image, box: within(mask, box))
    assert report.kept == {"disc": len(CENTERS)}
    with pytest.raises(ValueError, match="most of the function's mask lies outside the box"):
        build_from_coco(content, tmp_path, tmp_path / "b.bank", boxes=lambda image, box: mask & ~within(mask, box))


def within(mask: NDArray[np.bool_], box: Box) -> NDArray[np.bool_]:
    x, y, width, height = map(int, box)
    part = np.zeros_like(mask)
    part[y : y + height, x : x + width] = mask[y : y + height, x : x + width]
    return part


@pytest.mark.parametrize("changes", [{"boxes": BoxMasks("grabcut", 1.0)}, {"boxes": "grabcut", "min_area": 999}])
def test_the_sheet_shows_masks_that_were_made_and_rejected(tmp_path: Path, changes: dict[str, Any]) -> None:
    content, _ = discs(tmp_path, 5)
    for entry in content["annotations"]:
        entry["bbox"][0] += 3  # not quite in the middle, so that the quality is below 1
    rules = ExtractionRules(min_area=changes.pop("min_area", 100))
    with pytest.raises(ValueError, match="no foreground was kept"):
        build_from_coco(
            content, tmp_path, tmp_path / "a.bank", rules=rules, rejected_sheet=tmp_path / "sheets", **changes
        )
    (sheet,) = (tmp_path / "sheets").glob("01-*.png")
    with Image.open(sheet) as image:
        blue = (np.abs(np.asarray(image.convert("RGB")).astype(int) - SKY_BLUE) < 40).all(-1)
    assert blue.sum() > 200 * len(CENTERS)


def test_real_flowers_in_loose_boxes(data_root: Path) -> None:
    """Small flowers in boxes with 6 px on all sides: nearly all masks that are good have the quality that is needed."""
    qualities, overlaps = [], []
    for path in sorted((data_root / "flowers" / "trimaps").iterdir())[::6]:
        pixels = read_image(next((data_root / "flowers" / "images").glob(f"{path.stem}.*")))
        truth = (np.asarray(Image.open(path)) == 255).astype(np.float32)
        small = np.asarray(cv2.resize(pixels, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA), np.uint8)
        mask = cv2.resize(truth, small.shape[1::-1], interpolation=cv2.INTER_AREA) > 0.5
        tight = tight_box(mask.astype(np.uint8))
        height, width = mask.shape
        if tight is None or max(tight[2:]) > 32:
            continue
        left, top = max(tight[0] - 6, 0), max(tight[1] - 6, 0)
        right, bottom = min(tight[0] + tight[2] + 6, width), min(tight[1] + tight[3] + 6, height)
        box = (float(left), float(top), float(right - left), float(bottom - top))
        found = grabcut_mask(small, box)
        qualities.append(grabcut_quality(small, found, box))
        overlaps.append(float((mask & (found > 0)).sum() / (mask | (found > 0)).sum()))
    quality, good = np.array(qualities), np.array(overlaps) > 0.7
    assert good.sum() >= 8
    assert (quality[good] >= BoxMasks("grabcut").min_quality).mean() > 0.9
    assert quality[good].mean() > quality[~good].mean()

"""Parts of one object: polygons, masks, circles and rectangles of the same group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_samples import png_in_base64
from pixel_checks import HEIGHT, WIDTH, Mask, assert_masks, noise, rectangle, save_image

from terse_aug.bank import BuildReport, build_from_labelme
from terse_aug.bank.inputs.repair import repair_segmentation

LEFT, RIGHT, BELOW = rectangle(10, 10, 20, 30), rectangle(60, 15, 25, 20), rectangle(30, 60, 40, 20)


def corners(mask: Mask) -> list[list[float]]:
    """Top left and bottom right of a rectangle, as LabelMe has them."""
    rows, columns = np.nonzero(mask)
    return [[float(columns.min()), float(rows.min())], [float(columns.max()) + 1, float(rows.max()) + 1]]


def as_mask(mask: Mask, **more: Any) -> dict[str, Any]:
    (left, top), (right, bottom) = ([int(value) for value in corner] for corner in corners(mask))
    part = np.where(mask[top:bottom, left:right], np.uint8(255), np.uint8(0))
    points = [[left, top], [right - 1, bottom - 1]]
    return {"label": "a", "group_id": 1, "shape_type": "mask", "points": points, "mask": png_in_base64(part)} | more


def as_rectangle(mask: Mask, **more: Any) -> dict[str, Any]:
    return {"label": "a", "group_id": 1, "shape_type": "rectangle", "points": corners(mask)} | more


def as_polygon(mask: Mask, **more: Any) -> dict[str, Any]:
    (x, y), (right, bottom) = corners(mask)
    return {"label": "a", "group_id": 1, "points": [[x, y], [right, y], [right, bottom], [x, bottom]]} | more


def build(folder: Path, shapes: list[dict[str, Any]], **options: Any) -> BuildReport:

    save_image(folder / "a.png", noise())
    content = {"imagePath": "a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes}
    (folder / "a.json").write_text(json.dumps(content))
    return build_from_labelme(folder, folder / "out.bank", **options)


@pytest.mark.parametrize(
    "shapes",
    [
        [as_mask(LEFT), as_mask(RIGHT)],
        [as_polygon(LEFT), as_mask(RIGHT)],
        [as_mask(LEFT), as_polygon(RIGHT)],
        [as_mask(LEFT), as_rectangle(RIGHT)],
        [as_rectangle(LEFT), as_polygon(RIGHT)],
        [as_rectangle(LEFT | RIGHT), as_polygon(LEFT), as_mask(RIGHT)],  # the box of the object
        [as_mask(LEFT), as_polygon(RIGHT), as_polygon(RIGHT, points=[[1, 1], [2, 2]])],
    ],
)
def test_parts_of_any_kind_are_one_object(shapes: list[dict[str, Any]], tmp_path: Path) -> None:
    others = [as_mask(BELOW, group_id=2), as_mask(BELOW, group_id=None), as_polygon(BELOW, label="b")]
    report = build(tmp_path, [*shapes[:1], *others, *shapes[1:]])
    assert_masks(report, noise(), {"a": [LEFT | RIGHT, BELOW, BELOW], "b": [BELOW]})
    assert report.rejected == {}


def test_rectangles_of_a_group_are_one_box(tmp_path: Path) -> None:
    report = build(tmp_path, [as_rectangle(LEFT), as_rectangle(RIGHT)], boxes="box")
    assert (report.kept, report.mask_sources) == ({"a": 1}, {"box": 1})


def test_a_box_that_disagrees_with_its_parts_is_noticed(tmp_path: Path) -> None:
    everything = rectangle(0, 0, WIDTH, HEIGHT)
    report = build(tmp_path, [as_rectangle(everything), as_mask(RIGHT), as_mask(BELOW, group_id=None)])
    assert report.kept == {"a": 1}
    assert report.rejected == {"mask and box disagree: IoU below 0.5 (min_box_agreement)": 1}


def test_polygons_beside_run_lengths_are_repaired() -> None:
    repairs: set[str] = set()
    rle = {"size": [4, 4], "counts": [4, 4, 8]}
    mixed = [rle, [[0, 0], [2, 0], [2, 2]], [0, 0, 1, 1]]
    assert repair_segmentation(mixed, repairs) == [rle, [0, 0, 2, 0, 2, 2]]
    assert repair_segmentation([rle, [0, 0, 1, 1]], repairs) == [rle]
    assert len(repairs) == 2

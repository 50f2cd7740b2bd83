"""Drawn samples and contact sheets: every mark lies where the target says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from terse_aug.preview import ORIGINAL_COLOR, PASTED_COLOR, contact_sheet, draw_sample
from terse_aug.viz.text import font_of, wrap


def target_of(*boxes: list[float], **fields: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
    } | fields


def colored(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return (picture == np.array(color, np.uint8)).all(2)


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize(("pasted", "color"), [(set(), ORIGINAL_COLOR), ({0}, PASTED_COLOR)])
def test_lines_lie_on_the_box(scale: int, pasted: set[int], color: tuple[int, int, int]) -> None:
    height, width = 480 // scale, 640 // scale
    box = [160 / scale, 200 / scale, 320 / scale, 360 / scale]
    picture = draw_sample(torch.zeros(3, height, width), target_of(box), {1: ""}, pasted)
    assert picture.shape == (480, 640, 3)
    assert picture.dtype == np.uint8
    drawn = colored(picture, color)
    assert drawn[200:360, [160, 319]].all()
    assert drawn[[200, 359], 160:320].all()
    outside = drawn.copy()
    outside[200:360, 160:320] = False
    outside[180:200, 160:180] = False  # the text stands there
    assert not outside.any()
    assert not drawn[204:356, 164:316].any()


def test_mask_is_tinted_and_keypoints_are_dots() -> None:
    mask = torch.zeros(1, 480, 640, dtype=torch.bool)
    mask[0, 250:300, 200:300] = True
    keypoints = torch.tensor([[[400.0, 240.0, 2.0], [440.0, 240.0, 1.0], [480.0, 240.0, 0.0]]])
    target = target_of([160, 200, 560, 360], masks=mask, keypoints=keypoints)
    picture = draw_sample(torch.zeros(3, 480, 640), target, {1: "person"})
    inside = picture[252:298, 202:298].reshape(-1, 3)
    assert (inside == inside[0]).all()
    assert 0 < inside[0].max() < 64
    assert not picture[310:350, 202:298].any()
    assert tuple(picture[240, 400]) == ORIGINAL_COLOR
    assert not picture[240, 440].any()  # a ring is empty
    assert colored(picture[232:249, 432:449], ORIGINAL_COLOR).any()
    assert not picture[232:249, 472:489].any()


def test_pictures_are_scaled_into_bounds_and_bad_boxes_passed_over() -> None:
    boxes = [[0, 0, float("nan"), 5], [3, 3, 3, 9], [50, 50, 60, 60], [-9, -9, -1, -1], [0, 0, 1e9, 1e9]]
    picture = draw_sample(torch.rand(3, 20, 10), target_of(*boxes), {})
    assert picture.shape == (640, 320, 3)
    assert draw_sample(torch.rand(3, 300, 3000), target_of(), {}).shape == (102, 1024, 3)


def test_drawing_leaves_its_input_alone() -> None:
    image = torch.full((3, 640, 640), 0.5)
    draw_sample(image, target_of([10, 10, 90, 90]), {1: "a"})
    assert (image == 0.5).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pasted_rows": {1}}, r"below 1, got \[1\]"),
        ({"image": torch.zeros(3, 9, 9, dtype=torch.uint8)}, "float tensor"),
    ],
)
def test_drawing_refuses(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"image": torch.zeros(3, 9, 9), "target": target_of([1, 1, 5, 5]), "classes": {}}
    with pytest.raises(ValueError, match=message):
        draw_sample(**(arguments | changes))


def test_contact_sheet_places_pictures_in_rows() -> None:
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    pictures = [np.full((20, 30, 3), color, np.uint8) for color in colors]
    sheet = contact_sheet(pictures, 2, ["one", "two", "three"], title="title", cell_width=40)
    corners = [tuple(np.argwhere(colored(sheet, color))[0]) for color in colors]
    assert [int(colored(sheet, color).sum()) for color in colors] == [600, 600, 600]
    assert corners[0][0] == corners[1][0] < corners[2][0]
    assert corners[0][1] == corners[2][1] == corners[1][1] - 56
    for bad in (([], 2), (pictures, 0), (pictures, 2, ["one"]), ([np.zeros((4, 4))], 1)):
        with pytest.raises(ValueError, match="expected"):
            contact_sheet(*bad)


def test_wrapped_lines_fit_and_keep_every_character() -> None:
    text = "some words and one_that_is_far_too_long_for_a_line_of_its_own\nnext \udce9 line"
    lines = wrap(text, 15, 120)
    assert all(font_of(15).getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace("\udce9", "\\udce9").replace(" ", "").replace("\n", "")

"""Drawn samples and contact sheets: everything is drawn where the target has it."""

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


def has_color(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return (image == np.array(color, np.uint8)).all(2)


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize(("pasted", "color"), [(set(), ORIGINAL_COLOR), ({0}, PASTED_COLOR)])
def test_lines_lie_on_the_box(scale: int, pasted: set[int], color: tuple[int, int, int]) -> None:
    box = [160 / scale, 200 / scale, 320 / scale, 360 / scale]
    drawn = draw_sample(torch.zeros(3, 480 // scale, 640 // scale), target_of(box), {1: ""}, pasted)
    assert drawn.shape == (480, 640, 3)
    assert drawn.dtype == np.uint8
    lines = has_color(drawn, color)
    assert lines[200:360, [160, 319]].all()
    assert lines[[200, 359], 160:320].all()
    assert not lines[204:356, 164:316].any()
    lines[200:360, 160:320] = False
    lines[180:200, 160:180] = False  # the label
    assert not lines.any()


def test_mask_is_tinted_and_keypoints_are_dots() -> None:
    mask = torch.zeros(1, 480, 640, dtype=torch.bool)
    mask[0, 250:300, 200:300] = True
    keypoints = torch.tensor([[[400.0, 240.0, 2.0], [440.0, 240.0, 1.0], [480.0, 240.0, 0.0], [torch.nan, 1, 2]]])
    target = target_of([160, 200, 560, 360], masks=mask, keypoints=keypoints)
    drawn = draw_sample(torch.zeros(3, 480, 640), target, {1: "person"})
    assert (has_color(drawn, ORIGINAL_COLOR)[[250, 299], 200:300]).all()  # the outline
    inside = drawn[252:298, 202:298].reshape(-1, 3)
    assert (inside == inside[0]).all()
    assert 0 < inside[0].max() < 64
    assert not drawn[310:350, 202:298].any()
    assert tuple(drawn[240, 400]) == ORIGINAL_COLOR
    assert not drawn[240, 440].any()  # the dark center of a hidden keypoint
    assert has_color(drawn[232:249, 432:449], ORIGINAL_COLOR).any()
    assert not drawn[232:249, 472:489].any()


def test_size_is_bounded_and_bad_boxes_are_skipped() -> None:
    boxes = [[0, 0, float("nan"), 5], [3, 3, 3, 9], [50, 50, 60, 60], [-9, -9, -1, -1]]
    image = torch.rand(3, 20, 10)
    drawn = draw_sample(image, target_of(*boxes), {})
    assert drawn.shape == (640, 320, 3)
    assert np.array_equal(drawn, draw_sample(image, target_of(), {}))
    assert has_color(draw_sample(image, target_of([0, 0, 1e9, 1e9]), {}), ORIGINAL_COLOR)[639].all()
    assert draw_sample(torch.rand(3, 300, 3000), target_of(), {}).shape == (102, 1024, 3)


def test_labels_of_one_box_do_not_cover_each_other() -> None:
    image, box = torch.zeros(3, 480, 640), [100.0, 100.0, 400.0, 300.0]

    def labelled_area(count: int, name: str) -> int:
        return int(has_color(draw_sample(image, target_of(*[box] * count), {1: name}), ORIGINAL_COLOR).sum())

    outside = [labelled_area(count, "person") - labelled_area(count, "") for count in (1, 2)]
    assert outside[1] == 2 * outside[0] > 0


def test_levels_are_drawn_like_floats() -> None:
    levels = torch.arange(3 * 12 * 16, dtype=torch.uint8).view(3, 12, 16)
    drawn = [draw_sample(image, target_of([1, 1, 9, 9]), {1: "cat"}) for image in (levels, levels / 255)]
    assert np.array_equal(*drawn)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pasted_rows": {1}}, r"below 1, got \[1\]"),
        ({"image": torch.zeros(3, 9, 9, dtype=torch.int32)}, "float or uint8 tensor"),
    ],
)
def test_drawing_refuses(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"image": torch.zeros(3, 9, 9), "target": target_of([1, 1, 5, 5]), "classes": {}}
    with pytest.raises(ValueError, match=message):
        draw_sample(**(arguments | changes))


def test_contact_sheet_places_images_in_rows() -> None:
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    images = [np.full((20, 30, 3), color, np.uint8) for color in colors]
    sheet = contact_sheet(images, 2, ["one", "two", "three"], title="title", cell_width=40)
    corners = [tuple(np.argwhere(has_color(sheet, color))[0]) for color in colors]
    assert [int(has_color(sheet, color).sum()) for color in colors] == [600, 600, 600]
    assert corners[0][0] == corners[1][0] < corners[2][0]
    assert corners[0][1] == corners[2][1] == corners[1][1] - 56
    for bad in (([], 2), (images, 0), (images, 2, ["one"]), ([np.zeros((4, 4))], 1)):
        with pytest.raises(ValueError, match="expected"):
            contact_sheet(*bad)


def test_wrapped_lines_fit_and_keep_every_character() -> None:
    text = "some words and one_that_is_far_too_long_for_a_line_of_its_own\nnext \udce9 line"
    lines = wrap(text, 15, 120)
    assert all(font_of(15).getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace("\udce9", "\\udce9").replace(" ", "").replace("\n", "")

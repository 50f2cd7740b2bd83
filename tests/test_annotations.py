"""Validation of samples: invalid ones are refused with a clear message, and boxes are repaired."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terse_aug.structures.annotations import OBJECT_FIELDS, check_samples, repair_boxes, take_objects

HEIGHT, WIDTH = 6, 8


def sample_target(count: int = 2) -> dict[str, Any]:
    """A target with every field, and one that terse-aug does not know."""
    return {
        "boxes": torch.tensor([[1.0, 1.0, 4.0, 5.0]] * count).view(-1, 4),
        "labels": torch.arange(count),
        "masks": torch.ones(count, HEIGHT, WIDTH, dtype=torch.bool),
        "keypoints": torch.ones(count, 5, 3),
        "ids": torch.arange(count) + 10,
        "area": torch.full((count,), 12.0),
        "iscrowd": torch.zeros(count, dtype=torch.long),
        "image_id": torch.tensor(7),
    }


def image() -> torch.Tensor:
    return torch.rand(3, HEIGHT, WIDTH)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_sample_as_documented_passes(count: int) -> None:
    full = sample_target(count)
    plain = {name: full[name] for name in ("boxes", "labels")}
    bytewise = full | {"masks": full["masks"].byte(), "ids": full["ids"].int(), "boxes": full["boxes"].double()}
    check_samples([image(), image().double(), image()], [full, plain, bytewise])
    check_samples([], [])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.rand(1, HEIGHT, WIDTH), r"image 1: expected a tensor \[3, H, W\], got \[1, 6, 8\]"),
        (torch.rand(3, HEIGHT), r"image 1: expected a tensor \[3, H, W\], got \[3, 6\]"),
        (torch.rand(1, 3, HEIGHT, WIDTH), r"image 1: expected a tensor \[3, H, W\], got \[1, 3, 6, 8\]"),
        (torch.rand(3, 0, WIDTH), r"image 1: expected a tensor \[3, H, W\], got \[3, 0, 8\]"),
        ("cat.jpg", r"image 1: expected a tensor \[3, H, W\], got str"),
        (
            torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8),
            "image 1: expected torch.float32 on cpu, as the first image is, got torch.uint8 on cpu",
        ),
        (
            torch.zeros(3, HEIGHT, WIDTH, dtype=torch.int32),
            "image 1: expected a float or uint8 tensor, got torch.int32",
        ),
    ],
)
def test_a_bad_image_is_refused(bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_samples([image(), bad], [sample_target(), sample_target()])


def test_targets_are_as_many_dictionaries_as_images() -> None:
    with pytest.raises(ValueError, match="expected one target per image, got 1 images and 2 targets"):
        check_samples([image()], [sample_target()] * 2)
    for target in (None, [1, 2], torch.zeros(3, 4)):
        with pytest.raises(ValueError, match=f"target 0: expected a dictionary, got {type(target).__name__}"):
            check_samples([image()], [target])  # type: ignore[list-item]  # wrong on purpose


WRONG_SHAPES = [
    ("boxes", (2, 5), "[2, 4]"),
    ("boxes", (4,), "[4, 4]"),
    ("boxes", (2, 1, 4), "[2, 4]"),
    ("boxes", (), "[N, 4]"),
    ("labels", (3,), "[2]"),
    ("labels", (2, 1), "[2]"),
    ("masks", (2, HEIGHT, WIDTH + 1), "[2, 6, 8]"),
    ("masks", (2, 1, HEIGHT, WIDTH), "[2, 6, 8]"),
    ("masks", (1, HEIGHT, WIDTH), "[2, 6, 8]"),
    ("keypoints", (2, 5, 2), "[2, k, 3]"),
    ("keypoints", (1, 5, 3), "[2, k, 3]"),
    ("keypoints", (2, 15), "[2, k, 3]"),
    ("ids", (1,), "[2]"),
    ("area", (2, 1), "[2]"),
    ("iscrowd", (), "[2]"),
]
WRONG_TYPES = [
    ("boxes", torch.long, "a float"),
    ("labels", torch.float32, "an integer"),
    ("labels", torch.bool, "an integer"),
    ("masks", torch.float32, "a bool or uint8"),
    ("masks", torch.long, "a bool or uint8"),
    ("keypoints", torch.long, "a float"),
    ("ids", torch.float32, "a signed integer"),
    ("ids", torch.uint8, "a signed integer"),
]


def wrong_fields() -> Iterator[tuple[dict[str, Any], str]]:
    """A change of a valid target, and the message that refuses it."""
    good = sample_target()
    for name, shape, expected in WRONG_SHAPES:
        value = torch.zeros(shape, dtype=good[name].dtype)
        yield {name: value}, f"expected {name} of shape {expected}, got {list(shape)}"
    for name, dtype, kind in WRONG_TYPES:
        yield {name: good[name].to(dtype)}, f"expected {name} to be {kind} tensor, got {dtype}"
    for name in OBJECT_FIELDS:
        for value in (good[name].tolist(), None):
            yield {name: value}, f"expected {name} to be a tensor, got {type(value).__name__}"
        yield {name: good[name].to("meta")}, f"{name} is on meta, its image on cpu; move both"


@pytest.mark.parametrize(("change", "message"), list(wrong_fields()))
def test_a_wrong_field_is_refused_by_name_with_what_was_expected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^target 0: {re.escape(message)}"):
        check_samples([image()], [sample_target() | change])


@pytest.mark.parametrize("missing", ["boxes", "labels"])
def test_a_missing_field_is_named_with_what_is_there(missing: str) -> None:
    target = {name: value for name, value in sample_target().items() if name in {"boxes", "labels"} - {missing}}
    with pytest.raises(ValueError, match=rf"target 0: the field '{missing}' is missing; it has \['\w+'\]"):
        check_samples([image()], [target])


def test_valid_boxes_return_the_same_target() -> None:
    for target in (sample_target(3), sample_target(0)):
        target["boxes"] = target["boxes"] * 0 + torch.tensor([0.0, 0.0, WIDTH, HEIGHT])
        repaired, dropped = repair_boxes(target, HEIGHT, WIDTH)
        assert repaired is target
        assert not dropped


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((3, 1, 3, 4), "box_degenerate"),
        ((1, 4, 3, 4), "box_degenerate"),
        ((5, 1, 3, 4), "box_degenerate"),
        ((math.nan, 1, 3, 4), "box_degenerate"),
        ((1, 1, 3, math.nan), "box_degenerate"),
        ((1, 1, math.inf, 4), "box_degenerate"),
        ((-math.inf, 1, 3, 4), "box_degenerate"),
        ((-math.inf, 1, math.inf, 4), "box_degenerate"),
        ((-5, 1, 0, 4), "box_outside"),
        ((1, -5, 3, 0), "box_outside"),
        ((WIDTH, 1, WIDTH + 3, 4), "box_outside"),
        ((1, HEIGHT, 3, HEIGHT + 2), "box_outside"),
    ],
)
def test_a_box_without_a_pixel_is_left_out_and_counted(box: tuple[float, ...], reason: str) -> None:
    target = sample_target(3)
    target["boxes"][1] = torch.tensor(box)
    repaired, dropped = repair_boxes(target, HEIGHT, WIDTH)
    assert dropped == {reason: 1}
    for name in OBJECT_FIELDS:
        assert torch.equal(repaired[name], target[name][[0, 2]])


def test_a_box_that_leaves_the_frame_is_clipped_and_kept() -> None:
    target = sample_target(2)
    target["boxes"][1] = torch.tensor([-3.0, -2.0, WIDTH + 5.0, HEIGHT + 0.5])
    repaired, dropped = repair_boxes(target, HEIGHT, WIDTH)
    assert repaired["boxes"].tolist() == [target["boxes"][0].tolist(), [0, 0, WIDTH, HEIGHT]]
    assert dropped == {"box_clipped": 1}
    target["boxes"][1] = torch.tensor([-0.9, 0.0, WIDTH + 1.0, HEIGHT])
    assert repair_boxes(target, HEIGHT, WIDTH)[1] == {}  # rounding
    assert all(repaired[name] is target[name] or torch.equal(repaired[name], target[name]) for name in [*target][1:])


sides = st.sampled_from([-math.inf, math.inf, math.nan]) | st.floats(-10, 15, width=32)
sound_boxes = st.tuples(*[st.integers(-8, 15)] * 2, *[st.integers(1, 20)] * 2).map(
    lambda box: (box[0] / 2, box[1] / 2, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
)


@settings(max_examples=100, deadline=None)
@given(
    boxes=st.lists(st.tuples(sides, sides, sides, sides) | sound_boxes, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_nothing_is_lost_but_what_is_counted_and_the_rest_lies_in_the_frame(
    boxes: list[tuple[float, ...]], dtype: torch.dtype
) -> None:
    target = sample_target(len(boxes))
    target["boxes"] = torch.tensor(boxes, dtype=dtype).view(-1, 4)
    before = copy.deepcopy(target)
    repaired, dropped = repair_boxes(target, HEIGHT, WIDTH)
    lost = sum(count for reason, count in dropped.items() if reason != "box_clipped")
    assert len(repaired["boxes"]) + lost == len(boxes)
    limits = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT], dtype=dtype)
    assert ((repaired["boxes"] >= 0) & (repaired["boxes"] <= limits)).all()
    assert (repaired["boxes"][:, 2:] > repaired["boxes"][:, :2]).all()
    assert repaired["boxes"].dtype == dtype
    kept = (repaired["ids"] - 10).tolist()
    assert kept == sorted(kept)
    for name in OBJECT_FIELDS:
        torch.testing.assert_close(target[name], before[name], rtol=0, atol=0, equal_nan=True)
        if name != "boxes":
            assert torch.equal(repaired[name], target[name][kept])
    for box, index in zip(repaired["boxes"], kept, strict=True):
        assert torch.equal(box, torch.minimum(target["boxes"][index].clamp(min=0), limits))


def test_taking_objects_keeps_the_requested_order_and_passes_other_entries_through() -> None:
    target = sample_target(4)
    taken = take_objects(target, [2, 0])
    assert taken["ids"].tolist() == [12, 10]
    assert taken["image_id"] is target["image_id"]
    assert [len(taken[name]) for name in OBJECT_FIELDS] == [2] * len(OBJECT_FIELDS)
    assert [taken[name].shape[1:] for name in OBJECT_FIELDS] == [target[name].shape[1:] for name in OBJECT_FIELDS]
    assert len(take_objects(target, [])["boxes"]) == 0

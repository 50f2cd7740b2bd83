"""Labels follow the pixels: properties, and agreement with the reference implementation."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from terse_aug.compositing.label_correction import Correction, PastedObject, correct_target
from terse_aug.compositing.mask_extents import extent_of
from terse_aug.compositing.mask_stack import extent_in, extents_at_once
from terse_aug.compositing.patches import Rectangle
from terse_aug.structures.annotations import OBJECT_FIELDS, Target

KEYPOINTS = 3
many = settings(max_examples=40, deadline=None)


@dataclass
class Case:
    """Arguments of ``correct_target``."""

    target: Target
    size: tuple[int, int]
    pastes: list[PastedObject]
    min_visibility: float

    def correct(self, **changes: Any) -> Correction:
        case = replace(self, **changes)
        return correct_target(case.target, case.size, case.pastes, case.min_visibility)

    def covers(self) -> list[np.ndarray]:
        """What each paste shows over the whole image."""
        return [full_mask(paste, self.size) for paste in self.pastes]


def full_mask(paste: PastedObject, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    where = paste.rectangle
    if not where.empty:
        mask[where.top : where.bottom, where.left : where.right] = paste.mask
    return mask


def masks(draw: st.DrawFn, shape: tuple[int, ...]) -> np.ndarray:
    """Any mask, as the bits of one number: drawn much faster than an array of booleans."""
    pixels = int(np.prod(shape))
    bits = draw(st.integers(0, 2**pixels - 1))
    return np.array([bits >> place & 1 for place in range(pixels)], dtype=bool).reshape(shape)


def points(draw: st.DrawFn, size: tuple[int, int], count: int, outside: float) -> torch.Tensor:
    place = st.integers(0, 4 * max(size)).map(lambda quarter: quarter / 4 - outside)
    rows = draw(st.lists(st.tuples(place, place, st.sampled_from([0, 1, 2, 2])), min_size=count, max_size=count))
    return torch.tensor(rows, dtype=torch.float32).view(count, 3)


@st.composite
def targets(draw: st.DrawFn, size: tuple[int, int], with_masks: bool) -> Target:
    """Objects with whatever fields: a mask and its bounding box, or a box of any quarter pixels."""
    height, width = size
    count = draw(st.integers(0, 4))
    boxes = []
    everything = np.zeros((count, height, width), dtype=bool)
    for row in range(count):
        if with_masks:
            everything[row] = masks(draw, size)
            everything[row, draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = True
            rows, columns = np.nonzero(everything[row])
            boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        else:
            left = draw(st.integers(0, 4 * (width - 1))) / 4
            top = draw(st.integers(0, 4 * (height - 1))) / 4
            right = draw(st.integers(int(4 * left) + 4, 4 * width)) / 4
            bottom = draw(st.integers(int(4 * top) + 4, 4 * height)) / 4
            boxes.append([left, top, right, bottom])
    target: Target = {
        "boxes": torch.tensor(np.array(boxes), dtype=draw(st.sampled_from([torch.float32, torch.float64]))).view(-1, 4),
        "labels": torch.arange(count, dtype=draw(st.sampled_from([torch.int64, torch.int32]))) + 1,
        "image_id": torch.tensor(5),
    }
    optional: Target = {
        "ids": torch.arange(count, dtype=draw(st.sampled_from([torch.int64, torch.int32]))) + draw(st.integers(-4, 9)),
        "area": (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1).float(),
        "iscrowd": (torch.arange(count) % 2).to(draw(st.sampled_from([torch.int64, torch.bool, torch.uint8]))),
    }
    target |= {name: value for name, value in optional.items() if draw(st.booleans())}
    if with_masks:
        target["masks"] = torch.tensor(everything).to(draw(st.sampled_from([torch.bool, torch.uint8])))
    if draw(st.booleans()):
        rows = [points(draw, size, KEYPOINTS, 0.0) for _ in range(count)]
        target["keypoints"] = torch.stack(rows) if rows else torch.zeros(0, KEYPOINTS, 3)
    return target


@st.composite
def pasted_objects(draw: st.DrawFn, size: tuple[int, int], index: int) -> PastedObject:
    """Any mask in any rectangle, sometimes an empty one; a decoy now and then."""
    top, bottom = sorted((draw(st.integers(0, size[0])), draw(st.integers(0, size[0]))))
    left, right = sorted((draw(st.integers(0, size[1])), draw(st.integers(0, size[1]))))
    mask = np.array(masks(draw, (bottom - top, right - left)))
    hidden_by_the_frame = draw(st.sampled_from([0.0, 0.0, 0.5, 7.25]))
    label = draw(st.sampled_from([100 + index, 100 + index, None]))
    keypoints = draw(st.none() | st.builds(lambda: points(draw, size, KEYPOINTS, 1.0)))
    return PastedObject(
        Rectangle(top, left, bottom, right), mask, label, float(mask.sum()) + hidden_by_the_frame, keypoints
    )


@st.composite
def cases(draw: st.DrawFn, with_masks: bool | None = None, least: int = 0, most: int = 4) -> Case:
    size = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    target = draw(targets(size, draw(st.booleans()) if with_masks is None else with_masks))
    pastes = [draw(pasted_objects(size, index)) for index in range(draw(st.integers(least, most)))]
    return Case(target, size, pastes, draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1)))


def expected_of(case: Case) -> list[reference.Thing]:
    """What the reference implementation makes of a case."""
    things, target = [], case.target
    for row, box in enumerate(target["boxes"].tolist()):
        mask = target["masks"][row].numpy().astype(bool) if "masks" in target else None
        keypoints = target["keypoints"][row].tolist() if "keypoints" in target else None
        area = float(target["area"][row]) if "area" in target else None
        things.append(reference.Thing(box, int(target["labels"][row]), mask, keypoints, area))
    covers = [
        reference.Cover(
            mask, paste.label, paste.full_area, None if paste.keypoints is None else paste.keypoints.tolist()
        )
        for paste, mask in zip(case.pastes, case.covers(), strict=True)
    ]
    return reference.correct(things, case.size, covers, case.min_visibility, "masks" in target)


def originals(case: Case, correction: Correction) -> list[int]:
    """Which original object each of the first rows of the outcome is."""
    pasted = sum(row is not None for row in correction.rows)
    labels = correction.target["labels"].tolist()
    return [label - 1 for label in labels[: len(labels) - pasted]]


@settings(many, max_examples=200)
@given(case=cases())
def test_agrees_with_the_reference(case: Case) -> None:
    """Which objects stay, in which order, with which boxes, masks, keypoints and areas; what was dropped."""
    correction, expected = case.correct(), expected_of(case)
    actual = correction.target
    assert actual["labels"].tolist() == [thing.label for thing in expected]
    for row, thing in enumerate(expected):
        assert actual["boxes"][row].tolist() == thing.box
        if "masks" in actual:
            np.testing.assert_array_equal(actual["masks"][row].numpy().astype(bool), thing.mask)
        if "keypoints" in actual:
            assert actual["keypoints"][row].tolist() == (thing.keypoints or [[0, 0, 0]] * KEYPOINTS)
        if "area" in actual:
            assert float(actual["area"][row]) == pytest.approx(thing.area, rel=1e-6)
    count = len(case.target["boxes"])
    shown = {thing.origin: row for row, thing in enumerate(expected) if thing.pasted}
    kept = sum(not thing.pasted for thing in expected)
    labelled = sum(paste.label is not None for paste in case.pastes)
    assert correction.rows == [shown.get(index) for index in range(len(case.pastes))]
    dropped = {"occluded": count - kept, "paste_hidden": labelled - len(shown)}
    assert correction.dropped == {reason: number for reason, number in dropped.items() if number}


@many
@given(case=cases())
def test_number_order_and_types_of_the_fields_agree(case: Case) -> None:
    correction = case.correct()
    target = correction.target
    assert list(target) == list(case.target)
    assert target["image_id"] is case.target["image_id"]
    for name in OBJECT_FIELDS:
        if name in target:
            assert len(target[name]) == len(target["boxes"])
            assert target[name].shape[1:] == case.target[name].shape[1:]
            assert target[name].dtype == case.target[name].dtype
    rows = [row for row in correction.rows if row is not None]
    count = len(target["boxes"])
    assert rows == list(range(count - len(rows), count))
    labels = [paste.label for paste, row in zip(case.pastes, correction.rows, strict=True) if row is not None]
    assert target["labels"].tolist()[count - len(rows) :] == labels
    assert originals(case, correction) == sorted(originals(case, correction))
    if "iscrowd" in target:
        kept = case.target["iscrowd"][originals(case, correction)]
        assert torch.equal(target["iscrowd"], torch.cat([kept, kept.new_zeros(len(rows))]))


@many
@given(case=cases())
def test_the_input_is_left_untouched(case: Case) -> None:
    before = copy.deepcopy(case)
    case.correct()
    case.correct(pastes=[replace(paste, label=None) for paste in case.pastes])
    assert list(case.target) == list(before.target)
    assert all(torch.equal(case.target[name], before.target[name]) for name in before.target)
    for paste, earlier in zip(case.pastes, before.pastes, strict=True):
        assert np.array_equal(paste.mask, earlier.mask)
        assert paste.keypoints is None or torch.equal(paste.keypoints, earlier.keypoints)


@many
@given(case=cases(least=1), lowest=st.integers(-5, 5))
def test_ids_are_unique_and_pasted_ones_are_negative(case: Case, lowest: int) -> None:
    case.target["ids"] = torch.arange(len(case.target["boxes"])) + lowest
    correction = case.correct()
    ids = correction.target["ids"].tolist()
    assert len(set(ids)) == len(ids)
    kept = originals(case, correction)
    assert ids[: len(kept)] == case.target["ids"][kept].tolist()
    assert all(number < 0 for number in ids[len(kept) :])


@given(position=st.tuples(st.floats(0, 8), st.floats(0, 6)), side=st.floats(0.001, 0.9))
@settings(many)
@example(position=(7.999, 5.999), side=0.9)
def test_a_box_smaller_than_a_pixel_is_kept_until_it_is_covered(position: tuple[float, float], side: float) -> None:
    left, top = position
    box = torch.tensor([[left, top, left + side, top + side]])
    target = {"boxes": box, "labels": torch.tensor([1])}
    everywhere = PastedObject(Rectangle(0, 0, 6, 8), np.ones((6, 8), np.bool_), None, 0.0)
    assert torch.equal(correct_target(target, (6, 8), [], 0.25).target["boxes"], box)
    assert len(correct_target(target, (6, 8), [everywhere], 0.0).target["boxes"]) == 0


def test_an_object_whose_mask_is_empty_counts_as_filling_its_box() -> None:
    """As one without a mask does: three of its boxes are covered wholly, by half and not at all."""
    target = {
        "boxes": torch.tensor([[1.0, 1.0, 5.0, 5.0], [4.0, 1.0, 8.0, 5.0], [6.0, 1.0, 10.0, 5.0]]),
        "labels": torch.tensor([1, 2, 3]),
        "area": torch.tensor([100.0, 100.0, 100.0]),
    }
    cover = PastedObject(Rectangle(0, 0, 8, 6), np.ones((8, 6), np.bool_), 4, 48.0)
    for each in (target, target | {"masks": torch.zeros(3, 8, 12, dtype=torch.bool)}):
        correction = correct_target(each, (8, 12), [cover], 0.25)
        assert correction.target["labels"].tolist() == [2, 3, 4]
        assert correction.target["boxes"][:2].tolist() == [[6, 1, 8, 5], [6, 1, 10, 5]]
        assert correction.target["area"].tolist() == [50, 100, 48]
        assert correction.dropped == {"occluded": 1}


@many
@given(case=cases(with_masks=True))
def test_extents_are_the_same_for_a_device_as_on_the_cpu(case: Case) -> None:
    everywhere = Rectangle(0, 0, *case.size)
    found = [extent_in(case.size, own) for own in extents_at_once(case.target["masks"]).tolist()]
    assert found == [extent_of(mask, everywhere) for mask in case.target["masks"].numpy()]


def test_a_mask_outside_its_box_counts_with_all_its_pixels() -> None:
    target = {
        "boxes": torch.tensor([[1.0, 1.0, 3.0, 3.0], [1.0, 1.0, 3.0, 3.0]]),
        "labels": torch.tensor([1, 2]),
        "masks": torch.zeros(2, 9, 12, dtype=torch.bool),
    }
    target["masks"][0, 1:8, 1:11] = True
    target["masks"][1, 6:8, 8:11] = True
    cover = PastedObject(Rectangle(0, 0, 9, 4), np.ones((9, 4), np.bool_), None, 36.0)
    corrected = correct_target(target, (9, 12), [cover], 0.25).target
    assert corrected["boxes"].tolist() == [[4, 1, 11, 8], [1, 1, 3, 3]]
    assert torch.equal(corrected["masks"][0, :, 4:], target["masks"][0, :, 4:])
    assert torch.equal(corrected["masks"][1], target["masks"][1])

"""Batches whose boxes, fields or labels are in another form than Terse takes: refused with what to do."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import every_image, make_bank, make_batch, make_detector, make_foreground
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_convert

from terse_aug import ForegroundBank, PixelFormat, Terse, TerseWarning
from terse_aug.structures.box_format import check_box_format

SIZE = (120, 160)
CONVERSIONS = {"xywh": "box_convert(boxes, 'xywh', 'xyxy')", "cxcywh": "box_convert(boxes, 'cxcywh', 'xyxy')"}


def scattered(seed: int, count: int = 4, images: int = 2) -> list[Tensor]:
    """Boxes XYXY all over images of ``SIZE``."""
    generator = torch.Generator().manual_seed(seed)
    limits = torch.tensor([SIZE[1], SIZE[0]])
    sides = 5 + torch.rand(images, count, 2, generator=generator) * 25
    corners = torch.rand(images, count, 2, generator=generator) * (limits - sides)
    return list(torch.cat([corners, corners + sides], 2))


def batch_with(boxes: list[Tensor]) -> tuple[list[Tensor], list[dict[str, Any]]]:
    images = [torch.rand(3, *SIZE) for _ in boxes]
    return images, [{"boxes": own, "labels": torch.ones(len(own), dtype=torch.int64)} for own in boxes]


@pytest.mark.parametrize("relative", [False, True], ids=["pixels", "relative"])
@pytest.mark.parametrize("kind", ["xyxy", "xywh", "cxcywh"])
def test_boxes_in_another_format_are_refused_with_their_conversion(
    tiny_bank: ForegroundBank, kind: str, relative: bool
) -> None:
    terse = Terse(tiny_bank, paste=every_image(), seed=0)
    scale = torch.tensor([SIZE[1], SIZE[0]] * 2) if relative else torch.ones(4)
    for seed in range(10):
        boxes = [box_convert(own, "xyxy", kind) / scale for own in scattered(seed)]
        if kind == "xyxy" and not relative:
            terse(*batch_with(boxes))
            continue
        with pytest.raises(ValueError, match="expected boxes as XYXY in pixels") as caught:
            terse(*batch_with(boxes))
        assert CONVERSIONS.get(kind, "boxes * torch.tensor") in str(caught.value)
        assert ("[width, height, width, height]" in str(caught.value)) == relative
    assert terse.metrics()["calls"] == (10 if kind == "xyxy" and not relative else 0)


def test_two_relative_boxes_in_a_worker_are_enough(tiny_bank: ForegroundBank) -> None:
    images, targets = batch_with([torch.tensor([[0.5, 0.5, 0.25, 0.5], [0.2, 0.3, 0.1, 0.1]])])
    with pytest.raises(ValueError, match=r"between 0 and 1, .*'cxcywh'"):
        Terse(tiny_bank, paste=every_image()).composer()(images[0], targets[0], 0)


@pytest.mark.parametrize("box", [[0.5, 0.5, 0.25, 0.5], [0.5, 0.5, 1.0, 1.0], [0.3, 0.0, 1.0, 0.8]])
def test_a_single_box_that_seems_relative_is_warned_about(tiny_bank: ForegroundBank, box: list[float]) -> None:
    images, targets = batch_with([torch.tensor([box])])
    for compose in (Terse(tiny_bank, paste=every_image()), composed_in_a_worker(tiny_bank)):
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            compose(images, targets)
        assert sum("between 0 and 1, relative to the image" in str(own.message) for own in given) == 1


@st.composite
def clipped_boxes(draw: st.DrawFn) -> list[np.ndarray]:
    """Objects from two pixels on, anywhere about two images, as a crop leaves them: slivers and empty boxes, too.

    Further empty boxes are in the first pixel: placeholders.
    """
    found = []
    for _ in range(2):
        sides = st.floats(2, 80)
        rows = draw(st.lists(st.tuples(st.floats(-20, 180), st.floats(-20, 140), sides, sides), max_size=5))
        corners = np.array([[x, y, x + w, y + h] for x, y, w, h in rows], np.float32).reshape(-1, 4)
        points = draw(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=2))
        empty = np.array([[x, y, x, y] for x, y in points], np.float32).reshape(-1, 4)
        found.append(np.concatenate([corners.clip(0, [SIZE[1], SIZE[0]] * 2), empty]))
    return found


@settings(deadline=None, max_examples=100)
@given(boxes=clipped_boxes())
def test_valid_boxes_are_never_refused(boxes: list[np.ndarray]) -> None:
    assert not check_box_format(boxes, [SIZE, SIZE])


@pytest.mark.parametrize(
    "boxes",
    [
        [[0.0, 0, 0, 0]] * 3,  # padding
        [[1.0, 1, 1, 1]],  # a placeholder
        [[0.5, 1, 1, 1], [1, 1, 1, 1]],
        [[0.0, 0, 1, 1]],  # an object of one pixel, in the corner
        [[0.0, 0, 0.4, 0.7], [0.0, 0, 1, 0.2]],  # what a crop leaves of objects in the corner
        [[50.0, 10, 20, 40], [20, 20, 45, 45], [5, 5, 30, 30]],  # one damaged box
        [[float("nan")] * 4, [10, 10, 20, 20]],
        [],
    ],
)
def test_odd_boxes_that_say_nothing_of_the_format_are_not_refused(boxes: list[list[float]]) -> None:
    assert not check_box_format([np.array(boxes).reshape(-1, 4)], [SIZE])
    assert not check_box_format([np.array([[0.2, 0.1, 0.9, 0.8]] * 2)], [(8, 8)])  # a tiny image


@pytest.mark.parametrize("made", [list, tuple, np.array, lambda names: torch.arange(len(names))])
def test_a_field_with_an_entry_per_object_is_warned_about_once(tiny_bank: ForegroundBank, made: Any) -> None:
    terse = Terse(tiny_bank, paste=every_image(), seed=0)
    images, batch = two_and_one()
    for target, count in zip(batch, (2, 1), strict=True):
        target.update({"names": made(["ann", "bob"][:count]), "image_id": torch.tensor([7]), "file": "ab"})
    with pytest.warns(TerseWarning, match=r"field 'names' .* seems to have an entry per object.*'ids'") as given:
        _, corrected = terse(images, batch)
    assert len(given) == 1
    assert corrected[0]["names"] is batch[0]["names"]
    terse(images[:1], batch[:1])
    composer = terse.composer()
    composed = [composer(images[number], batch[number], number) for number in range(2)]
    with pytest.warns(TerseWarning, match="field 'names' "):
        Terse(tiny_bank, paste=every_image(), seed=0)(*(list(own) for own in zip(*composed, strict=True)))


def test_lists_of_the_image_as_long_as_the_objects_never_end_a_training(tiny_bank: ForegroundBank) -> None:
    images, batch = two_and_one()
    batch[0]["present"], batch[1]["present"] = ["person", "dog"], ["person"]
    terse = Terse(tiny_bank, paste=every_image())
    with pytest.warns(TerseWarning, match="field 'present'"):
        _, corrected = terse(images, batch)
    assert [target["present"] for target in corrected] == [["person", "dog"], ["person"]]
    other = Terse(tiny_bank, paste=every_image())
    batch[1]["present"] = ["person", "dog"]  # as many as objects in one image by chance
    other(images, batch)


def test_fields_of_the_image_are_left_alone(tiny_bank: ForegroundBank) -> None:
    images, batch = two_and_one()
    fields = {
        **{"size": [64, 80], "orig_shape": (64, 80), "image_id": 5, "camera": np.eye(3), "tags": ["night"]},
        **{"scale_factor": [0.5, 0.5], "scale": (0.5, 0.5), "pad": [0, 3], "image_shape": [[1, 2], [3]]},
    }
    terse = Terse(tiny_bank, paste=every_image())
    terse(images, [target | fields for target in batch])
    terse(images[:1], [batch[0] | fields])


def two_and_one() -> tuple[list[Tensor], list[dict[str, Any]]]:
    """A batch of an image with two objects and one with one."""
    images, targets = make_batch(objects=2)
    return images, [targets[0], make_batch(objects=1)[1][1]]


def test_label_0_without_a_model_needs_to_be_a_class_by_name(tmp_path: Path) -> None:
    bank = make_bank(tmp_path).relabel(["cat", "dog"])
    with pytest.raises(ValueError, match=r"label 0 \('cat'\), .* background .*classes=\{'cat': 0, 'dog': 1\}"):
        Terse(bank)
    assert Terse(bank, classes=["cat", "dog"]).bank.categories == {1: "cat", 2: "dog"}
    assert Terse(bank, classes={"cat": 0, "dog": 1}).bank.categories == {0: "cat", 1: "dog"}
    assert Terse(bank, model=make_detector("retinanet")).bank.categories == {0: "cat", 1: "dog"}


@pytest.mark.parametrize(
    ("convert", "kind", "pixels"),
    [
        (lambda image: image * 255, "largest", PixelFormat(scale=255)),
        (lambda image: (image - 0.45) / 0.22, "largest", PixelFormat(mean=(0.45,) * 3, std=(0.22,) * 3)),
        (lambda image: image * 2 - 1, "lowest", PixelFormat(mean=(0.5,) * 3, std=(0.5,) * 3)),
    ],
    ids=["0 to 255", "normalized", "-1 to 1"],
)
def test_pixels_of_another_range_are_warned_about_at_once(
    tiny_bank: ForegroundBank, convert: Any, kind: str, pixels: PixelFormat
) -> None:
    images, targets = make_batch()
    images = [convert((image * 2).clamp(0, 1)) for image in images]
    Terse(tiny_bank, paste=every_image(), pixel_format=pixels)(images, targets)
    for compose in (Terse(tiny_bank, paste=every_image()), composed_in_a_worker(tiny_bank)):
        with pytest.warns(TerseWarning, match=rf"the {kind} value of the first batch is .* values of 0 to 1: "):
            compose(images, targets)


def composed_in_a_worker(bank: ForegroundBank) -> Any:
    terse = Terse(bank, paste=every_image())

    def compose(images: list[Tensor], targets: list[dict[str, Any]]) -> None:
        composed = terse.composer()(images[0], targets[0], 0)
        terse([composed[0]], [composed[1]], [composed[2]])

    return compose


@pytest.mark.parametrize(
    ("channels", "advice"), [(1, r"image.expand\(3, -1, -1\)"), (4, r"by image\[:3\]"), (2, "80]$")]
)
def test_images_of_other_channels_are_refused_with_the_conversion(tmp_path: Path, channels: int, advice: str) -> None:
    terse = Terse(make_bank(tmp_path, [make_foreground()]), paste=every_image())
    images, targets = make_batch()
    images = [image[:1].repeat(channels, 1, 1) for image in images]
    with pytest.raises(ValueError, match=rf"image 0: expected a tensor \[3, H, W\], got \[{channels}, .*{advice}"):
        terse(images, targets)
    with pytest.raises(ValueError, match=advice):
        terse(torch.stack([images[0], images[0]]), [targets[0], targets[0]])
    if channels == 1:
        terse([image.expand(3, -1, -1) for image in images], targets)
    if channels == 4:
        terse([image[:3] for image in images], targets)

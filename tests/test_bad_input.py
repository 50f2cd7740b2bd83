"""Bad input: refused with a message that helps, or left out, counted, and training goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from factories import (
    RampLoss,
    all_equal,
    backward,
    every_image,
    make_bank,
    make_batch,
    make_detector,
    make_foreground,
    parameters_of,
    policy_with,
    train_step,
)
from torch import Tensor, nn
from torchvision import tv_tensors

from terse_aug import ForegroundBank, PasteConfig, Terse, TerseWarning, TransformRanges
from terse_aug.bank import BankWriter
from terse_aug.config import POLICY_SETTINGS
from terse_aug.policies import Adversarial

ALL = sorted(POLICY_SETTINGS)
Batch = tuple[list[Tensor], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    return make_detector("fasterrcnn")


@pytest.fixture(params=ALL)
def terse(request: pytest.FixtureRequest, tiny_bank: ForegroundBank, detector: nn.Module) -> Terse:
    return Terse(
        tiny_bank,
        policy_with(request.param, update_interval=1, discriminator_weight=0.1),
        paste=every_image(),
        model=detector,
    )


def test_an_empty_bank_is_refused(tmp_path: Path, tiny_bank: ForegroundBank) -> None:
    with (
        pytest.raises(ValueError, match="no foreground was kept, so no bank is written"),
        BankWriter(tmp_path / "empty.bank", {1: "cat"}),
    ):
        pass
    with pytest.raises(ValueError, match=r"no foreground of .* is selected; a bank has at least one"):
        Terse(tiny_bank.select(np.array([], dtype=np.int64)))


def test_a_bank_of_another_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    path = make_bank(tmp_path).path
    with lmdb.open(str(path), subdir=False, lock=False) as environment, environment.begin(write=True) as transaction:
        description = bytes(transaction.get(b"terse-aug"))
        transaction.put(b"terse-aug", description.replace(b'"version": 1', b'"version": 9'))
    with pytest.raises(ValueError, match="expected bank format version 1, got 9; build the bank again, or install"):
        ForegroundBank.open(path)


def test_a_class_that_the_detector_does_not_have_is_refused_by_name(tmp_path: Path, detector: nn.Module) -> None:
    bank = make_bank(tmp_path, [make_foreground(label=1), make_foreground(label=7)])
    with pytest.raises(ValueError, match=r"categories that the detector lacks: zebra; the detector knows: cat, dog"):
        Terse(bank, classes=["cat", "dog"])
    with pytest.raises(ValueError, match=r"expected labels 1 to 2, got \{7: 'zebra'\}; give Terse\(classes="):
        Terse(bank, model=detector)
    with pytest.raises(ValueError, match=r"expected labels 1 to 2, got \{3: 'dog'\}"):
        Terse(make_bank(tmp_path).relabel({"cat": 2, "dog": 3, "zebra": 1}), model=detector)


def test_the_background_label_is_refused_where_the_detector_has_one(tiny_bank: ForegroundBank) -> None:
    """Pasted with label 0, objects would teach that they are background."""
    zero_based = tiny_bank.relabel(["cat", "dog"])
    for name in ("fasterrcnn", "ssd", "ssdlite"):
        with pytest.raises(ValueError, match=r"expected labels 1 to 2, got \{0: 'cat'\}"):
            Terse(zero_based, model=make_detector(name))
    for name in ("retinanet", "fcos"):
        Terse(zero_based, model=make_detector(name))


def test_a_model_that_is_no_detector_is_refused(tiny_bank: ForegroundBank) -> None:
    with pytest.raises(ValueError, match=r"model: expected a detector .* got str"):
        Terse(tiny_bank, model="fasterrcnn")  # type: ignore[arg-type]  # wrong on purpose


def no_images(images: list[Tensor], targets: list[dict[str, Any]]) -> Batch:
    return [], []


def bytes_of(images: list[Tensor], targets: list[dict[str, Any]]) -> Batch:
    return [images[0], (images[1] * 255).byte()], targets


def masks_of_another_size(images: list[Tensor], targets: list[dict[str, Any]]) -> Batch:
    return images, [targets[0], targets[1] | {"masks": torch.zeros(1, 64, 64)}]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_images, "expected at least one image, got an empty batch"),
        (bytes_of, "image 1: expected torch.float32 on cpu, as the first image is, got torch.uint8 on cpu"),
        (masks_of_another_size, r"target 1: expected masks of shape \[1, 72, 64\], got \[1, 64, 64\]"),
    ],
)
def test_an_invalid_batch_is_refused_and_changes_nothing(tiny_bank: ForegroundBank, spoil: Any, message: str) -> None:
    terse = Terse(tiny_bank, paste=every_image())
    before = terse.metrics()
    with pytest.raises(ValueError, match=message):
        terse(*spoil(*make_batch()))
    assert terse.metrics() == before


@pytest.fixture
def bank_of_two_points(tmp_path: Path) -> ForegroundBank:
    points = np.array([[3, 3, 2], [5, 5, 2]], np.float32)
    return make_bank(tmp_path, [make_foreground(keypoints=points)], keypoint_names=["left", "right"])


def test_keypoints_of_another_number_are_refused(bank_of_two_points: ForegroundBank) -> None:
    terse = Terse(bank_of_two_points, "random", paste=every_image(), sampler="balanced")
    before = {name: value.clone() for name, value in terse.state_dict().items()}
    with pytest.raises(ValueError, match=r"target 0: expected 2 keypoints of each object, .*, got 3"):
        terse(*make_batch(keypoints=True))
    assert all(torch.equal(value.nan_to_num(), before[name].nan_to_num()) for name, value in terse.state_dict().items())


def test_an_image_without_objects_may_have_any_number_of_keypoints(bank_of_two_points: ForegroundBank) -> None:
    images, targets = make_batch(objects=0)
    targets = [target | {"keypoints": torch.zeros(0, 0, 3)} for target in targets]
    _, found = Terse(bank_of_two_points, "random", paste=every_image())(images, targets)
    assert all(target["keypoints"].shape == (len(target["boxes"]), 2, 3) for target in found)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_image_that_is_not_finite_is_passed_through_and_affects_nothing_else(terse: Terse, value: float) -> None:
    """The detector here leaves that image out of its loss, so the update is made."""
    images, targets = make_batch(sizes=((64, 64),) * 3)
    left, top, right, bottom = targets[1]["boxes"][0].int().tolist()
    images[1][0, (top + bottom) // 2, (left + right) // 2] = value  # which the discriminator would crop, too
    with pytest.warns(TerseWarning, match=r"1 image\(s\) with NaN or infinity: nothing is pasted on them"):
        composites, corrected = terse(images, targets)
    assert composites[1] is images[1]
    assert torch.equal(corrected[1]["boxes"], targets[1]["boxes"])
    assert terse.metrics()["dropped/image_not_finite"] == 1
    assert terse.metrics()["composites"] == 2
    losses = RampLoss()([composites[0], composites[2]], [])
    if composites[0].requires_grad:
        losses["loss_ramp"].backward()
    terse.step(losses)
    assert terse.metrics()["updates"] == int(terse.policy.learns)
    assert terse.metrics()["random_fallback"] == 0
    assert all(math.isfinite(figure) for figure in terse.metrics().values())
    assert all(bool(value.isfinite().all()) for name, value in terse.state_dict().items() if "averages" not in name)


def test_a_batch_with_nothing_finite_goes_through(terse: Terse) -> None:
    images, targets = make_batch()
    images = [image * math.nan for image in images]
    with pytest.warns(TerseWarning, match=r"2 image\(s\) with NaN or infinity"):
        composites, _ = terse(images, targets)
    assert all(a is b for a, b in zip(composites, images, strict=True))
    terse.step(1.0)
    assert terse.metrics()["skipped_updates"] == 0


@pytest.mark.parametrize(
    ("box", "reason", "message"),
    [
        ([math.nan, 20.0, 30.0, 30.0], "box_degenerate", "without area or not finite: left out of the targets"),
        ([90.0, 20.0, 99.0, 30.0], "box_outside", "with a box outside the image: left out of the targets"),
    ],
)
def test_an_object_with_an_impossible_box_is_left_out_counted_and_warned_about_once(
    tiny_bank: ForegroundBank, box: list[float], reason: str, message: str
) -> None:
    terse = Terse(tiny_bank, "random", paste=PasteConfig(objects=(0, 0)))
    images, targets = make_batch(objects=2, masks=True)
    targets[0]["boxes"][0] = torch.tensor(box)
    with pytest.warns(TerseWarning, match=message):
        _, corrected = terse(images, targets)
    assert all(torch.equal(value, targets[0][name][1:]) for name, value in corrected[0].items())
    terse(images, targets)
    assert terse.metrics()[f"dropped/{reason}"] == 2


def test_boxes_in_another_format_than_xyxy_are_refused(tiny_bank: ForegroundBank) -> None:
    images, targets = make_batch()
    boxes = tv_tensors.BoundingBoxes(targets[0]["boxes"], format="XYWH", canvas_size=images[0].shape[-2:])
    with pytest.raises(ValueError, match="target 0: expected boxes as XYXY, got XYWH; convert them"):
        Terse(tiny_bank)(images, [targets[0] | {"boxes": boxes}, targets[1]])


def test_a_box_that_leaves_the_frame_is_clipped_to_it(terse: Terse) -> None:
    images, targets = make_batch()
    targets[0]["boxes"][0] = torch.tensor([-5.0, -5.0, 500.0, 500.0])
    with pytest.warns(TerseWarning, match="more than a pixel beyond the image: clipped to it"):
        _, corrected = terse(images, targets)
    assert terse.metrics()["dropped/box_clipped"] == 1
    assert float(corrected[0]["boxes"].min()) >= 0
    assert (corrected[0]["boxes"].amax(0)[2:] <= torch.tensor([80.0, 64.0])).all()


@pytest.mark.parametrize(("sizes", "objects"), [(((64, 64), (72, 64)), 0), (((64, 64),), 1)])
def test_images_without_objects_and_batches_of_one_image_are_pasted_on(
    terse: Terse, detector: nn.Module, sizes: Any, objects: int
) -> None:
    train_step(terse, detector, objects=objects, sizes=sizes)
    assert terse.metrics()["composites"] == len(sizes)
    assert terse.metrics()["updates"] == int(terse.policy.learns)


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("setting", [{"objects": (0, 0)}, {"paste_probability": 0.0}], ids=["K=0", "no image"])
def test_nothing_to_paste_passes_batches_through(
    tiny_bank: ForegroundBank, detector: nn.Module, policy: str, setting: dict[str, Any]
) -> None:
    learner = policy_with(policy, update_interval=1, discriminator_weight=0.1)
    terse = Terse(tiny_bank, learner, paste=PasteConfig(**setting), model=detector)
    images, targets = make_batch()
    before = parameters_of(terse)
    composites, corrected = terse(images, targets)
    assert all_equal(list(composites), images)
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(corrected, targets, strict=True))
    terse.step(1.0)
    assert all_equal(before, parameters_of(terse))
    assert terse.metrics()["skipped_updates"] == terse.metrics()["objects_pasted"] == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 8)])
def test_an_image_smaller_than_any_allowed_paste_is_left_alone_counted_and_explained(
    terse: Terse, size: tuple[int, int]
) -> None:
    images, targets = make_batch(sizes=(size,), objects=0)
    with pytest.warns(TerseWarning, match="below min_side: left out; the images are small"):
        composites, _ = terse(images, targets)
    assert composites[0] is images[0]
    terse.step(1.0)
    assert terse.metrics()["dropped/paste_too_small"] >= 1
    assert terse.metrics()["skipped_updates"] == 0


def test_an_object_larger_than_the_image_is_centred_and_learned_from(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, [make_foreground(relative_size=4.0)])
    terse = Terse(bank, Adversarial(update_interval=1), paste=every_image())
    train_step(terse, RampLoss())
    assert terse.metrics()["updates"] == 1


def test_a_paste_of_which_nothing_is_labelled_is_counted_and_training_goes_on(tmp_path: Path) -> None:
    """Only a sliver in the corner of the frame stays visible, below the threshold for a label."""
    corner = TransformRanges(translate_x=(0.0, 0.0), translate_y=(0.0, 0.0), keep_inside=0.0)
    bank = make_bank(tmp_path, [make_foreground(0)])
    terse = Terse(bank, Adversarial(update_interval=1), paste=every_image(ranges=corner, min_visibility=0.9))
    images, targets = make_batch()
    composites, corrected = terse(images, targets)
    assert [len(target["boxes"]) for target in corrected] == [1, 1]
    assert terse.metrics()["dropped/paste_hidden"] == terse.metrics()["objects_pasted"] > 0
    terse.step(backward(RampLoss()(composites, corrected)))
    assert terse.metrics()["updates"] == 1


def test_losses_are_a_mapping_a_tensor_or_a_number(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, "random")
    for losses in ({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, torch.tensor(3.0), 3.0, {"a": 1.0, "b": 2}):
        terse.step(losses)
        assert terse.metrics()["loss"] == pytest.approx(3)
    for wrong in (torch.ones(2), {"a": torch.ones(2)}):
        with pytest.raises(ValueError, match=r"losses: expected each to be one number, got \[2\]; reduce it first"):
            terse.step(wrong)


def test_a_nan_loss_of_a_random_policy_is_counted_and_left_out_of_the_average(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, "random")
    with pytest.warns(TerseWarning, match="the loss is nan; it is left out"):
        terse.step(math.nan)
    assert terse.metrics()["non_finite_losses"] == 1
    assert terse.metrics()["random_fallback"] == 0
    assert "loss" not in terse.metrics()


def test_an_unknown_field_per_object_is_warned_about_once_and_the_image_size_is_none(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, "random", paste=every_image())
    images, targets = make_batch(objects=2)
    sizes = [target | {"orig_size": torch.tensor(images[0].shape[-2:])} for target in targets]
    terse(images, sizes)
    targets = [target | {"difficult": torch.zeros(2)} for target in sizes]
    with pytest.warns(TerseWarning, match="the field 'difficult' .* seems to have an entry per object: it is passed"):
        _, pasted = terse(images, targets)
    assert [len(target["difficult"]) for target in pasted] == [2, 2]
    terse(images, [target | {"image_id": torch.tensor([5])} for target in targets])

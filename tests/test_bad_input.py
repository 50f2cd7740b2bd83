"""Bad input: refused with a message that helps, or left out, counted, and training goes on."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from factories import (
    RampLoss,
    all_equal,
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


# --- the bank -------------------------------------------------------------------------------------------------------


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


# --- what cannot be a batch -----------------------------------------------------------------------------------------


def change(batch: Batch, **fields: Any) -> Batch:
    batch[1][1].update(fields)
    return batch


def without(batch: Batch, name: str) -> Batch:
    del batch[1][1][name]
    return batch


def with_image(batch: Batch, image: Any) -> Batch:
    batch[0][1] = image
    return batch


BROKEN: dict[str, tuple[Any, str]] = {
    "no images": (lambda batch: ([], []), "expected at least one image, got an empty batch"),
    "fewer targets": (lambda batch: (batch[0], batch[1][:1]), "one target per image, got 2 images and 1 targets"),
    "uint8": (
        lambda batch: with_image(batch, (batch[0][1] * 255).byte()),
        r"image 1: expected a float tensor, got torch.uint8; convert it \(image / 255\)",
    ),
    "grey": (lambda batch: with_image(batch, batch[0][1][:1]), r"image 1: expected a tensor \[3, H, W\], got \[1, 72,"),
    "numpy": (lambda batch: with_image(batch, batch[0][1].numpy()), r"image 1: expected a tensor .* got ndarray"),
    "no boxes": (lambda batch: without(batch, "boxes"), r"target 1: the field 'boxes' is missing; it has \['labels'\]"),
    "box shape": (
        lambda batch: change(batch, boxes=torch.zeros(1, 5)),
        r"target 1: expected boxes of shape \[1, 4\], got \[1, 5\]",
    ),
    "flat box": (lambda batch: change(batch, boxes=torch.zeros(4)), r"target 1: expected boxes of shape .* got \[4\]"),
    "int boxes": (
        lambda batch: change(batch, boxes=torch.ones(1, 4, dtype=torch.long)),
        "target 1: expected boxes to be a float tensor, got torch.int64",
    ),
    "label count": (
        lambda batch: change(batch, labels=torch.ones(3, dtype=torch.long)),
        r"target 1: expected labels of shape \[1\], got \[3\]",
    ),
    "list of labels": (
        lambda batch: change(batch, labels=[1]),
        "target 1: expected labels to be a tensor, got list",
    ),
    "mask size": (
        lambda batch: change(batch, masks=torch.zeros(1, 64, 64)),
        r"target 1: expected masks of shape \[1, 72, 64\], got \[1, 64, 64\]",
    ),
    "keypoints without visibility": (
        lambda batch: change(batch, keypoints=torch.zeros(1, 3, 2)),
        r"target 1: expected keypoints of shape \[1, \w, 3\], got \[1, 3, 2\]",
    ),
    "ids": (lambda batch: change(batch, ids=torch.ones(2)), r"target 1: expected ids of shape \[1\], got \[2\]"),
}


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_an_invalid_batch_is_refused_and_changes_nothing(tiny_bank: ForegroundBank, case: str) -> None:
    spoil, message = BROKEN[case]
    terse = Terse(tiny_bank, paste=every_image())
    before = terse.metrics()
    with pytest.raises(ValueError, match=message):
        terse(*spoil(make_batch()))
    assert terse.metrics() == before


def test_keypoints_of_another_number_are_refused(tmp_path: Path) -> None:
    points = np.array([[3, 3, 2], [5, 5, 2]], np.float32)
    bank = make_bank(tmp_path, [make_foreground(keypoints=points)], keypoint_names=["left", "right"])
    terse = Terse(bank, "random", paste=every_image(), sampler="balanced")
    before = {name: value.clone() for name, value in terse.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"target 0: expected 2 keypoints of each object, as the foregrounds .*, got 3;"
    ):
        terse(*make_batch(keypoints=True))
    assert all(torch.equal(value.nan_to_num(), before[name].nan_to_num()) for name, value in terse.state_dict().items())


def test_an_image_without_objects_may_have_any_number_of_keypoints(tmp_path: Path) -> None:
    points = np.array([[3, 3, 2], [5, 5, 2]], np.float32)
    bank = make_bank(tmp_path, [make_foreground(keypoints=points)], keypoint_names=["left", "right"])
    images, targets = make_batch(objects=0)
    targets = [target | {"keypoints": torch.zeros(0, 0, 3)} for target in targets]
    _, found = Terse(bank, "random", paste=every_image())(images, targets)
    assert all(target["keypoints"].shape == (len(target["boxes"]), 2, 3) for target in found)


def test_boxes_in_another_format_than_xyxy_are_refused(terse: Terse) -> None:
    images, targets = make_batch()
    for target, image in zip(targets, images, strict=True):
        given = {"format": "XYWH", "canvas_size": image.shape[-2:]}
        target["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], **given)
    with pytest.raises(ValueError, match="target 0: expected boxes as XYXY, got XYWH; convert them"):
        terse(images, targets)


def test_the_size_of_an_image_is_no_entry_of_its_objects(terse: Terse) -> None:
    images, targets = make_batch(objects=2)
    for target, image in zip(targets, images, strict=True):
        target["orig_size"] = torch.tensor(image.shape[-2:])
    with warnings.catch_warnings():
        warnings.simplefilter("error", TerseWarning)
        terse(images, targets)


# --- what is left out -----------------------------------------------------------------------------------------------


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
        ([20.0, 20.0, 20.0, 30.0], "box_degenerate", "without area or not finite: left out of the targets"),
        ([30.0, 20.0, 20.0, 30.0], "box_degenerate", "without area or not finite: left out of the targets"),
        ([math.nan, 20.0, 30.0, 30.0], "box_degenerate", "without area or not finite: left out of the targets"),
        ([-math.inf, 20.0, math.inf, 30.0], "box_degenerate", "without area or not finite: left out of the targets"),
        ([90.0, 20.0, 99.0, 30.0], "box_outside", "with a box outside the image: left out of the targets"),
        ([-9.0, -9.0, 0.0, 0.0], "box_outside", "with a box outside the image: left out of the targets"),
    ],
)
def test_an_object_with_an_impossible_box_is_left_out_and_counted(
    tiny_bank: ForegroundBank, box: list[float], reason: str, message: str
) -> None:
    terse = Terse(tiny_bank, "random", paste=PasteConfig(objects=(0, 0)))
    images, targets = make_batch(objects=2, masks=True)
    targets[0]["boxes"][0] = torch.tensor(box)
    with pytest.warns(TerseWarning, match=message):
        _, corrected = terse(images, targets)
    assert torch.equal(corrected[0]["boxes"], targets[0]["boxes"][1:])
    assert torch.equal(corrected[0]["labels"], targets[0]["labels"][1:])
    assert torch.equal(corrected[0]["masks"], targets[0]["masks"][1:])
    assert terse.metrics()[f"dropped/{reason}"] == 1
    terse(images, targets)  # warned about once, counted again
    assert terse.metrics()[f"dropped/{reason}"] == 2


def test_a_box_that_leaves_the_frame_is_clipped_to_it(terse: Terse) -> None:
    images, targets = make_batch()
    targets[0]["boxes"][0] = torch.tensor([-5.0, -5.0, 500.0, 500.0])
    with pytest.warns(TerseWarning, match="more than a pixel beyond the image: clipped to it"):
        _, corrected = terse(images, targets)
    assert terse.metrics()["dropped/box_clipped"] == 1
    assert float(corrected[0]["boxes"].min()) >= 0
    assert (corrected[0]["boxes"].amax(0)[2:] <= torch.tensor([80.0, 64.0])).all()


# --- unusual, and fine ----------------------------------------------------------------------------------------------


def test_images_without_objects_are_pasted_on(terse: Terse, detector: nn.Module) -> None:
    train_step(terse, detector, objects=0, sizes=((64, 64), (72, 64)))
    assert terse.metrics()["composites"] == 2
    assert terse.metrics()["updates"] == int(terse.policy.learns)


def test_a_batch_of_one_image_works(terse: Terse, detector: nn.Module) -> None:
    train_step(terse, detector, sizes=((64, 64),))
    assert terse.metrics()["composites"] == 1
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
    with pytest.warns(TerseWarning, match="pastes below min_side = 4.0 pixels are left out: the images are small"):
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
    losses = RampLoss()(composites, corrected)
    losses["loss_ramp"].backward()
    terse.step(losses)
    assert terse.metrics()["updates"] == 1


def test_losses_may_be_a_mapping_a_tensor_or_a_number(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, "random")
    for losses in ({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, torch.tensor(3.0), 3.0, {"a": 1.0, "b": 2}):
        terse.step(losses)
        assert terse.metrics()["loss"] == pytest.approx(3)


def test_a_loss_that_is_no_single_number_is_refused(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, "random")
    for losses in (torch.ones(2), {"a": torch.ones(2)}):
        with pytest.raises(ValueError, match=r"losses: expected each to be one number, got \[2\]; reduce it first"):
            terse.step(losses)


def test_a_nan_loss_of_a_random_policy_is_counted_and_left_out_of_the_average(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, "random")
    with pytest.warns(TerseWarning, match="the loss is nan; it is left out"):
        terse.step(math.nan)
    assert terse.metrics()["non_finite_losses"] == 1
    assert terse.metrics()["random_fallback"] == 0
    assert "loss" not in terse.metrics()


def test_an_unknown_field_per_object_is_warned_of_once(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, "random", paste=every_image())
    images, targets = make_batch(objects=3)
    counts = [len(target["boxes"]) for target in targets]
    assert max(counts) > 1
    targets = [target | {"difficult": torch.zeros(len(target["boxes"]))} for target in targets]
    with pytest.warns(TerseWarning, match="the field 'difficult' seems to have an entry per object; it is passed"):
        _, pasted = terse(images, targets)
    assert [len(target["difficult"]) for target in pasted] == counts
    terse(images, [target | {"image_id": torch.tensor([5])} for target in targets])

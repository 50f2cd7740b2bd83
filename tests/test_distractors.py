"""Distractors, and occludees: objects of other classes behind the pastes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coloured_samples import COLOURS, coloured, grey, plain_paste
from factories import (
    KEYPOINTS,
    every_image,
    keypoint_foregrounds,
    make_bank,
    make_batch,
    make_foreground,
    policy_with,
)
from torch import Tensor

from terse_aug import (
    BackgroundPool,
    Distractors,
    ForegroundBank,
    Paste,
    Terse,
    TransformRanges,
)
from terse_aug.bank import BankWriter
from terse_aug.models import ClassifierAdapter, class_of
from terse_aug.samplers import HardnessSampler, WeightedSampler


def pasting(bank: ForegroundBank, distractors: Distractors | None = None, **paste: Any) -> Terse:
    return Terse(bank, "random", paste=plain_paste(**paste), distractors=distractors)


def black_batch(objects: int = 0) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images, targets = make_batch(3, sizes=((96, 120), (110, 100)), objects=objects, masks=True)
    return [torch.zeros_like(image) for image in images], targets


def shown(image: Tensor, number: int) -> Tensor:
    """The pixels whose color is nearest to that of a foreground, bool ``[H, W]``."""
    palette = torch.cat([torch.from_numpy(COLOURS).float() / 255, torch.zeros(1, 3)])
    return (image[None] - palette[:, :, None, None]).square().sum(1).argmin(0) == number


def check_labels(image: Tensor, target: dict[str, Tensor], pastes: list[Paste]) -> int:
    """Check that masks are the visible pixels of labelled objects, and boxes enclose them; how many were checked."""
    checked = 0
    for paste in pastes:
        if paste.row is None or sum(other.index == paste.index for other in pastes) > 1:
            continue
        mask, seen = target["masks"][paste.row].bool(), shown(image, paste.index)
        assert int((mask ^ seen).sum()) <= 0.15 * int(mask.sum()) + 3
        rows, columns = mask.nonzero(as_tuple=True)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert target["boxes"][paste.row].tolist() == [float(side) for side in box]
        assert int(target["labels"][paste.row]) == paste.label
        checked += 1
    return checked


def test_distractors_show_have_no_label_and_hide_what_is_beneath(
    coloured_bank: ForegroundBank, distractors: ForegroundBank
) -> None:
    terse = pasting(coloured_bank, Distractors(distractors, (2, 3)), objects=(1, 2))
    checked = seen = shrunk = 0
    for _ in range(25):
        images, targets = black_batch(objects=2)
        composites, corrected = terse(images, [dict(target) for target in targets])
        for image, target, before, pastes in zip(composites, corrected, targets, terse.pastes, strict=True):
            checked += check_labels(image, target, pastes)
            unlabelled = shown(image, 6) | shown(image, 7)
            assert all(paste.index < 6 for paste in pastes)
            assert set(target["labels"].tolist()) <= {1, 2, 7}
            assert not any(
                int((mask.bool() & unlabelled).sum()) > 0.1 * int(mask.sum()) + 3 for mask in target["masks"]
            )
            seen += int(unlabelled.sum())
            shrunk += int(before["masks"].sum()) - int(target["masks"][: len(target["masks"]) - len(pastes)].sum())
    assert checked > 30
    assert seen > 5000
    assert shrunk > 0
    metrics = terse.metrics()
    assert metrics["distractors"] + metrics["dropped/distractor_not_shown"] == pytest.approx(2.5 * 50, abs=20)
    assert metrics["objects_pasted"] <= 100


def test_keypoints_of_distractors_do_not_reach_the_target(tmp_path: Path) -> None:
    """Banks of other creatures have other keypoints."""
    people = make_bank(tmp_path, keypoint_foregrounds(), keypoint_names=KEYPOINTS)
    with BankWriter(tmp_path / "crabs.bank", {1: "crab"}, keypoint_names=("claw",)) as out:
        out.add(make_foreground(3, keypoints=np.array([[5, 5, 2]], np.float32)))
    crabs = ForegroundBank.open(tmp_path / "crabs.bank")
    terse = pasting(people, Distractors(crabs, (3, 3)), flip_probability=1.0)
    _, targets = terse(*make_batch(masks=True, keypoints=True))
    assert terse.metrics()["distractors"] == 6
    assert all(len(target["keypoints"]) == len(target["boxes"]) for target in targets)


def test_distractors_are_beneath_the_pastes(coloured_bank: ForegroundBank, distractors: ForegroundBank) -> None:
    still = TransformRanges((0, 0), (0, 0), (1, 1), (1, 1), (1, 1), (0.5, 0.5), (0.5, 0.5))
    terse = pasting(coloured_bank, Distractors(distractors, (3, 3)), objects=(1, 1), ranges=still)
    images, _ = terse(*black_batch())
    for image, (paste,) in zip(images, terse.pastes, strict=True):
        assert paste.row == 0
        middle = image[:, image.shape[1] // 2, image.shape[2] // 2]
        assert torch.allclose(middle, torch.from_numpy(COLOURS[paste.index]) / 255, atol=0.02)


@pytest.mark.parametrize("name", ["cat", " Dog "])
def test_a_distractor_of_a_class_that_the_detector_knows_is_refused(
    tmp_path: Path, coloured_bank: ForegroundBank, name: str
) -> None:
    with BankWriter(tmp_path / "some.bank", {4: "teapot", 5: name}) as out:
        out.add(coloured(6, 4))
        out.add(coloured(7, 5))
    some = ForegroundBank.open(tmp_path / "some.bank")
    teapots = Distractors(some.select(categories=[4]), count=(1, 1))
    with pytest.raises(ValueError, match=f"distractors: {name}: the detector knows this class"):
        Terse(coloured_bank, "random", distractors=Distractors(some, count=(1, 1)))
    assert Terse(coloured_bank, "random", distractors=teapots)
    # Named by the detector, though the bank has none of it.
    with pytest.raises(ValueError, match="distractors: teapot: the detector knows this class"):
        Terse(coloured_bank, "random", distractors=teapots, classes=["teapot", "cat", "dog", "zebra"])


def test_an_occludee_is_of_another_class_and_labelled_by_its_visible_pixels(coloured_bank: ForegroundBank) -> None:
    terse = pasting(coloured_bank, occluded_object_probability=1.0, objects=(1, 2), min_visibility=0.3)
    checked = near = labelled = hidden = 0
    for step in range(30):
        images, targets = terse(*black_batch(objects=step % 2))
        for image, target, pastes in zip(images, targets, terse.pastes, strict=True):
            checked += check_labels(image, target, pastes)
            front = [paste for paste in pastes if paste.number is not None]
            behind = [paste for paste in pastes if paste.number is None]
            assert pastes == behind + front
            assert len(behind) == len(front)
            for one, other in zip(behind, front, strict=True):
                assert one.label != other.label
                labelled += one.row is not None
                hidden += one.row is None
                if one.row is not None and other.row is not None and len(front) == 1:
                    first, second = target["boxes"][one.row], target["boxes"][other.row]
                    near += bool((first[:2] < second[2:] + 2).all() and (first[2:] > second[:2] - 2).all())
    metrics = terse.metrics()
    assert checked > 80
    assert near > 10
    assert labelled > hidden > 0
    assert metrics["occludees"] == labelled + hidden


def test_a_class_without_weight_or_that_is_not_allowed_is_no_occludee(coloured_bank: ForegroundBank) -> None:
    def labels(terse: Terse) -> Iterator[int]:
        for _ in range(10):
            terse(*black_batch())
            yield from (paste.label for pastes in terse.pastes for paste in pastes)

    paste = plain_paste(occluded_object_probability=1.0)
    assert set(labels(Terse(coloured_bank, "random", paste=paste, sampler=WeightedSampler({1: 0.0})))) == {2, 7}
    restricted = Terse(coloured_bank, "random", paste=paste)
    restricted.restrict_labels([1, 7])
    assert set(labels(restricted)) == {1, 7}
    restricted.restrict_labels([1])
    restricted(*black_batch())
    assert all(paste.number is not None for pastes in restricted.pastes for paste in pastes)


def test_a_fraction_of_the_pastes_has_an_occludee(coloured_bank: ForegroundBank) -> None:
    terse = pasting(coloured_bank, occluded_object_probability=0.3, objects=(2, 2))
    for step in range(60):
        terse(*make_batch(step))
    metrics = terse.metrics()
    assert metrics["occludees"] / (metrics["objects_pasted"] - metrics["occludees"]) == pytest.approx(0.3, abs=0.1)


def test_the_class_of_a_classifiers_image_is_that_of_the_object_in_front(coloured_bank: ForegroundBank) -> None:
    terse = pasting(coloured_bank, occluded_object_probability=1.0, objects=(1, 1), min_visibility=0.0)
    for step in range(5):
        _, targets = terse(*make_batch(step, objects=0))
        front = [pastes[-1].label for pastes in terse.pastes]
        assert all(len(pastes) == 2 for pastes in terse.pastes)
        assert class_of(targets).tolist() == front


@pytest.mark.parametrize("policy", ["critic", "adversarial", "best-of-n"])
def test_policies_learn_from_their_own_pastes_only(
    coloured_bank: ForegroundBank, distractors: ForegroundBank, policy: str
) -> None:
    """With everything on, the policy learns from the frontmost paste of each image only, which a classifier scores."""
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 8))
    model, sampler = ClassifierAdapter(net, 8), HardnessSampler()
    sampler.update_interval = 1
    terse = Terse(
        coloured_bank,
        policy_with(policy, update_interval=1, foreground_candidates=2),
        paste=every_image(occluded_object_probability=0.7, objects=(2, 2)),
        backgrounds=BackgroundPool([grey(0.3)], probability=0.5),
        distractors=Distractors(distractors, count=(1, 1)),
        model=model,
        sampler=sampler,
    )
    learned_from = 0
    for step in range(4):
        images, targets = terse(*make_batch(step, sizes=((64, 64), (64, 64))))
        for pastes, found in zip(terse.pastes, targets, strict=True):
            learned_from += sum(p.row == len(found["labels"]) - 1 and p.number is not None for p in pastes)
        model.image_losses(
            list(images), targets, differentiable=True
        ).mean().backward() if policy == "adversarial" else None
        terse.step(1.0)
    assert terse.metrics()["updates"] == (0 if policy == "best-of-n" else 4)
    assert float(terse.sampler.state()["totals"][1].sum()) == pytest.approx(learned_from, rel=0.2)

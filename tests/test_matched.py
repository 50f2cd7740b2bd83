"""Policy ``matched``: boxes of pastes are distributed like those of real objects of their class."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import all_equal, every_image, make_bank, make_batch, make_foreground
from torch import Tensor

from terse_aug import PARAMETERS, BackgroundPool, ForegroundBank, PasteConfig, Terse, TransformRanges
from terse_aug.policies import Critic, Matched, MatchedPolicy, PolicyContext, make_policy
from terse_aug.policies.matched import BoxMemory, box_features
from terse_aug.policies.real_objects import RealObjects, overlap_fractions
from terse_aug.preview import Sample, learn_boxes

WIDE = TransformRanges(scale=(0.1, 3), rotation=(-45, 45), keep_inside=1)
SIZES = ((300, 400), (400, 300), (360, 360))
WIDTH, HEIGHT = (0.1, 0.4), (0.2, 0.25)
"""Mean width and height of the objects of the two classes, as fractions of the image."""
FOOT = 0.9
TRANSLATE_X, TRANSLATE_Y = PARAMETERS.index("translate_x"), PARAMETERS.index("translate_y")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> ForegroundBank:
    """Two classes of equal foregrounds."""
    foregrounds = [make_foreground(seed, 1 + seed % 2, side=60, relative_size=0.4) for seed in range(6)]
    return make_bank(tmp_path_factory.mktemp("bank"), foregrounds)


def street(seed: int, classes: int = 2) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Small and large objects that stand on the ground, each class of its own size, on every place across."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for height, width in SIZES:
        labels = torch.arange(4) % classes + 1
        spread = 1 + 0.1 * torch.randn(4, 2, generator=generator)
        size = torch.stack([torch.tensor(WIDTH)[labels - 1], torch.tensor(HEIGHT)[labels - 1]], 1) * spread
        across = size[:, 0] / 2 + torch.rand(4, generator=generator) * (1 - size[:, 0])
        foot = FOOT + 0.02 * torch.randn(4, generator=generator)
        boxes = torch.stack([across - size[:, 0] / 2, foot - size[:, 1], across + size[:, 0] / 2, foot], 1).clamp(0, 1)
        images.append(torch.zeros(3, height, width, dtype=torch.uint8))
        targets.append({"boxes": boxes * torch.tensor([width, height] * 2), "labels": labels})
    return images, targets


def make(bank: ForegroundBank, policy: Any = "matched", **more: Any) -> Terse:
    return Terse(bank, policy, paste=every_image(ranges=WIDE, objects=(2, 2)), seed=1, **more)


def pasted(terse: Terse, batches: range, classes: int = 2) -> tuple[Tensor, Tensor]:
    """Boxes of pastes as fractions of their images, and their labels."""
    boxes, labels = [], []
    for number in batches:
        images, targets = terse(*street(number, classes))
        for image, target, pastes in zip(images, targets, terse.pastes, strict=True):
            rows = [paste.row for paste in pastes if paste.row is not None]
            boxes.append(target["boxes"][rows] / torch.tensor([image.shape[2], image.shape[1]] * 2))
            labels.append(target["labels"][rows])
        terse.step(torch.tensor(1.0))
    return torch.cat(boxes), torch.cat(labels)


def area(boxes: Tensor) -> Tensor:
    return ((boxes[:, 2:] - boxes[:, :2]).prod(1)).sqrt()


def test_pastes_get_the_size_and_the_place_of_real_objects_of_their_class(bank: ForegroundBank) -> None:
    terse = make(bank)
    pasted(terse, range(6))
    boxes, labels = pasted(terse, range(6, 46))
    foot = boxes[:, 3]
    assert foot.mean() == pytest.approx(FOOT, abs=0.02)
    assert foot.std() < 0.05
    across = (boxes[:, 0] + boxes[:, 2]) / 2
    assert across.std() > 0.2
    for label in (1, 2):
        own = area(boxes[labels == label])
        real = (WIDTH[label - 1] * HEIGHT[label - 1]) ** 0.5
        assert own.median() == pytest.approx(real, rel=0.15)
        assert own.log().std() < 0.35
    random, _ = pasted(make(bank, "random"), range(6, 46))
    assert area(random).log().std() > 0.6
    assert random[:, 3].std() > 0.15


def test_a_class_without_enough_real_objects_is_pasted_like_all_of_them(bank: ForegroundBank) -> None:
    terse = make(bank)
    pasted(terse, range(6), classes=1)
    boxes, labels = pasted(terse, range(6, 26), classes=1)
    first, second = (area(boxes[labels == label]).median() for label in (1, 2))
    assert float(first / second) == pytest.approx(1, abs=0.2)


def test_before_there_are_real_objects_transforms_are_random(bank: ForegroundBank) -> None:
    """Nor do crowds count, nor images that a background has replaced."""
    images, targets = street(0)
    crowds = [target | {"iscrowd": torch.ones(4, dtype=torch.long)} for target in targets]
    room = [torch.zeros(3, 64, 64, dtype=torch.uint8)]
    for batch, backgrounds in (((images, crowds), None), ((images, targets), BackgroundPool(room, 1.0))):
        matched, random = (make(bank, policy, backgrounds=backgrounds) for policy in ("matched", "random"))
        for _ in range(3):
            assert all_equal(list(matched(*batch)[0]), list(random(*batch)[0]))
            for terse in (matched, random):
                terse.step(torch.tensor(1.0))


def test_ranges_are_kept(bank: ForegroundBank) -> None:
    ranges = TransformRanges(scale=(1, 1), scale_x=(1, 1), scale_y=(1, 1), rotation=(0, 0), translate_y=(0.1, 0.2))
    terse, free = (
        Terse(bank, "matched", paste=every_image(ranges=own, objects=(2, 2)), seed=1)
        for own in (ranges, TransformRanges())
    )
    for one in (terse, free):
        pasted(one, range(6))
    boxes, _ = pasted(terse, range(6, 16))
    assert boxes[:, 3].max() < 0.75
    assert area(boxes).log().std() < 0.1
    assert pasted(free, range(6, 16))[0][:, 3].mean() > 0.8


def test_of_more_candidates_one_comes_nearer(bank: ForegroundBank) -> None:
    spreads = []
    for candidates in (1, 64):
        terse = make(bank, Matched(candidates=candidates))
        pasted(terse, range(6))
        boxes, labels = pasted(terse, range(6, 36))
        spreads.append(max(float(area(boxes[labels == label]).log().std()) for label in (1, 2)))
    assert spreads[1] < 0.5 * spreads[0]


def test_the_oldest_boxes_are_forgotten() -> None:
    memory = BoxMemory(20)
    for label, count in ((1, 15), (2, 15), (3, 45), (4, 5)):
        corner = torch.full((count, 2), label / 10)
        labels = torch.full((count,), label)
        memory.add(box_features(torch.cat([corner, corner + 0.1], 1)), labels, labels)
    assert sorted(memory.labels.tolist()) == [3] * 15 + [4] * 5
    assert [len(memory.of_class(label)) for label in (None, 2, 3, 4)] == [20, 0, 15, 5]
    assert memory.frequencies().tolist() == pytest.approx([own / 26 for own in (1, 1, 1, 16, 6, 1)])
    with pytest.raises(ValueError, match="capacity: expected at least 1, got 0"):
        MatchedPolicy(capacity=0)


def crowded(seed: int, overlapping: bool) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two objects on each image, one over a part of the other or in the other half."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = street(seed)
    for image, target in zip(images, targets, strict=True):
        height, width = image.shape[1:]
        corner = torch.rand(2, 2, generator=generator) * torch.tensor([0.3, 0.8]) + torch.tensor([[0.0, 0], [0.5, 0]])
        if overlapping:
            corner[1] = corner[0] + 0.05 + 0.08 * torch.rand(2, generator=generator)
        boxes = torch.cat([corner, corner + 0.2], 1).clamp(0, 1)
        target |= {"boxes": boxes * torch.tensor([width, height] * 2), "labels": torch.tensor([1, 2])}
    return images, targets


@pytest.mark.parametrize("overlapping", [False, True])
def test_pastes_overlap_other_objects_no_more_often_than_real_ones_do(bank: ForegroundBank, overlapping: bool) -> None:
    found, terse = [], make(bank)
    for number in range(40):
        _, targets = terse(*crowded(number, overlapping))
        for target, pastes in zip(targets, terse.pastes, strict=True):
            rows = [paste.row for paste in pastes if paste.row is not None]
            boxes = target["boxes"]
            if number >= 10 and rows:
                shared = overlap_fractions(boxes[rows], boxes)
                shared[torch.arange(len(rows)), rows] = 0
                found += (shared.amax(1) > 0.1).tolist()
        terse.step(torch.tensor(1.0))
    assert len(found) > 10
    rate, metrics = sum(found) / len(found), terse.metrics()
    assert rate > 0.25 if overlapping else rate < 0.15  # at random 0.42 and 0.46
    assert metrics["dropped/paste_overlaps"] + metrics["objects_pasted"] == 40 * 3 * 2
    assert metrics["dropped/paste_overlaps"] < 30 if overlapping else metrics["dropped/paste_overlaps"] > 50


def test_pastes_overlap_as_often_as_real_objects_where_room_is_scarce() -> None:
    """Chosen boxes overlap in four of five cases, real ones in one of five: what is left does as often."""
    generator = torch.Generator().manual_seed(0)
    policy = MatchedPolicy(Matched(candidates=1))
    corner = torch.rand(200, 2, generator=generator) * 0.5
    boxes, none = torch.cat([corner, corner + 0.4], 1), torch.zeros(200, dtype=torch.long)
    policy.real.add(box_features(boxes), (torch.arange(200) % 5 == 0).long() * 5, none)
    overlapped = 0, 0
    for _ in range(60):
        others = RealObjects(torch.tensor([[0.0, 0, 0.8, 1]]).repeat(10, 1), none[:10], torch.arange(10))
        inside = torch.rand(1, 10, 1, generator=generator) < 0.8
        chosen = torch.where(inside, torch.tensor([0.0, 0.2, 0.8, 0.6]), torch.tensor([0.8, 0.2, 1.0, 0.6]))
        context = PolicyContext(torch.arange(10), 10, none[:10], boxes=lambda unit: chosen.repeat(len(unit), 1, 1))  # noqa: B023
        proposal = policy.propose(dataclasses.replace(context, real=others), generator, False)
        kept = inside[0, :, 0] if proposal.rows is None else inside[0, proposal.rows, 0]
        policy.chosen.add(*proposal.replay_data[6:])
        overlapped = overlapped[0] + int(kept.sum()), overlapped[1] + len(kept)
    assert overlapped[0] / overlapped[1] == pytest.approx(0.2, abs=0.06)
    assert overlapped[1] < 200


def test_overlaps_are_relative_to_the_smaller_box_and_to_others_of_the_image() -> None:
    boxes = torch.tensor([[0.0, 0, 0.4, 0.4], [0.2, 0, 0.3, 0.1], [0.5, 0.5, 0.9, 0.9], [0, 0, 0.4, 0.4]])
    objects = RealObjects(boxes, torch.ones(4, dtype=torch.long), torch.tensor([0, 0, 0, 1]))
    assert objects.overlaps().tolist() == pytest.approx([1, 1, 0, 0])
    half = torch.tensor([[0.2, 0.0, 0.6, 0.4]])
    assert overlap_fractions(half, boxes)[0].tolist() == pytest.approx([0.5, 1, 0, 0.5], abs=1e-6)


def test_a_composition_by_another_policy_keeps_what_is_behind_its_pastes(bank: ForegroundBank) -> None:
    """The policies draw different numbers of foregrounds for a paste."""
    paste = every_image(objects=(2, 2), occluded_object_probability=1.0)
    policies: list[Any] = ["random", Critic(foreground_candidates=4)]
    for own, other in (policies, policies[::-1]):
        found = Terse(bank, own, paste=paste, seed=1).compose(*street(0), policy=make_policy(other, 0))
        assert found.dropped["paste_overlaps"] == 0
        assert [sum(one.number is None for one in pastes) for pastes in found.pastes] == [2, 2, 2]


def test_an_object_behind_a_paste_that_is_left_out_is_left_out_too(bank: ForegroundBank) -> None:
    paste = every_image(ranges=WIDE, objects=(3, 3), occluded_object_probability=1.0)
    terse = Terse(bank, "matched", paste=paste, seed=1)
    for number in range(25):
        terse(*crowded(number, False))
        assert all(
            sum(own.number is None for own in pastes) == sum(own.number is not None for own in pastes)
            for pastes in terse.pastes
        )
        terse.step(torch.tensor(1.0))
    assert terse.metrics()["dropped/paste_overlaps"] > 20


@pytest.mark.parametrize("ahead", [False, True])
def test_a_resumed_run_pastes_what_the_run_before_would_have(bank: ForegroundBank, tmp_path: Path, ahead: bool) -> None:
    def train(terse: Terse, batches: range) -> list[Tensor]:
        seen: list[Tensor] = []
        loader = [street(number) for number in batches]
        for images, _ in terse.ahead(loader) if ahead else itertools.starmap(terse, loader):
            seen += list(images)
            terse.step(torch.tensor(1.0))
        return seen

    whole, stopped, resumed = (make(bank) for _ in range(3))
    expected = train(whole, range(8))
    before = train(stopped, range(5))
    torch.save(stopped.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all_equal(before + train(resumed, range(5, 8)), expected)
    assert all_equal(*(list(run.state_dict().values()) for run in (resumed, whole)))


def test_autocast_changes_nothing(bank: ForegroundBank) -> None:
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found.append(pasted(Terse(bank, "matched", paste=every_image(objects=(6, 6)), seed=1), range(12))[0])
    assert torch.equal(*found)


def test_copies_for_batches_ahead_do_not_pile_up_without_steps(bank: ForegroundBank) -> None:
    terse = make(bank)
    for _ in terse.ahead([street(number) for number in range(12)]):
        assert len(terse.trainer.acting._coming) <= 3


def test_what_is_learned_reaches_batches_composed_ahead(bank: ForegroundBank) -> None:
    terse, feet = make(bank), []
    for images, targets in terse.ahead([street(number) for number in range(30)]):
        for image, target, pastes in zip(images, targets, terse.pastes, strict=True):
            feet.append([float(target["boxes"][paste.row][3]) / image.shape[1] for paste in pastes if paste.row])
        terse.step(torch.tensor(1.0))
    late = torch.tensor([foot for own in feet[30:] for foot in own])
    assert late.mean() == pytest.approx(FOOT, abs=0.02)
    assert late.std() < 0.05


def test_a_policy_that_has_seen_no_boxes_is_not_composed_with_by_name(bank: ForegroundBank) -> None:
    random, matched = make(bank, "random"), make(bank)
    with pytest.raises(ValueError, match="has learned nothing here"):
        random.compose(*street(0), policy="matched")
    pasted(matched, range(6))
    found = matched.compose(*street(0), policy="matched", seed=3)
    assert all_equal(found.images, matched.compose(*street(0), seed=3).images)
    rows = [paste.row for paste in found.pastes[0] if paste.row is not None]
    assert float((found.targets[0]["boxes"][rows][:, 3] / SIZES[0][0]).mean()) == pytest.approx(FOOT, abs=0.1)


def test_a_preview_uses_the_boxes_of_the_samples(bank: ForegroundBank) -> None:
    terse = make(bank)
    samples = [sample for number in range(3) for sample in zip(*street(number), strict=True)]
    learn_boxes(terse, [Sample(str(number), image / 255, target) for number, (image, target) in enumerate(samples)])
    boxes = terse.compose(*street(3)).targets[0]["boxes"]
    assert float((boxes[:, 3] / SIZES[0][0]).min()) > FOOT - 0.15


def test_objects_as_small_as_a_point_do_no_harm(bank: ForegroundBank) -> None:
    terse = make(bank)
    images, targets = make_batch(sizes=SIZES)
    dot = torch.tensor([[5.0, 5, 5.001, 5.001]]).repeat(40, 1)
    for _ in range(3):
        terse(images, [{"boxes": dot, "labels": torch.ones(40, dtype=torch.long)} for _ in targets])
        units = [paste.unit for pastes in terse.pastes for paste in pastes]
        assert all(bool(((unit >= 0) & (unit <= 1)).all()) for unit in units)
        terse.step(torch.tensor(1.0))
    assert int(terse.policy.real.count) == 3 * 40 * len(SIZES)  # type: ignore[union-attr]  # a MatchedPolicy


def test_paste_config_without_objects_pastes_nothing(bank: ForegroundBank) -> None:
    terse = Terse(bank, "matched", paste=PasteConfig(objects=(0, 0), decoys=(0, 0)), seed=1)
    for number in range(8):
        images, _ = terse(*street(number))
        assert all_equal(list(images), street(number)[0])
        terse.step(torch.tensor(1.0))

"""Hardness recorded from the detector's own training forward, for models with an RoI head."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import KEYPOINTS, every_image, keypoint_foregrounds, make_bank, make_batch, make_detector, unrecorded
from roi_head_samples import (
    CONSTANT,
    ROI_HEADS,
    SIZES,
    batch,
    constant_detector,
    hooks_of,
    predict_constant,
    propose,
    train_forward,
)
from torch import Tensor, nn

from terse_aug import ForegroundBank, Terse, TerseWarning
from terse_aug.compositing.compose import Composites
from terse_aug.models import TorchvisionAdapter
from terse_aug.policies import Critic
from terse_aug.utils.random import isolated_global_rng


def train_on(terse: Terse, detector: nn.Module, seed: int = 0) -> list[dict[str, Tensor]]:
    """Targets of a training forward on composites of a batch."""
    images, targets = terse(*batch(seed=seed))
    train_forward(detector, images, targets)
    return targets


def critic(bank: ForegroundBank, detector: Any, update_interval: int = 2) -> Terse:
    settings = Critic(candidates=2, replay_updates=1, update_interval=update_interval)
    return Terse(bank, settings, paste=every_image(objects=(1, 1)), model=detector)


def replay_hardness(terse: Terse) -> list[float]:
    state = terse.policy.state_dict()
    values: list[float] = state["replay_hardness"][: int(state["replay_count"])].tolist()
    return values


@pytest.mark.parametrize("name", ROI_HEADS)
def test_every_iteration_is_learned_from_without_extra_forward(
    name: str, tiny_bank: ForegroundBank, tmp_path: Path
) -> None:
    detector = make_detector(name)
    bank = (
        make_bank(tmp_path, keypoint_foregrounds(), keypoint_names=KEYPOINTS) if name == "keypointrcnn" else tiny_bank
    )
    terse = critic(bank, detector)
    counts = []
    for seed in range(4):
        images, targets = terse(*batch(name, seed))
        assert hooks_of(detector) == 4
        train_forward(detector, images, targets)
        terse.step(1.0)
        assert hooks_of(detector) == 0
        counts.append(len(replay_hardness(terse)))
    assert counts == sorted(set(counts))
    metrics = terse.metrics()
    assert (metrics["updates"], metrics["extra_forwards"]) == (2, 0)
    assert 0 <= metrics["hardness"] <= 1


def test_accumulated_batches_are_each_recorded(tiny_bank: ForegroundBank) -> None:
    detector = constant_detector()
    terse = critic(tiny_bank, TorchvisionAdapter(detector, (1e-6,)))
    expected = []
    for seed, probabilities in enumerate((CONSTANT, [0.5, 0.1, 0.4])):
        predict_constant(detector, probabilities)
        train_on(terse, detector, seed)
        expected += [1 - probabilities[paste.label] for pastes in terse.pastes for paste in pastes]
    terse.step(1.0)
    assert replay_hardness(terse) == pytest.approx(expected, abs=1e-5)


def test_supplied_hardness_takes_precedence(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    targets = train_on(terse, detector)
    terse.observe([torch.full((len(target["boxes"]),), 0.25) for target in targets])
    terse.step(1.0)
    assert set(replay_hardness(terse)) == {0.25}


def no_forward(detector: Any, images: Any, targets: Any) -> None:
    """As where another model is trained."""


def forward_of_copies(detector: Any, images: Any, targets: Any) -> None:
    """Hooks of copies record nothing."""
    for other in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        train_forward(other, images, targets)


def nothing_sampled(detector: Any, images: Any, targets: Any) -> None:
    """All objects are unknown."""
    transform, fraction = detector.transform, detector.roi_heads.fg_bg_sampler.positive_fraction
    propose(detector, [target["boxes"] + 2 for target in targets])
    detector.roi_heads.fg_bg_sampler.positive_fraction = 0.0
    train_forward(detector, images, targets)
    del detector.rpn.forward
    detector.transform, detector.roi_heads.fg_bg_sampler.positive_fraction = transform, fraction


@pytest.mark.parametrize("forward", [no_forward, forward_of_copies, nothing_sampled])
def test_an_extra_forward_is_made_where_nothing_was_recorded(
    tiny_bank: ForegroundBank, forward: Callable[..., None]
) -> None:
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    for seed in range(2):
        forward(detector, *terse(*batch(seed=seed)))
        terse.step(1.0)
    assert terse.metrics()["extra_forwards"] == len(SIZES)  # in the first of two iterations


def test_a_loss_that_is_not_finite_is_not_learned_from(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    train_on(terse, detector)
    with pytest.warns(TerseWarning, match="the loss is inf"):
        terse.step(float("inf"))
    # The next batch is pasted at random and has no prediction to learn from.
    train_on(terse, detector, 1)
    terse.step(1.0)
    assert replay_hardness(terse) == []
    assert hooks_of(detector) == 0


def test_hooks_are_removed_in_evaluation_mode_by_load_state_dict_and_with_terse(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    state = copy.deepcopy(terse.state_dict())
    terse(*batch())
    assert hooks_of(detector) == 4
    terse.eval()(*batch())
    assert hooks_of(detector) == 0
    terse.train()(*batch())
    terse.load_state_dict(state)
    assert hooks_of(detector) == 0
    for _ in range(2):
        terse.step(1.0)
        terse(*batch())
    assert hooks_of(detector) == 4
    del terse
    gc.collect()
    assert hooks_of(detector) == 0


def test_composites_are_released_once_their_hardness_is_known_or_not_needed(tiny_bank: ForegroundBank) -> None:
    def kept() -> int:
        gc.collect()
        return sum(type(value) is Composites for value in gc.get_objects())

    before = kept()
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    for seed in range(2):
        train_on(terse, detector, seed)
    assert kept() - before == 1
    del terse
    # No extra forward is made in an iteration without update.
    other = critic(tiny_bank, unrecorded(make_detector("retinanet")))
    other(*batch())
    other.step(1.0)
    for seed in range(2):
        other(*batch(seed=seed))
    assert kept() - before == 1


def test_failed_hooks_are_removed_and_a_resumed_run_makes_extra_forwards_too(tiny_bank: ForegroundBank) -> None:
    def train(terse: Terse, detector: Any, first: int, last: int) -> None:
        for seed in range(first, last):
            images, targets = terse(*make_batch(seed, sizes=SIZES))
            assert hooks_of(detector) == 0
            train_forward(detector, images, targets)
            terse.step(1.0)

    detector: Any = make_detector("fasterrcnn")
    whole = critic(tiny_bank, detector)
    pooler = detector.roi_heads.box_roi_pool
    del detector.roi_heads.box_roi_pool
    detector.roi_heads.box_roi_pool = lambda *inputs: pooler(*inputs)  # not a module
    with pytest.warns(TerseWarning, match="training forward"):
        train(whole, detector, 0, 1)
    assert whole.metrics()["hooks_failed"] == 1
    detector.roi_heads.box_roi_pool = pooler
    same = copy.deepcopy(detector)
    resumed = critic(tiny_bank, same)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    train(whole, detector, 1, 3)
    with pytest.warns(TerseWarning, match="in the run that this one resumes"):
        train(resumed, same, 1, 3)
    assert whole.metrics() == resumed.metrics()
    assert whole.metrics()["extra_forwards"] == 2 * len(SIZES)


def call_head_by_keywords(detector: Any) -> Callable[..., Any]:
    def forward(images: Any, targets: Any) -> Any:
        resized, targets = detector.transform(images, targets)
        features = {"0": detector.backbone(resized.tensors)}
        proposals, losses = detector.rpn(resized, features, targets)
        found = detector.roi_heads(
            features=features, proposals=proposals, image_shapes=resized.image_sizes, targets=targets
        )
        return losses | found[1]

    detector.forward = forward
    return lambda images, targets: detector(images, targets)


def move_targets(detector: Any) -> Callable[..., Any]:
    forward = detector.forward
    detector.forward = lambda images, extra, targets: forward(images, targets)
    return lambda images, targets: detector(images, None, targets)


@pytest.mark.parametrize("spoil", [call_head_by_keywords, move_targets])
def test_a_model_with_another_call_signature_gets_extra_forwards_and_one_warning(
    tiny_bank: ForegroundBank, spoil: Callable[[Any], Callable[..., Any]]
) -> None:
    detector: Any = make_detector("fasterrcnn")
    train = spoil(detector)
    spoiled = detector.forward
    terse = critic(tiny_bank, detector, update_interval=1)
    for seed in range(3):
        detector.forward = spoiled
        images, targets = terse(*batch(seed=seed))
        with isolated_global_rng(0):
            losses = train(images, targets)
        del detector.forward  # in evaluation it has its own
        with pytest.warns(TerseWarning, match="training forward") if seed == 0 else nullcontext():
            terse.step(sum(loss.detach() for loss in losses.values()))
        assert hooks_of(detector) == 0
    assert len(replay_hardness(terse)) > 0

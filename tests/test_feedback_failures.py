"""Feedback never ends a training: what fails is counted and warned about once, and pastes are random."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any

import pytest
import torch
from factories import counts_of, every_image, make_batch, make_detector, unrecorded

from terse_aug import ForegroundBank, Terse, TerseWarning
from terse_aug.models import TorchvisionAdapter
from terse_aug.policies import Adversarial, BestOfN, Critic
from terse_aug.samplers import HardnessSampler

COUNTERS = ("hooks_failed", "feedback_failed", "extra_forwards")
CRITIC = Critic(candidates=2, replay_updates=1, update_interval=2)


def failing(name: str = "retinanet", recorded: bool = False) -> Any:
    """A detector that cannot be evaluated."""
    detector: Any = make_detector(name)
    if not recorded:
        unrecorded(detector)
    detector.transform.postprocess = None  # which is called in evaluation mode only
    return detector


def terse_for(bank: ForegroundBank, detector: Any, policy: Any = CRITIC, **more: Any) -> Terse:
    return Terse(bank, policy, model=detector, paste=every_image(objects=(1, 1)), **more)


def train(terse: Terse, detector: Any, first: int, end: int) -> list[Any]:
    """Some iterations, whose composites are returned."""
    seen = []
    for step in range(first, end):
        images, targets = terse(*make_batch(step))
        losses = detector(images, targets)
        torch.stack(list(losses.values())).sum().backward()
        terse.step(losses)
        seen += [image.detach() for image in images]
    return seen


def random_composites(bank: ForegroundBank, steps: int) -> list[Any]:
    terse = terse_for(bank, None, "random")
    return [image for step in range(steps) for image in terse(*make_batch(step))[0]]


def equal(images: list[Any], others: list[Any]) -> list[bool]:
    return [torch.equal(own, other) for own, other in zip(images, others, strict=True)]


@pytest.mark.parametrize("policy", [CRITIC, BestOfN(candidates=2)])
def test_a_failed_extra_forward_makes_pastes_random_from_then_on_and_in_a_resumed_run(
    policy: Any, tiny_bank: ForegroundBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = failing()
    monkeypatch.setattr(TorchvisionAdapter, "losses", None)  # of the candidates of best-of-n
    whole = terse_for(tiny_bank, detector, policy)
    random = random_composites(tiny_bank, 4)
    with pytest.warns(TerseWarning, match="extra forward .* pastes are random"):
        seen = train(whole, detector, 0, 2)
    seen += train(whole, detector, 2, 3)
    # In the first iteration the critic has chosen, and best-of-n has drawn its candidates.
    assert equal(seen, random[:6]) == [False] * 2 + [True] * 4
    assert counts_of(whole, *COUNTERS) == [0, 1, 0]
    resumed = terse_for(tiny_bank, detector, policy)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    with pytest.warns(TerseWarning, match="that this one resumes, an extra forward .* has failed; .* random"):
        seen = train(resumed, detector, 3, 4)
    assert all(equal(seen, random[6:]))
    assert counts_of(resumed, *COUNTERS) == [0, 1, 0]


@pytest.mark.parametrize("where", ["record_forward", "hook", "scores"])
def test_a_failure_to_record_is_followed_by_extra_forwards_and_then_by_random_pastes(
    where: str, tiny_bank: ForegroundBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = make_detector("retinanet")
    terse = terse_for(tiny_bank, detector)
    model: Any = terse.model

    def fail(*inputs: Any, **named: Any) -> Any:
        raise KeyError("border")

    recorder = model.record_forward()
    recorder.close()
    target = {"record_forward": type(model), "hook": type(recorder), "scores": type(recorder)}[where]
    monkeypatch.setattr(target, {"hook": "start_record"}.get(where, where), fail)
    with pytest.warns(TerseWarning, match="could not be recorded .*KeyError: 'border'.* extra forward every"):
        train(terse, detector, 0, 2)
    assert counts_of(terse, *COUNTERS) == [1, 1, 2]
    detector.transform.postprocess = None  # type: ignore[union-attr,assignment]
    with pytest.warns(TerseWarning, match="extra forward .*TypeError.* pastes are random"):
        train(terse, detector, 2, 4)
    assert counts_of(terse, *COUNTERS) == [1, 2, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error", TerseWarning)
        seen = train(terse, detector, 4, 6)
    assert all(equal(seen, random_composites(tiny_bank, 6)[8:]))
    assert not detector._forward_pre_hooks


def test_a_model_that_is_recorded_is_learned_from_though_its_extra_forward_has_failed(
    tiny_bank: ForegroundBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where all proposals near the pastes of one batch were left out."""
    detector = failing(recorded=True)
    terse = terse_for(tiny_bank, detector)
    with monkeypatch.context() as patch:
        patch.setattr("terse_aug.models.PredictionRecorder.scores", lambda *inputs: None)
        with pytest.warns(TerseWarning, match="extra forward .* is not recorded .* are not learned from"):
            train(terse, detector, 0, 1)
    train(terse, detector, 1, 3)
    assert counts_of(terse, *COUNTERS, "updates") == [0, 1, 0, 1]
    assert 0 < terse.metrics()["hardness"] <= 1


def test_a_sampler_that_learns_draws_as_it_did(tiny_bank: ForegroundBank) -> None:
    detector = failing()
    terse = terse_for(tiny_bank, detector, Adversarial(update_interval=1), sampler=HardnessSampler(update_interval=1))
    with pytest.warns(TerseWarning, match="extra forward"):
        train(terse, detector, 0, 2)
    assert counts_of(terse, *COUNTERS, "updates") == [0, 1, 0, 2]
    assert len(set(terse.sampler.probabilities().values())) == 1


def test_an_interrupt_is_no_failure(tiny_bank: ForegroundBank) -> None:
    detector = failing()

    def interrupt(*inputs: Any) -> Any:
        raise KeyboardInterrupt

    detector.transform.postprocess = interrupt
    with pytest.raises(KeyboardInterrupt):
        train(terse_for(tiny_bank, detector), detector, 0, 1)


@pytest.mark.parametrize(
    ("policy", "sampler", "recorded", "line"),
    [
        (CRITIC, "uniform", True, "hardness: recorded from the training forward, no extra forward"),
        (
            CRITIC,
            "uniform",
            False,
            "hardness: from an extra forward of the images with pastes every 2 iterations, because the training "
            "forward of Other is not recorded",
        ),
        ("random", "hardness", True, "hardness: recorded from the training forward, no extra forward"),
        (CRITIC, "uniform", None, "hardness: supplied by observe(), no extra forward"),
        ("best-of-n", "uniform", True, "loss of candidates: from forwards of the detector in every iteration"),
        ("adversarial", "uniform", None, "gradient: from the training's own backward every 4 iterations, no extra"),
        ("random", "uniform", True, ""),
    ],
)
def test_the_log_says_once_where_feedback_comes_from_and_what_it_costs(
    policy: Any,
    sampler: str,
    recorded: bool | None,
    line: str,
    tiny_bank: ForegroundBank,
    caplog: pytest.LogCaptureFixture,
) -> None:
    detector = None if recorded is None else make_detector("retinanet")
    if recorded is False:
        unrecorded(detector)
    terse = terse_for(tiny_bank, detector, policy, sampler=sampler)
    with caplog.at_level(logging.INFO, "terse_aug"):
        for _ in range(2):
            terse(*make_batch())
    assert len(caplog.messages) == bool(line)
    assert "".join(caplog.messages).startswith(line)

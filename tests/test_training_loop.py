"""Updates of the policy in the training loop: the gradient, the interval, and what goes wrong."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from factories import (
    RampLoss,
    all_equal,
    backward,
    disturb_synthesizer,
    every_image,
    make_batch,
    make_detector,
    make_terse,
    parameters_of,
    policy_with,
    train_step,
)
from torch import Tensor

from terse_aug import ForegroundBank, Terse, TerseWarning
from terse_aug.policies import Adversarial, AdversarialPolicy, PolicyContext, Proposal

LITTLE: Any = {"sizes": ((32, 32),)}


def test_the_detectors_gradient_is_that_of_the_same_composites_without_a_graph(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank, discriminator_weight=0.5, paste=every_image(objects=(2, 2)))
    composites, targets = terse(*make_batch())
    assert all(image.requires_grad for image in composites)
    gradients = []
    for images in (composites, [image.detach() for image in composites]):
        detector = make_detector("fasterrcnn")
        torch.manual_seed(0)  # the detector samples proposals
        torch.stack(list(detector(images, targets).values())).sum().backward()
        gradients.append([parameter.grad for parameter in detector.parameters() if parameter.grad is not None])
    assert len(gradients[0]) > 10
    assert all_equal(*gradients)


def test_the_policy_is_updated_every_kth_iteration_with_a_graph_in_all_batches_of_it(tiny_bank: ForegroundBank) -> None:
    terse, detector = make_terse(tiny_bank, update_interval=3), RampLoss()
    for iteration in range(5):
        before, due = parameters_of(terse), iteration % 3 == 0
        for batch in range(2):  # accumulated
            images, targets = terse(*make_batch(batch))
            assert all(image.requires_grad is due for image in images)
            losses = backward(detector(images, targets))
        terse.step(losses)
        assert all_equal(before, parameters_of(terse)) is not due
    assert terse.metrics()["updates"] == 2


@pytest.mark.parametrize("policy", ["random", "best-of-n"])
def test_a_policy_that_does_not_learn_has_no_parameters_and_no_graph(tiny_bank: ForegroundBank, policy: str) -> None:
    terse = make_terse(tiny_bank, policy, model=make_detector("fasterrcnn"))
    images, _ = terse(*make_batch())
    assert not any(image.requires_grad for image in images)
    terse.step(1.0)
    assert terse.metrics()["updates"] == terse.metrics()["skipped_updates"] == 0
    assert list(terse.parameters()) == []


def policy_gradient(bank: ForegroundBank, batches: list[int], factor: float, loss_scale: float) -> list[Tensor]:
    """The gradient of one update after a backward of each batch: Adam's first moment is a tenth of it."""
    terse, detector = make_terse(bank, max_gradient_norm=1e9), RampLoss()
    total = 0.0
    for number in batches:
        terse.counters.counts["calls"] = number  # the same random numbers, whether alone or not
        losses = detector(*terse(*make_batch(number, sizes=((64, 64),) * (2 + number))))
        (losses["loss_ramp"] * factor).backward()
        total += float(losses["loss_ramp"].detach())
    terse.step(total, loss_scale)
    assert terse.metrics()["updates"] == 1
    state = terse.trainer.updater.state_dict()
    names = sorted(name for name in state if name.startswith("policy_optimizer.exp_avg_") and "sq" not in name)
    return [10 * state[name] for name in names]


@pytest.mark.parametrize(
    ("batches", "factor", "loss_scale"),
    [([0], 1024.0, 1024.0), ([0, 1], 1.0, 1.0), ([0, 1], 0.5, 0.5)],
    ids=["loss scale", "summed", "averaged"],
)
def test_the_policys_gradient_is_the_mean_over_the_batches_without_the_loss_scale(
    tiny_bank: ForegroundBank, batches: list[int], factor: float, loss_scale: float
) -> None:
    got = policy_gradient(tiny_bank, batches, factor, loss_scale)
    each = [policy_gradient(tiny_bank, [number], 1.0, 1.0) for number in batches]
    expected = [sum(parts) / len(each) for parts in zip(*each, strict=True)]
    scale = max(float(gradient.abs().max()) for gradient in expected)
    assert scale > 0
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(
    ("policy", "sampler", "most"),
    [("adversarial", "uniform", 64), ("critic", "uniform", 16), ("critic", "hardness", 16), ("random", "hardness", 16)],
)
def test_without_step_memory_is_bounded_counted_and_warned_about_once(
    tiny_bank: ForegroundBank, policy: str, sampler: str, most: int
) -> None:
    terse = Terse(tiny_bank, policy_with(policy, update_interval=1), paste=every_image(), sampler=sampler)
    composites = []

    def call(times: int) -> None:
        for _ in range(times):
            composites.append(weakref.ref(terse(*make_batch(**LITTLE))[0][0]))

    call(most)
    with pytest.warns(TerseWarning, match=rf"called more than {most} times since the last step\(\), .*: call step"):
        call(2)
    call(4)
    assert len(terse.trainer.feedback.batches) <= 64
    assert sum(image() is not None for image in composites) <= most + 1
    assert terse.metrics()["dropped/graph"] >= 5


def test_without_backward_the_update_is_skipped_counted_and_explained(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank)
    before = parameters_of(terse)
    terse.step(1.0)  # without a batch there is nothing to do
    losses = RampLoss()(*terse(*make_batch()))
    with pytest.warns(TerseWarning, match=r"call backward\(\) on the detector's loss before step\(\)"):
        terse.step(losses)
    assert all_equal(before, parameters_of(terse))
    assert terse.metrics()["skipped_updates"] == 1
    assert terse.metrics()["random_fallback"] == 0
    train_step(terse, RampLoss())
    assert terse.metrics()["updates"] == 1


def test_under_no_grad_it_warns_that_nothing_can_be_learned(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank)
    with torch.no_grad(), pytest.warns(TerseWarning, match=r"call Terse outside torch\.no_grad\(\)"):
        images, _ = terse(*make_batch())
    assert not any(image.requires_grad for image in images)
    terse.step(1.0)
    assert terse.metrics()["updates"] == 0
    assert terse.metrics()["dropped/graph"] == 1


def test_memory_does_not_grow(tiny_bank: ForegroundBank) -> None:
    terse, detector = make_terse(tiny_bank, paste=every_image(objects=(1, 1)), discriminator_weight=0.5), RampLoss()

    def live_tensors_after(steps: int) -> int:
        for seed in range(steps):
            train_step(terse, detector, seed, **LITTLE)
        gc.collect()
        return sum(type(thing) is Tensor for thing in gc.get_objects())

    live_tensors_after(2)
    gc.freeze()  # what other tests have left is many times as much, and is not searched
    try:
        assert live_tensors_after(2) == live_tensors_after(5)
    finally:
        gc.unfreeze()


def test_after_a_loss_that_is_not_finite_pastes_are_random_until_an_update_succeeds(tiny_bank: ForegroundBank) -> None:
    terse, uniform = (make_terse(tiny_bank, policy, update_interval=2) for policy in ("adversarial", "random"))
    disturb_synthesizer(terse)
    detector = RampLoss()
    for iteration in range(4):
        images, targets = terse(*make_batch(iteration))
        expected, _ = uniform(*make_batch(iteration))
        losses = backward(detector(images, targets))
        if iteration == 0:
            before = parameters_of(terse)
            with pytest.warns(TerseWarning, match="the loss is nan; the policy is not updated, and pastes are random"):
                terse.step(float("nan"))
            assert all_equal(before, parameters_of(terse))
            assert terse.metrics()["random_fallback"] == 1
        else:
            terse.step(losses)
        assert all_equal([image.detach() for image in images], list(expected)) is (iteration == 1)
        uniform.step(1.0)
    metrics = terse.metrics()
    assert (metrics["skipped_updates"], metrics["non_finite_losses"]) == (1, 1)
    assert (metrics["updates"], metrics["random_fallback"]) == (1, 0)


def test_a_loss_that_is_not_finite_between_updates_falls_back_to_random_too(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank, update_interval=3)
    train_step(terse, RampLoss())
    with pytest.warns(TerseWarning, match="the loss is inf"):
        terse.step(float("inf"))
    assert terse.metrics()["random_fallback"] == terse.metrics()["non_finite_losses"] == 1
    assert terse.metrics()["skipped_updates"] == 0
    terse.step(1.0)
    train_step(terse, RampLoss())
    assert terse.metrics()["random_fallback"] == 0


class InfiniteSlope(AdversarialPolicy):
    """A policy whose own gradient is not finite."""

    def propose(self, context: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        proposal = super().propose(context, generator, learning)
        location, log_spread = proposal.outputs
        zero = self.synthesizer.regressor.bias.sum() * 0
        proposal.outputs = (location + zero.sqrt(), log_spread)
        return proposal


@pytest.mark.parametrize("whose", ["detector", "policy"])
def test_a_gradient_that_is_not_finite_skips_the_update(tiny_bank: ForegroundBank, whose: str) -> None:
    settings = Adversarial(update_interval=1)
    terse = Terse(tiny_bank, InfiniteSlope(settings) if whose == "policy" else settings, paste=every_image())
    before = parameters_of(terse)
    factor = float("inf") if whose == "detector" else 1.0
    (RampLoss()(*terse(*make_batch()))["loss_ramp"] * factor).backward()
    with pytest.warns(TerseWarning, match="a loss or gradient is not finite on some rank; the policy is not updated"):
        terse.step(1.0)
    assert all_equal(before, parameters_of(terse))
    assert terse.metrics()["skipped_updates"] == terse.metrics()["random_fallback"] == 1
    if whose == "detector":
        train_step(terse, RampLoss())
        assert terse.metrics()["random_fallback"] == 0

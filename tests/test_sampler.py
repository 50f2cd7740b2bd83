"""Which foregrounds samplers draw: uniformly, by class, by hardness, and custom samplers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import (
    backward,
    every_image,
    make_bank,
    make_batch,
    make_detector,
    make_foreground,
    policy_with,
    unrecorded,
)

from terse_aug import BackgroundPool, ForegroundBank, ForegroundLoader, Terse
from terse_aug.policies import Critic, Random
from terse_aug.samplers import (
    BalancedSampler,
    DrawRequest,
    ForegroundIndex,
    HardnessSampler,
    RaritySampler,
    Sampler,
    UniformSampler,
    WeightedSampler,
    make_sampler,
)
from terse_aug.utils.random import generator_for

LABELS = np.array([7] + [3] * 9 + [7] + [5] * 30)
NAMES = {3: "cat", 5: "dog", 7: "zebra"}


def bound(sampler: Any, **more: Any) -> Any:
    sampler.bind(ForegroundIndex(LABELS, NAMES), 0, **more)
    return sampler


def draws(sampler: Sampler, pastes: int, candidates: int = 1, **request: Any) -> np.ndarray:
    """Positions ``[pastes, candidates]``."""
    request = {"foreground_candidates": candidates} | request
    return np.array(sampler.draw(DrawRequest([pastes], **request), generator_for(0))).reshape(pastes, candidates)


def frequencies(sampler: Sampler, pastes: int = 6000, **request: Any) -> dict[int, float]:
    drawn = LABELS[draws(sampler, pastes, **request)]
    return {label: float((drawn == label).mean()) for label in NAMES}


@pytest.mark.parametrize("allowed", [None, [3, 7]])
@pytest.mark.parametrize("mix_classes", [False, True])
def test_candidates_are_uniform_over_allowed_foregrounds_and_of_one_class_unless_mixed(
    allowed: list[int] | None, mix_classes: bool
) -> None:
    sampler = bound(UniformSampler())
    sampler.restrict(allowed)
    assert sampler.allowed_labels == allowed
    positions = draws(sampler, 4000, 3, mix_classes=mix_classes)
    expected = np.isin(LABELS, allowed or list(NAMES))
    for column in positions.T:
        counts = np.bincount(column, minlength=len(LABELS)) / len(column)
        assert np.abs(counts - expected / expected.sum()).max() < 0.025
    sevens = LABELS[positions] == 7
    fraction = 2 / expected.sum()
    together = fraction**2 if mix_classes else fraction
    assert (sevens[:, 0] & sevens[:, 1]).mean() == pytest.approx(together, abs=0.02)
    assert mix_classes or (LABELS[positions] == LABELS[positions][:, :1]).all()


def test_a_restriction_can_be_lifted_and_an_impossible_one_changes_nothing() -> None:
    sampler = bound(UniformSampler())
    sampler.restrict([3])
    with pytest.raises(ValueError, match=r"no foreground in the bank has any of the labels \[4\]"):
        sampler.restrict([4])
    assert set(draws(sampler, 500).ravel()) == set(range(1, 10))
    sampler.restrict(None)
    assert set(draws(sampler, 2000).ravel()) == set(range(len(LABELS)))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("request_", [{}, {"candidates": 3}, {"candidates": 3, "mix_classes": True}], ids=str)
def test_rare_classes_are_drawn_by_the_power_of_their_size(power: float, request_: dict[str, Any]) -> None:
    weights = {label: size ** (1 - power) for label, size in {3: 9, 5: 30, 7: 2}.items()}
    expected = {label: weight / sum(weights.values()) for label, weight in weights.items()}
    sampler = bound(RaritySampler(power))
    assert sampler.probabilities() == pytest.approx(expected)
    assert frequencies(sampler, 3000, **request_) == pytest.approx(expected, abs=0.03)
    sevens = Counter(draws(sampler, 6000).ravel().tolist())
    assert sevens[0] == pytest.approx(sevens[10], rel=0.25)


def test_weights_are_relative_and_classes_without_one_weigh_one() -> None:
    for given in ({"dog": 3.0, "zebra": 0}, {5: 3, 7: 0}):
        sampler = bound(WeightedSampler(given))  # type: ignore[arg-type]  # wrong on purpose
        assert frequencies(sampler) == pytest.approx({3: 0.25, 5: 0.75, 7: 0.0}, abs=0.02)
    rows = LABELS[draws(sampler, 200, 4)]
    assert (rows == rows[:, :1]).all()
    sampler.restrict([3, 7])
    assert frequencies(sampler) == {3: 1.0, 5: 0.0, 7: 0.0}
    with pytest.raises(ValueError, match=r"only foregrounds of \[7\] are allowed, but their weight is 0"):
        sampler.restrict([7])
    assert sampler.allowed_labels == [3, 7]
    assert frequencies(sampler.snapshot()) == pytest.approx({3: 0.25, 5: 0.75, 7: 0.0}, abs=0.02)


def test_a_label_is_not_looked_up_among_names() -> None:
    sampler = WeightedSampler({3: 0.0})
    sampler.bind(ForegroundIndex(LABELS, {3: "5", 5: "3", 7: "zebra"}), 0)
    assert sampler.probabilities() == {3: 0.0, 5: 0.5, 7: 0.5}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightedSampler({"cat": -1.0}), "weight of class 'cat': expected a finite number of at least 0"),
        (lambda: bound(WeightedSampler({"horse": 1.0})), "no foregrounds of class 'horse'; expected some of"),
        (lambda: bound(WeightedSampler({"cat": 0.0, "dog": 0, "zebra": 0})), "expected a weight above 0"),
        (lambda: RaritySampler(-0.1), "power: expected a finite number of at least 0, got -0.1"),
        (lambda: HardnessSampler(1.2), r"floor: expected a fraction in \[0, 1\], got 1.2"),
        (lambda: HardnessSampler(update_interval=0), "update_interval: expected at least 1, got 0"),
        (lambda: BalancedSampler(0), "background_degree: expected at least 1, got 0"),
        (lambda: bound(bound(UniformSampler())), "expected one of its own for each Terse, got one that is in use"),
        (lambda: bound(BalancedSampler(100), backgrounds=5), "background_degree: expected at most 41 foregrounds"),
        (lambda: bound(BalancedSampler(None, 6), backgrounds=5), "object_degree: expected at most 5 backgrounds"),
        (lambda: bound(BalancedSampler(2, 3), backgrounds=5), "expected 41 foregrounds x object_degree 3 = 5"),
        (
            lambda: make_sampler("uniformly"),
            "expected one of uniform, rarity, hardness, balanced, class weights",
        ),
        (lambda: make_sampler(3), "expected one of uniform"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: make_sampler({"power": 1.0}), "expected one of uniform"),
        (lambda: make_sampler({"type": "rarity", "strength": 1.0}), "sampler rarity: .*strength"),
        (lambda: make_sampler("dog=many"), "expected class weights as dog=3,cat=0.5, got 'dog=many'"),
    ],
)
def test_impossible_samplers_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_samplers_are_made_from_names_mappings_and_weights() -> None:
    assert isinstance(make_sampler("balanced"), BalancedSampler)
    for name in ("rarity", "RaritySampler"):
        rarity = make_sampler({"type": name, "power": 0.9})
        assert isinstance(rarity, RaritySampler)
        assert rarity.power == 0.9
    assert make_sampler(rarity) is rarity
    for given in ("dog = 3, cat=0.5, zebra=0", {"type": "WeightedSampler", "weights": {"dog": 6, 3: 1, "zebra": 0}}):
        assert bound(make_sampler(given)).probabilities() == pytest.approx({3: 0.5 / 3.5, 5: 3 / 3.5, 7: 0})


def test_sampled_foregrounds_of_another_distribution_are_refused(tiny_bank: ForegroundBank) -> None:
    images, targets = make_batch()
    first, second = tiny_bank.categories.values()
    swapped, merged = {first: 2, second: 1}, {first: 1, second: 1}
    weighted = {"sampler": WeightedSampler({second: 3.0})}
    for classes, sampler, loader, fits in (
        (swapped, WeightedSampler({1: 3.0}), weighted, True),
        (swapped, "rarity", {"sampler": "rarity"}, True),
        (swapped, WeightedSampler({1: 3.0}), {"sampler": WeightedSampler({1: 3.0})}, False),
        (merged, "rarity", {"sampler": "rarity"}, False),
        (None, "uniform", {"sampler": "rarity"}, False),
    ):
        terse = Terse(tiny_bank, "random", paste=every_image(), classes=classes, sampler=sampler)
        own = ForegroundLoader(tiny_bank, "random", paste=every_image(), **loader)  # type: ignore[arg-type]  # settings
        weighted = {"sampler": WeightedSampler({second: 3.0})}
        if fits:
            terse(images, targets, [own(), own()])
        else:
            with pytest.raises(ValueError, match=r"sampler: expected .*, as Terse has, got"):
                terse(images, targets, [own(), own()])
    for name in ("hardness", "balanced"):
        with pytest.raises(ValueError, match="let Terse draw"):
            ForegroundLoader(tiny_bank, "random", sampler=name)


def test_weights_hold_for_what_workers_draw(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, [make_foreground(seed, label=1 + (seed == 0)) for seed in range(9)])
    loader = ForegroundLoader(bank, "random", paste=every_image(objects=(4, 4)), sampler=RaritySampler(1.0))
    assert np.mean([index == 0 for _ in range(150) for index in loader().objects]) == pytest.approx(0.5, abs=0.06)


def learning_terse(bank: ForegroundBank, policy: str, objects: int, model: Any = None) -> Terse:
    """Sampler and policy are updated in every second iteration."""
    settings = policy_with(policy, update_interval=2, candidates=2, replay_updates=1)
    paste, sampler = every_image(objects=(objects, objects)), HardnessSampler(update_interval=2)
    return Terse(bank, settings, model=model, paste=paste, sampler=sampler)


def test_classes_are_equal_at_first_then_weigh_by_hardness_and_none_vanishes() -> None:
    sampler = bound(HardnessSampler(floor=0.3))
    assert sampler.probabilities() == pytest.approx({3: 1 / 3, 5: 1 / 3, 7: 1 / 3})
    for _ in range(50):
        sampler.record([1, 11] * 20, [0.9, 0.0] * 20)
        sampler.update(torch.device("cpu"))
    probabilities = sampler.probabilities()
    assert probabilities[3] > probabilities[7] > probabilities[5] > 0.1
    means = [(0.9 * 100 + 10 * 0.45) / 110, 10 * 0.45 / 110, 0.45]
    expected = {label: 0.7 * mean / sum(means) + 0.1 for label, mean in zip((3, 5, 7), means, strict=True)}
    assert probabilities == pytest.approx(expected, abs=0.02)
    assert frequencies(sampler) == pytest.approx(probabilities, abs=0.03)
    for _ in range(50):
        sampler.record([11] * 20, [1.0] * 20)
        sampler.update(torch.device("cpu"))
    assert sampler.probabilities()[5] > sampler.probabilities()[3]


@pytest.mark.parametrize("policy", ["random", "critic", "adversarial", "best-of-n"])
def test_a_class_that_the_detector_finds_hard_is_pasted_more(tiny_bank: ForegroundBank, policy: str) -> None:
    """With hardness supplied by ``observe``: dogs are missed, cats are not."""
    terse = learning_terse(tiny_bank, policy, 3, make_detector("fasterrcnn"))
    drawn: Counter[int] = Counter()
    for step in range(12):
        images, targets = terse(*make_batch(step, objects=0))
        loss = torch.stack([image.mean() for image in images]).sum()
        loss.backward() if loss.requires_grad else None
        if step > 3:
            drawn.update(paste.label for pastes in terse.pastes for paste in pastes)
        terse.observe([(target["labels"] == 2).float() * 0.98 + 0.01 for target in targets])
        terse.step(1.0)
    assert isinstance(terse.sampler, HardnessSampler)
    assert terse.sampler.probabilities()[2] > 0.7
    assert drawn[2] > 1.4 * drawn[1] > 0
    assert terse.metrics()["extra_forwards"] == (12 * 2 * 2 if policy == "best-of-n" else 0)


@pytest.mark.parametrize("policy", ["random", "adversarial", "critic"])
@pytest.mark.parametrize(("recorded", "forwards"), [(True, 0), (False, 4)])
def test_hardness_is_recorded_from_the_training_forward_or_an_extra_one(
    tiny_bank: ForegroundBank, policy: str, recorded: bool, forwards: int
) -> None:
    detector = make_detector("retinanet")
    if not recorded:
        unrecorded(detector)
    terse = learning_terse(tiny_bank, policy, 2, detector)
    for step in range(4):
        terse.step(backward(detector(*terse(*make_batch(step)))))
    sums, counts = terse.sampler.state_dict()["totals"]
    assert float(counts.sum()) > 0
    assert float((sums / counts)[counts > 0].min()) >= 0
    assert terse.metrics()["extra_forwards"] == forwards


@pytest.mark.parametrize("at", [2, 3])
def test_the_state_holds_what_was_recorded_also_between_two_updates(tiny_bank: ForegroundBank, at: int) -> None:
    def train(terse: Terse, first: int, end: int) -> list[list[int]]:
        drawn = []
        for step in range(first, end):
            _, targets = terse(*make_batch(step, objects=0))
            drawn += [[paste.index for paste in pastes] for pastes in terse.pastes]
            terse.observe([(target["labels"] == 2).float() * 0.9 for target in targets])
            terse.step(1.0)
        return drawn

    whole, begun, resumed = (learning_terse(tiny_bank, "random", 3) for _ in range(3))
    expected = train(whole, 0, 6)
    before = train(begun, 0, at)
    resumed.load_state_dict(begun.state_dict())
    assert before + train(resumed, at, 6) == expected
    assert torch.equal(resumed.sampler.state_dict()["totals"], whole.sampler.state_dict()["totals"])
    state = begun.sampler.state_dict()
    with pytest.raises(RuntimeError, match="the state is of a bank with other classes"):
        bound(HardnessSampler()).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*recorded"):
        bound(UniformSampler()).load_state_dict(state)


class FirstOnly(Sampler):
    def draw(self, request: DrawRequest, generator: torch.Generator) -> list[int]:
        return [0] * (request.pastes * request.foreground_candidates)


@pytest.mark.parametrize("policy", [Random(), Critic(candidates=2, foreground_candidates=2)])
def test_a_custom_sampler_needs_draw_only(tiny_bank: ForegroundBank, policy: Any) -> None:
    own: dict[str, Any] = {"backgrounds": BackgroundPool([torch.full((3, 40, 50), 0.4)]), "paste": every_image()}
    terse = Terse(tiny_bank, policy, **own, model=make_detector("retinanet"), sampler=FirstOnly())
    for step in range(4):
        terse(*make_batch(step))
        assert {paste.index for pastes in terse.pastes for paste in pastes} == {0}
    assert {paste.index for pastes in terse.compose(*make_batch()).pastes for paste in pastes} == {0}
    assert not [name for name in terse.state_dict() if "sampler" in name]


class Stateful(FirstOnly):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(2, 1)
        self.register_buffer("mean", torch.zeros(3))
        self.count = 0

    def state(self) -> dict[str, torch.Tensor]:
        return {"count": torch.tensor(self.count)}

    def load_state(self, state: Any) -> None:
        self.count = int(state["count"])


def test_parameters_buffers_and_state_of_a_custom_sampler_are_saved(tiny_bank: ForegroundBank) -> None:
    first, second = (Terse(tiny_bank, "random", paste=every_image(), sampler=Stateful()) for _ in range(2))
    first.sampler.mean.fill_(4)
    first.sampler.count = 3
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.sampler.net.weight, first.sampler.net.weight)
    assert (second.sampler.mean.tolist(), second.sampler.count) == ([4, 4, 4], 3)
    with pytest.raises(RuntimeError, match=r"Unexpected.*other"):
        second.sampler.load_state_dict(first.sampler.state_dict() | {"other": torch.zeros(1)})

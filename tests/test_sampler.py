"""Which cut-outs are drawn: uniformly, by class, and in turn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import EVERY_IMAGE, every_image, make_bank, make_batch, make_detector, make_foreground, policy_with

from terse_aug import ForegroundBank, ForegroundLoader, Terse
from terse_aug.samplers import (
    BalancedSampler,
    DrawRequest,
    ForegroundIndex,
    HardnessSampler,
    RaritySampler,
    Sampler,
    UniformSampler,
    WeightedSampler,
)
from terse_aug.utils.random import generator_for

LABELS = np.array([7] + [3] * 9 + [7] + [5] * 30)
NAMES = {3: "cat", 5: "dog", 7: "zebra"}


def bound(sampler: Any, labels: Any = LABELS, **more: Any) -> Any:
    sampler.bind(ForegroundIndex(np.asarray(labels), NAMES), 0, **more)
    return sampler


def shares(sampler: Sampler, count: int = 6000, **demand: Any) -> dict[int, float]:
    """How often each class is drawn."""
    drawn = LABELS[sampler.draw(DrawRequest([count], **demand), generator_for(0))]
    return {label: float((drawn == label).mean()) for label in (3, 5, 7)}


# --- uniform --------------------------------------------------------------------------------------------------------


def test_a_uniform_draw_is_a_single_one_of_torch() -> None:
    """What was drawn before there were other samplers is drawn still, to the number."""
    drawn = bound(UniformSampler()).draw(DrawRequest([3, 2, 4]), generator_for(5))
    assert drawn == torch.randint(len(LABELS), (9,), generator=generator_for(5)).tolist()


@pytest.mark.parametrize("only", [None, [3, 7]])
def test_offers_are_of_one_class_and_classes_as_frequent_as_in_the_bank(only: list[int] | None) -> None:
    sampler = bound(UniformSampler())
    sampler.restrict(only)
    rows = np.array(sampler.draw(DrawRequest([4000], 5), generator_for(0))).reshape(4000, 5)
    drawn = LABELS[rows]
    assert (drawn == drawn[:, :1]).all()
    allowed = LABELS if only is None else LABELS[np.isin(LABELS, only)]
    for column in range(5):
        for label in set(allowed.tolist()):
            assert (drawn[:, column] == label).mean() == pytest.approx((allowed == label).mean(), abs=0.03)
    counts = np.bincount(rows.ravel(), minlength=len(LABELS)) / rows.size
    expected = np.isin(LABELS, allowed) / len(allowed)
    assert np.abs(counts - expected).max() < 0.01


def test_offers_of_any_class_are_independent_and_uniform_over_what_is_allowed() -> None:
    sampler = bound(UniformSampler())
    sampler.restrict([3, 7])
    rows = np.array(sampler.draw(DrawRequest([4000], 3, mix_classes=True), generator_for(0))).reshape(4000, 3)
    sevens = LABELS[rows] == 7
    assert np.isin(LABELS[rows], [3, 7]).all()
    assert sevens.mean(0) == pytest.approx([2 / 11] * 3, abs=0.03)
    assert (sevens[:, 0] & sevens[:, 1]).mean() == pytest.approx((2 / 11) ** 2, abs=0.02)
    assert np.bincount(rows.ravel(), minlength=len(LABELS))[:11] / rows.size == pytest.approx([1 / 11] * 11, abs=0.02)


def test_one_offer_is_uniform_over_what_is_allowed_and_all_may_be_allowed_again() -> None:
    sampler = bound(UniformSampler())
    sampler.restrict([3])
    assert sampler.allowed_labels == [3]
    assert set(sampler.draw(DrawRequest([500]), generator_for(0))) == set(range(1, 10))
    with pytest.raises(ValueError, match=r"no cut-out in the bank has any of the labels \[4\]"):
        sampler.restrict([4])
    assert set(sampler.draw(DrawRequest([500]), generator_for(0))) == set(range(1, 10))
    sampler.restrict(None)
    assert sampler.allowed_labels is None
    assert set(sampler.draw(DrawRequest([2000]), generator_for(0))) == set(range(len(LABELS)))


# --- by class -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize(
    "demand", [{}, {"foreground_candidates": 3}, {"foreground_candidates": 3, "mix_classes": True}]
)
def test_rare_classes_are_drawn_by_the_power_of_their_number(power: float, demand: dict[str, Any]) -> None:
    sizes = {3: 9, 5: 30, 7: 2}
    weights = {label: size ** (1 - power) for label, size in sizes.items()}
    expected = {label: weight / sum(weights.values()) for label, weight in weights.items()}
    sampler = bound(RaritySampler(power))
    assert sampler.probabilities() == pytest.approx(expected)
    assert shares(sampler, 3000, **demand) == pytest.approx(expected, abs=0.03)
    sevens = Counter(sampler.draw(DrawRequest([6000]), generator_for(1)))
    assert sevens[0] == pytest.approx(sevens[10], rel=0.2)


def test_given_weights_are_relative_to_one_another_and_unnamed_classes_weigh_one() -> None:
    for given in ({"dog": 3.0, "zebra": 0}, {5: 3, 7: 0}):
        sampler = bound(WeightedSampler(given))  # type: ignore[arg-type]  # wrong on purpose
        assert shares(sampler) == pytest.approx({3: 0.25, 5: 0.75, 7: 0.0}, abs=0.02)
    sampler.restrict([3, 7])
    assert shares(sampler) == {3: 1.0, 5: 0.0, 7: 0.0}
    with pytest.raises(ValueError, match=r"only cut-outs of \[7\] are allowed, but their weight is 0"):
        sampler.restrict([7])
    assert sampler.allowed_labels == [3, 7]
    assert shares(sampler.snapshot()) == pytest.approx({3: 0.25, 5: 0.75, 7: 0.0}, abs=0.02)


def test_a_label_is_no_name() -> None:
    sampler = WeightedSampler({3: 0.0})
    sampler.bind(ForegroundIndex(LABELS, {3: "5", 5: "3", 7: "zebra"}), 0)
    assert sampler.probabilities() == {3: 0.0, 5: 0.5, 7: 0.5}


def test_parcels_of_other_weights_or_classes_are_refused(tiny_bank: ForegroundBank) -> None:
    images, targets = make_batch()
    first, second = tiny_bank.categories.values()
    classes = {first: 2, second: 1}
    terse = Terse(tiny_bank, "random", paste=every_image(), classes=classes, sampler=WeightedSampler({1: 3.0}))
    fitting = ForegroundLoader(tiny_bank, "random", paste=every_image(), sampler=WeightedSampler({second: 3.0}))
    terse(images, targets, [fitting(), fitting()])
    other = ForegroundLoader(tiny_bank, "random", paste=every_image(), sampler=WeightedSampler({1: 3.0}))
    with pytest.raises(ValueError, match="drawn by another sampler"):
        terse(images, targets, [other(), other()])
    merged = Terse(tiny_bank, "random", paste=every_image(), classes={first: 1, second: 1}, sampler="rarity")
    apart = ForegroundLoader(tiny_bank, "random", paste=every_image(), sampler="rarity")
    with pytest.raises(ValueError, match="drawn by another sampler"):
        merged(images, targets, [apart(), apart()])
    swapped = Terse(tiny_bank, "random", paste=every_image(), classes=classes, sampler="rarity")
    swapped(images, targets, [apart(), apart()])


def test_rows_of_offers_are_of_the_class_that_was_drawn() -> None:
    rows = np.array(bound(WeightedSampler({"dog": 0.0})).draw(DrawRequest([200], 4), generator_for(0))).reshape(200, 4)
    assert (LABELS[rows] == LABELS[rows][:, :1]).all()
    assert set(LABELS[rows].ravel().tolist()) == {3, 7}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: WeightedSampler({"cat": -1.0}),
            "weight of class 'cat': expected a finite number of at least 0, got -1.0",
        ),
        (lambda: bound(WeightedSampler({"horse": 1.0})), "no cut-outs of class 'horse'; expected some of"),
        (lambda: bound(WeightedSampler({"cat": 0.0, "dog": 0, "zebra": 0})), "expected a weight above 0"),
        (lambda: RaritySampler(-0.1), "rarity_power: expected a finite number of at least 0, got -0.1"),
        (lambda: HardnessSampler(1.2), r"floor: expected a share in \[0, 1\], got 1.2"),
        (lambda: BalancedSampler(0), "background_degree: expected at least 1, got 0"),
        (lambda: bound(bound(UniformSampler())), "expected one of its own for each Terse, got one that is in use"),
        (
            lambda: bound(BalancedSampler(100), backgrounds=5),
            "background_degree: expected at most 41 cut-outs, got 100",
        ),
        (lambda: bound(BalancedSampler(None, 6), backgrounds=5), "object_degree: expected at most 5 backgrounds"),
        (
            lambda: bound(BalancedSampler(2, 3), backgrounds=5),
            "expected 41 cut-outs x object_degree 3 = 5 backgrounds x",
        ),
    ],
)
def test_samplers_that_cannot_be_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_samplers_have_names(tiny_bank: ForegroundBank) -> None:
    assert isinstance(Terse(tiny_bank, "random", sampler="biregular").sampler, BalancedSampler)
    rarity = Terse(tiny_bank, "random", sampler="rarity", rarity_power=0.9).sampler
    assert isinstance(rarity, RaritySampler)
    assert rarity.power == 0.9
    given = Terse(tiny_bank, "random", sampler="dog = 3, cat=0.5").sampler
    assert isinstance(given, WeightedSampler)
    assert given.probabilities() == pytest.approx({1: 0.5 / 3.5, 2: 3 / 3.5})
    for wrong, message in (
        ("uniformly", "expected one of uniform, rarity, loss, biregular, weights as"),
        ("dog=many", "expected weights of classes as dog=3,cat=0.5, got 'dog=many'"),
        ("horse=3", "no cut-outs of class 'horse'"),
    ):
        with pytest.raises(ValueError, match=message):
            Terse(tiny_bank, "random", sampler=wrong)


class FirstOnly(Sampler):
    """As little as a sampler of one's own can be."""

    def draw(self, demand: DrawRequest, generator: torch.Generator) -> list[int]:
        return [0] * (demand.pastes * demand.foreground_candidates)


@pytest.mark.parametrize("policy", ["random", "critic"])
def test_a_sampler_of_ones_own_needs_draw_alone(tiny_bank: ForegroundBank, policy: str) -> None:
    pool = [torch.full((3, 40, 50), 0.4)]
    own: dict[str, Any] = {"backgrounds": pool, "background_probability": 0.5, "critic_cutouts": 2, **EVERY_IMAGE}
    terse = Terse(tiny_bank, policy, **own, model=make_detector("retinanet"), sampler=FirstOnly())
    for step in range(4):
        terse(*make_batch(step))
        assert {paste.index for pastes in terse.pastes for paste in pastes} == {0}
    assert {paste.index for pastes in terse.compose(*make_batch()).pastes for paste in pastes} == {0}
    assert not [name for name in terse.state_dict() if name.startswith("sampler")]
    with pytest.raises(ValueError, match="expected one of its own for each Terse"):
        Terse(tiny_bank, policy_with(policy, foreground_candidates=2), sampler=terse.sampler)


def test_weights_hold_for_what_workers_draw(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    bank = make_bank(tmp_path, [make_foreground(seed, label=1 + (seed == 0)) for seed in range(9)])
    own: dict[str, Any] = {"sampler": "rarity", "rarity_power": 1.0, "objects": (4, 4), "image_probability": 1.0}
    cutouts = ForegroundLoader(bank, "random", **own)
    rare = [index == 0 for _ in range(150) for index in cutouts().objects]
    assert np.mean(rare) == pytest.approx(0.5, abs=0.06)
    terse = Terse(bank, "random", **own)
    terse(*make_batch(), [cutouts(), cutouts()])
    other = Terse(bank, "random", **own | {"sampler": "uniform"})
    with pytest.raises(
        ValueError, match=r"parcel 0: drawn by another sampler, RaritySampler 1\.0 of \w+, than that of Terse, Unif"
    ):
        other(*make_batch(), [cutouts(), cutouts()])
    for name in ("loss", "biregular"):
        with pytest.raises(ValueError, match="goes by what was pasted before, of which a data loader's workers know"):
            ForegroundLoader(bank, "random", sampler=name)


# --- by hardness ----------------------------------------------------------------------------------------------------


def test_all_classes_are_equal_before_anything_is_known_and_none_vanishes_after() -> None:
    sampler = bound(HardnessSampler(floor=0.3))
    assert sampler.probabilities() == pytest.approx({3: 1 / 3, 5: 1 / 3, 7: 1 / 3})
    for _ in range(50):
        sampler.record([3, 5] * 20, [0.9, 0.0] * 20)
        sampler.update(torch.device("cpu"))
    class_probabilities = sampler.probabilities()
    assert class_probabilities[3] > class_probabilities[7] > class_probabilities[5] > 0.1
    means = [(0.9 * 100 + 10 * 0.45) / 110, 10 * 0.45 / 110, 0.45]
    expected = {label: 0.7 * mean / sum(means) + 0.1 for label, mean in zip((3, 5, 7), means, strict=True)}
    assert class_probabilities == pytest.approx(expected, abs=0.02)
    assert shares(sampler) == pytest.approx(class_probabilities, abs=0.03)
    for _ in range(50):
        sampler.record([5] * 20, [1.0] * 20)
        sampler.update(torch.device("cpu"))
    assert sampler.probabilities()[5] > sampler.probabilities()[3]


@pytest.mark.parametrize("policy", ["random", "critic", "adversarial", "best-of-n"])
def test_a_class_that_the_detector_finds_hard_is_pasted_more(tiny_bank: ForegroundBank, policy: str) -> None:
    """Told by ``observe``, whatever the policy: dogs are missed, cats are not."""
    terse = Terse(
        tiny_bank,
        policy_with(policy, update_interval=2),
        paste=every_image(objects=(3, 3)),
        model=make_detector("fasterrcnn"),
        sampler="loss",
    )
    drawn: Counter[int] = Counter()
    for step in range(12):
        images, targets = terse(*make_batch(step, objects=0))
        loss = torch.stack([image.mean() for image in images]).sum()
        loss.backward() if loss.requires_grad else None
        if step > 3:
            drawn.update(paste.label for pastes in terse.pastes for paste in pastes)
        terse.observe([(target["labels"] == 2).float() * 0.98 + 0.01 for target in targets])
        terse.step(1.0)
    sampler = terse.sampler
    assert isinstance(sampler, HardnessSampler)
    class_probabilities = sampler.probabilities()
    assert class_probabilities[2] > 0.7
    assert drawn[2] > 1.4 * drawn[1] > 0
    assert terse.metrics()["extra_forwards"] == (12 * 2 * 2 if policy == "best-of-n" else 0)


@pytest.mark.parametrize("policy", ["random", "adversarial", "critic"])
@pytest.mark.parametrize("name", ["fasterrcnn", "retinanet"])
def test_the_sampler_hears_the_detector_or_asks_it(tiny_bank: ForegroundBank, policy: str, name: str) -> None:
    """A detector that is heard costs no forward; one that is not is asked as often as the policy would move."""
    detector = make_detector(name)
    terse = Terse(
        tiny_bank,
        policy_with(policy, update_interval=2),
        paste=every_image(objects=(2, 2)),
        model=detector,
        sampler="loss",
    )
    for step in range(4):
        losses = detector(*terse(*make_batch(step)))
        torch.stack(list(losses.values())).sum().backward()
        terse.step(losses)
    known = terse.state_dict()["sampler.known"]
    assert float(known[1].sum()) > 0
    assert float((known[0] / known[1])[known[1] > 0].min()) >= 0
    asked = terse.metrics()["extra_forwards"]
    assert (asked == 0) if name == "fasterrcnn" else (asked == 4)


@pytest.mark.parametrize("at", [2, 3])
def test_what_was_heard_is_saved_also_between_two_lessons(tiny_bank: ForegroundBank, at: int) -> None:
    def train(terse: Terse, first: int, end: int) -> list[list[int]]:
        drawn = []
        for step in range(first, end):
            _, targets = terse(*make_batch(step, objects=0))
            drawn += [[paste.index for paste in pastes] for pastes in terse.pastes]
            terse.observe([(target["labels"] == 2).float() * 0.9 for target in targets])
            terse.step(1.0)
        return drawn

    whole, begun, resumed = (
        Terse(tiny_bank, "random", paste=every_image(objects=(3, 3)), sampler="loss") for _ in range(3)
    )
    expected = train(whole, 0, 6)
    before = train(begun, 0, at)
    resumed.load_state_dict(begun.state_dict())
    assert before + train(resumed, at, 6) == expected
    assert torch.equal(resumed.state_dict()["sampler.known"], whole.state_dict()["sampler.known"])
    with pytest.raises(RuntimeError, match=r"sampler.*: the state is of a bank with other classes"):
        Terse(tiny_bank.select([0]), "random", sampler="loss").load_state_dict(begun.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*sampler\.known"):
        Terse(tiny_bank, "random").load_state_dict(begun.state_dict())


def test_somebody_has_to_say_how_hard_it_was(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, "random", paste=every_image(), sampler="loss")
    terse(*make_batch())
    with pytest.raises(
        ValueError, match=r"sampler 'loss' learns from hardness: give Terse\(target=detector\), or call"
    ):
        terse.step(1.0)


class Weighing(Sampler):
    """One with parameters and a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(2, 1)
        self.register_buffer("mean", torch.zeros(3))
        self.count = 0

    def draw(self, demand: DrawRequest, generator: torch.Generator) -> list[int]:
        self.count += 1
        return [0] * (demand.pastes * demand.foreground_candidates)

    def state(self) -> dict[str, torch.Tensor]:
        return {"count": torch.tensor(self.count)}

    def load_state(self, state: Any) -> None:
        self.count = int(state["count"])


def test_a_sampler_of_ones_own_may_have_parameters(tiny_bank: ForegroundBank) -> None:
    first, second = (Terse(tiny_bank, "random", paste=every_image(), sampler=Weighing()) for _ in range(2))
    first.sampler.mean.fill_(4)
    first(*make_batch())
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.sampler.net.weight, first.sampler.net.weight)
    assert second.sampler.mean.tolist() == [4, 4, 4]
    assert second.sampler.count == 1
    with pytest.raises(RuntimeError, match=r"Unexpected.*sampler\.other"):
        second.load_state_dict(first.state_dict() | {"sampler.other": torch.zeros(1)})

"""Policy ``critic``: how it chooses, and that it learns what is hard."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import (
    RampLoss,
    every_image,
    make_bank,
    make_batch,
    make_detector,
    make_terse,
    observe_hardness,
    parameters_of,
    train_step,
    white_disc,
)
from torch import Tensor
from torch.nn import functional as F

from terse_aug import PARAMETERS, ForegroundBank, Terse
from terse_aug.policies import Critic, CriticPolicy, PolicyContext, Proposal, Views
from terse_aug.policies.base import BOX_NUMBERS, VIEW_SHAPE
from terse_aug.policies.critic import hardness_log_odds
from terse_aug.utils.random import generator_for

TRANSLATE_X = PARAMETERS.index("translate_x")
OTHERS = [column for column in range(len(PARAMETERS)) if column != TRANSLATE_X]


def make_context(pastes: int) -> PolicyContext:
    """A context whose views are the candidates' own parameters."""

    def views(unit: Tensor) -> Views:
        numbers = F.pad(unit, (0, len(PARAMETERS) + BOX_NUMBERS - unit.shape[-1]))
        return Views(torch.zeros(()).expand(*unit.shape[:2], *VIEW_SHAPE), numbers)

    return PolicyContext(torch.zeros(pastes, dtype=torch.long), 1, torch.ones(pastes, dtype=torch.long), views=views)


class HardnessIsTranslateX(torch.nn.Module):
    """A network for which a paste is the harder, the farther to the right it lies."""

    def forward(self, views: Views) -> Tensor:
        return torch.logit(views.numbers[..., TRANSLATE_X, None], eps=1e-6)


def knowing_policy(**settings: Any) -> CriticPolicy:
    policy = CriticPolicy(Critic(**({"candidates": 4, "temperature": 1e-4, "target_hardness": 1.0} | settings)))
    policy.network = HardnessIsTranslateX()  # type: ignore[assignment]  # a stand-in
    return policy


def test_before_it_has_learned_it_is_the_random_policy() -> None:
    proposal = CriticPolicy(Critic(candidates=2)).propose(make_context(2000), generator_for(0), learning=False)
    assert proposal.log_density.abs().max() < 1e-5
    assert (proposal.unit.mean(0) - 0.5).abs().max() < 0.03
    assert (proposal.unit.std(0) - 12**-0.5).abs().max() < 0.02


def test_a_candidate_is_chosen_with_probability_odds_to_one_over_temperature() -> None:
    policy = knowing_policy(candidates=2, temperature=0.7)
    proposal = policy.propose(make_context(20_000), generator_for(0), learning=False)
    # E of the chosen value, for two uniform candidates weighted by their odds, by brute force.
    pairs = torch.rand(2, 200_000, generator=generator_for(1))
    weights = (pairs / (1 - pairs)) ** (1 / 0.7)
    expected = (pairs * weights).sum(0) / weights.sum(0)
    assert float(proposal.unit[:, TRANSLATE_X].mean()) == pytest.approx(float(expected.mean()), abs=0.01)
    assert (proposal.unit[:, OTHERS].mean(0) - 0.5).abs().max() < 0.01


@pytest.mark.parametrize("foreground_candidates", [1, 3])
def test_fixed_parameters_stay_random(foreground_candidates: int) -> None:
    policy = knowing_policy(fixed_parameters=("translate_x", "scale"), foreground_candidates=foreground_candidates)
    proposal = policy.propose(make_context(4000 * foreground_candidates), generator_for(0), learning=False)
    assert float(proposal.unit[:, TRANSLATE_X].mean()) == pytest.approx(0.5, abs=0.02)


def test_near_temperature_zero_the_hardest_candidate_of_the_hardest_foreground_is_chosen() -> None:
    policy = knowing_policy(candidates=3, foreground_candidates=4, fixed_parameters=())
    context = dataclasses.replace(make_context(20), labels=torch.arange(20) // 4)
    proposal = policy.propose(context, generator_for(0), learning=True)
    units = torch.rand(3, 5, 4, len(PARAMETERS), generator=generator_for(0))
    place = units[..., TRANSLATE_X]
    foreground, candidate = place.amax(0).argmax(1), place.amax(2).argmax(0)
    assert torch.equal(proposal.unit, units[candidate, torch.arange(5), foreground])
    assert proposal.rows is not None
    assert proposal.rows.tolist() == (torch.arange(5) * 4 + foreground).tolist()
    assert [len(part) for part in proposal.replay_data] == [5] * 4
    assert proposal.replay_data[3].tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(proposal.replay_data[2], place.amax((0, 2)))


@pytest.mark.parametrize(("target", "mean"), [(0.0, 0.5), (0.3, 0.5), (0.6, 0.6), (0.7, 0.7), (1.0, 0.8)])
def test_it_chooses_no_more_sharply_than_the_target_hardness_needs(target: float, mean: float) -> None:
    """Predicted hardness is the place, uniform; at the sharpest the mean of the best of four is 0.8."""
    policy = knowing_policy(temperature=1e-3, target_hardness=target)
    proposal = policy.propose(make_context(20_000), generator_for(0), learning=False)
    assert float(proposal.unit[:, TRANSLATE_X].mean()) == pytest.approx(mean, abs=0.01)
    if mean == 0.5:
        assert proposal.log_density.abs().max() < 1e-5
    assert (proposal.unit[:, OTHERS].std(0) - 12**-0.5).abs().max() < 0.01


def train_on_place(terse: Terse, steps: int) -> list[float]:
    """What lies in the right half is hard; returns where the pastes were, as fractions of the width."""
    places = []
    for step in range(steps):
        images, targets = terse(*make_batch(step, sizes=((64, 64),) * 4, objects=0))
        assert not any(image.requires_grad for image in images)
        across = [target["boxes"][:, [0, 2]].mean(1) / 64 for target in targets]
        terse.observe([(own > 0.5).float() * 0.8 + 0.1 for own in across])
        terse.step(1.0)
        places += torch.cat(across).tolist()
    return places


def test_it_predicts_the_hardness_of_random_pastes_of_several_classes(tmp_path: Path) -> None:
    """Of those that it chooses nearly all are hard, and a correlation would mean little."""
    bank = make_bank(tmp_path, [dataclasses.replace(white_disc(), label=label) for label in (1, 2, 7)])
    settings: dict[str, Any] = {"target_hardness": 0.0, "learning_rate": 5e-3, "candidates": 2, "replay_updates": 2}
    terse = make_terse(bank, "critic", paste=every_image(objects=(2, 2)), **settings)
    train_on_place(terse, 40)
    state = {name: value for name, value in terse.state_dict().items() if "average/" not in name}
    terse.load_state_dict(state)  # the running average begins after learning
    train_on_place(terse, 5)
    assert terse.metrics()["predicted_hardness_correlation"] > 0.9


def test_it_learns_what_is_hard_from_values_alone_and_stays_diverse(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"target_hardness": 1.0, "learning_rate": 5e-3, "candidates": 4, "replay_updates": 2}
    terse = make_terse(make_bank(tmp_path, [white_disc()]), "critic", paste=every_image(objects=(2, 2)), **settings)
    places = torch.tensor(train_on_place(terse, 36))
    metrics = terse.metrics()
    assert metrics["updates"] == 36
    assert metrics["extra_forwards"] == 0
    assert 0.3 < float((places[:32] > 0.5).float().mean()) < 0.7
    assert float((places[-60:] > 0.5).float().mean()) > 0.8
    # Half of random pastes lie in the right half, where they are hard.
    assert 0.2 < metrics["hardness_gain"] < 0.6
    assert metrics["std_ratio/translate_y"] > 0.85
    assert metrics["std_ratio/rotation"] > 0.85


@pytest.mark.parametrize(("classes", "mix_classes"), [(1, False), (2, True), (2, False)])
def test_it_learns_which_foregrounds_are_hard(tmp_path: Path, classes: int, mix_classes: bool) -> None:
    """Of two foregrounds, of one class or of two, the grey one is hard."""
    grey = dataclasses.replace(white_disc(), label=classes)
    grey.rgba[..., :3] = 128
    bank = make_bank(tmp_path, [white_disc(), grey])
    settings: dict[str, Any] = {"foreground_candidates": 4, "candidates": 1, "target_hardness": 1.0}
    settings |= {"mix_classes": mix_classes, "learning_rate": 1e-2, "replay_updates": 2}
    terse = make_terse(bank, "critic", paste=every_image(objects=(2, 2)), **settings)
    greys = []
    for step in range(24):
        _, targets = terse(*make_batch(step, sizes=((64, 64),) * 4, objects=0))
        hardness = [torch.full((len(target["boxes"]),), 0.1) for target in targets]
        for own, target, pastes in zip(hardness, targets, terse.pastes, strict=True):
            for paste in pastes:
                assert paste.label == bank.labels[paste.index]
                if paste.row is not None:
                    assert target["labels"][paste.row] == paste.label
                    own[paste.row] = 0.9 if paste.index == 1 else 0.1
                    greys.append(paste.index == 1)
        terse.observe(hardness)
        terse.step(1.0)
    assert sum(greys[:24]) < 18
    late = sum(greys[-60:])
    assert late > 51 if classes == 1 or mix_classes else 18 < late < 42


@pytest.mark.parametrize("random_fallback", [False, True])
def test_with_several_foregrounds_to_choose_from_numbers_and_classes_are_as_with_one(
    tiny_bank: ForegroundBank, random_fallback: bool
) -> None:
    paste = every_image(objects=(2, 2))
    terse = make_terse(tiny_bank, "critic", paste=paste, foreground_candidates=5, update_interval=2, candidates=2)
    terse(*make_batch(0))
    if random_fallback:
        with pytest.warns(UserWarning, match="the loss is nan"):
            terse.step(float("nan"))
    counts: Counter[int] = Counter()
    for seed in range(15):
        terse(*make_batch(seed, sizes=((64, 80), (72, 64)) * 2))
        assert [len(pastes) for pastes in terse.pastes] == [2] * 4
        for own in (paste for pastes in terse.pastes for paste in pastes):
            assert tiny_bank.labels[own.index] == own.label
            counts[own.index] += 1
    for label in set(tiny_bank.labels.tolist()):
        drawn = sum(count for index, count in counts.items() if tiny_bank.labels[index] == label) / 120
        assert drawn == pytest.approx(float((tiny_bank.labels == label).mean()), abs=0.15)
    assert len(counts) == len(tiny_bank)


def test_accumulated_batches_are_all_learned_from_and_hardness_goes_to_the_batch_that_it_is_of(
    tiny_bank: ForegroundBank,
) -> None:
    """Nothing is pasted on the last batch, which has as many objects as the others."""
    terse = make_terse(tiny_bank, "critic", paste=every_image(objects=(1, 1)))
    for value in (0.2, 0.6):
        _, targets = terse(*make_batch(int(10 * value), objects=0))
        observe_hardness(terse, targets, value)
    images, targets = make_batch(1, objects=1)
    with pytest.warns(UserWarning, match="NaN or infinity"):
        _, targets = terse([torch.full_like(image, float("nan")) for image in images], targets)
    observe_hardness(terse, targets, 0.9)
    terse.step(1.0)
    state = terse.policy.state_dict()
    assert terse.metrics()["updates"] == 1
    assert int(state["replay_count"]) == 4
    assert state["replay_hardness"][:4].tolist() == pytest.approx([0.2, 0.2, 0.6, 0.6])


def test_it_costs_the_detector_no_graph_and_has_no_discriminator(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank, "critic", model=make_detector("fasterrcnn"))
    assert terse.trainer.updater.discriminator is None
    with torch.no_grad():
        terse(*make_batch())
    assert terse.metrics()["dropped/graph"] == 0
    images, _ = terse(*make_batch())
    assert not any(image.requires_grad for image in images)
    train_step(terse, RampLoss())
    assert terse.metrics()["updates"] == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_moved_to_another_dtype_it_still_proposes_and_learns(tiny_bank: ForegroundBank, dtype: torch.dtype) -> None:
    terse = make_terse(tiny_bank, "critic", candidates=2, replay_updates=1).to(dtype)
    for seed in range(2):
        _, targets = terse(*make_batch(seed))
        observe_hardness(terse, targets, 0.3)
        terse.step(1.0)
    assert terse.metrics()["updates"] == 2


@pytest.mark.parametrize("trouble", ["hardness", "loss"])
def test_unknown_and_not_finite_hardness_is_not_learned_from(tiny_bank: ForegroundBank, trouble: str) -> None:
    terse = make_terse(tiny_bank, "critic", model=make_detector("fasterrcnn"), update_interval=2)
    before = parameters_of(terse)
    _, targets = terse(*make_batch())
    if trouble == "hardness":
        observe_hardness(terse, targets, float("nan"))
        terse.step(1.0)
    else:
        with pytest.warns(UserWarning, match="the loss is nan"):
            terse.step(float("nan"))
        expected = Terse(tiny_bank, paste=every_image())
        expected(*make_batch())
        assert torch.equal(terse(*make_batch())[0][0], expected(*make_batch())[0][0])  # random until an update
    assert terse.metrics()["skipped_updates"] == int(trouble == "loss")
    assert terse.metrics()["updates"] == terse.metrics()["extra_forwards"] == 0
    assert all(torch.equal(new, old) for new, old in zip(terse.parameters(), before, strict=True))


def replayed(labels: Tensor, levels: Tensor | None = None) -> Proposal:
    """A proposal whose views have the given levels."""
    values = torch.zeros(len(labels)) if levels is None else levels
    proposal = Proposal(torch.zeros(len(labels), len(PARAMETERS)), torch.zeros(len(labels)))
    images = (values * 100).round().to(torch.uint8)[:, None, None, None, None].expand(-1, *VIEW_SHAPE)
    proposal.replay_data = (
        images,
        values[:, None].expand(-1, len(PARAMETERS) + BOX_NUMBERS),
        torch.zeros(len(labels)),
        labels,
    )
    return proposal


@pytest.mark.parametrize("at_once", [1, 2, 6])
def test_the_replay_buffer_overwrites_the_oldest_and_keeps_views_and_hardness_together(at_once: int) -> None:
    policy = CriticPolicy(capacity=4)
    for part in (torch.arange(6) / 10).split(at_once):
        policy.add_to_replay(replayed((part * 10).round().long() % 2, part), part)
    state = policy.state_dict()
    hardness = state["replay_hardness"]
    assert sorted(hardness.tolist()) == pytest.approx([0.2, 0.3, 0.4, 0.5])
    torch.testing.assert_close(state["replay_images"][:, 0, 0, 0, 0] / 100, hardness)
    torch.testing.assert_close(state["replay_numbers"][:, 0], hardness)
    assert state["replay_labels"].tolist() == (hardness * 10).round().long().remainder(2).tolist()


def test_the_replay_loss_is_the_cross_entropy_of_what_is_known() -> None:
    """The classes' where their probabilities are known, else that of the hardness."""
    bias, probabilities = torch.tensor([0.2, -0.4, 1.0]), torch.tensor([[0.5, 0.2, 0.3]])
    log_softmax = bias.log_softmax(0)
    right = float(log_softmax[2].exp())
    of_hardness = -(0.3 * math.log(right) + 0.7 * math.log(1 - right))
    of_classes = float(-(probabilities[0] * log_softmax).sum())
    nothing = torch.full((1, 3), float("nan"))
    for known, expected in ((probabilities, of_classes), (None, of_hardness), (nothing, of_hardness)):
        policy = CriticPolicy(capacity=8, classes=3)
        policy.network.head[-1].bias.data = bias  # predicts the same for everything
        policy.add_to_replay(replayed(torch.tensor([2])), torch.tensor([0.7]), known)
        loss = policy.replay_loss(generator_for(0))
        assert loss is not None
        assert float(loss.detach()) == pytest.approx(expected, abs=1e-6)


def test_log_odds_of_hardness_are_those_of_one_minus_the_softmax_at_the_label() -> None:
    logits = torch.randn(3, 5, 4, generator=generator_for(0), dtype=torch.float64)
    labels = torch.tensor([0, 3, 1, 1, 2])
    hardness = 1 - logits.softmax(-1)[:, torch.arange(5), labels]
    torch.testing.assert_close(hardness_log_odds(logits, labels), torch.logit(hardness))

"""Policy ``critic``: how it chooses, and that it learns what is hard."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import EVERY_IMAGE, RampLoss, every_image, make_bank, make_batch, make_detector, train_step, white_disc
from torch import Tensor
from torch.nn import functional as F

from terse_aug import PARAMETERS, ForegroundBank, PasteConfig, Terse, TransformRanges
from terse_aug.models import ClassifierAdapter
from terse_aug.policies import Critic, CriticPolicy, PolicyContext, Proposal, Views
from terse_aug.policies.base import VIEW_NUMBERS, VIEW_SHAPE
from terse_aug.policies.critic import hardness_log_odds
from terse_aug.utils.random import generator_for

TRANSLATE_X = PARAMETERS.index("translate_x")


def make_context(pastes: int) -> PolicyContext:
    """A scene whose glimpses are the candidates' own parameters."""

    def views(unit: Tensor) -> Views:
        figures = F.pad(unit, (0, VIEW_NUMBERS - unit.shape[-1]))
        return Views(torch.zeros(()).expand(*unit.shape[:2], *VIEW_SHAPE), figures)

    return PolicyContext(torch.zeros(pastes, dtype=torch.long), 1, torch.ones(pastes, dtype=torch.long), views=views)


class Foretell(torch.nn.Module):
    """A critic that holds what lies to the right for hard: hardness is translate_x."""

    def forward(self, views: Views) -> Tensor:
        return torch.logit(views.figures[..., TRANSLATE_X, None], eps=1e-6)


# --- choosing -------------------------------------------------------------------------------------------------------


def test_before_it_has_learned_it_is_the_random_policy() -> None:
    proposal = CriticPolicy(candidates=2).propose(make_context(2000), generator_for(0), learning=False)
    assert proposal.log_density.abs().max() < 1e-5
    assert (proposal.unit.mean(0) - 0.5).abs().max() < 0.03
    assert (proposal.unit.std(0) - 12**-0.5).abs().max() < 0.02


def test_a_candidate_is_chosen_with_probability_odds_to_one_over_temperature() -> None:
    policy = CriticPolicy(candidates=2, temperature=0.7, goal=1.0)
    policy.critic = Foretell()  # type: ignore[assignment]  # a stand-in
    count = 20_000
    proposal = policy.propose(make_context(count), generator_for(0), learning=False)
    # E of the chosen value, for two uniform candidates weighted by their odds, by brute force.
    pairs = torch.rand(2, 200_000, generator=generator_for(1))
    weights = (pairs / (1 - pairs)) ** (1 / 0.7)
    expected = (pairs * weights).sum(0) / weights.sum(0)
    assert float(proposal.unit[:, TRANSLATE_X].mean()) == pytest.approx(float(expected.mean()), abs=0.01)
    others = [column for column in range(len(PARAMETERS)) if column != TRANSLATE_X]
    assert (proposal.unit[:, others].mean(0) - 0.5).abs().max() < 0.01


@pytest.mark.parametrize("foreground_candidates", [1, 3])
def test_what_is_held_stays_as_random_would_have_it(foreground_candidates: int) -> None:
    policy = CriticPolicy(
        candidates=8,
        temperature=1e-4,
        goal=1.0,
        held=("translate_x", "scale"),
        foreground_candidates=foreground_candidates,
    )
    policy.critic = Foretell()  # type: ignore[assignment]  # a stand-in
    proposal = policy.propose(make_context(4000 * foreground_candidates), generator_for(0), learning=False)
    assert float(proposal.unit[:, TRANSLATE_X].mean()) == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match=r"held: expected some of rotation, .*, got size"):
        CriticPolicy(held=("size",))


def test_near_temperature_zero_it_takes_the_hardest_candidate() -> None:
    policy = CriticPolicy(candidates=4, temperature=1e-4, goal=1.0)
    policy.critic = Foretell()  # type: ignore[assignment]  # a stand-in
    proposal = policy.propose(make_context(500), generator_for(0), learning=False)
    candidates = torch.rand(4, 500, len(PARAMETERS), generator=generator_for(0))
    assert torch.equal(proposal.unit[:, TRANSLATE_X], candidates[..., TRANSLATE_X].amax(0))


# --- learning -------------------------------------------------------------------------------------------------------


def disc_terse(folder: Path, **settings: Any) -> Terse:
    bank = make_bank(folder, [white_disc()])
    defaults = EVERY_IMAGE | {"critic_goal": 1.0}
    return Terse(bank, Critic(update_interval=1), paste=PasteConfig(objects=(2, 2)), **(defaults | settings))


def hardness_by_place(images: Any, targets: list[dict[str, Tensor]]) -> list[Tensor]:
    """What lies in the right half is hard."""
    return [
        (target["boxes"][:, [0, 2]].mean(1) > image.shape[-1] / 2).float() * 0.8 + 0.1
        for image, target in zip(images, targets, strict=True)
    ]


def test_it_foretells_the_hardness_of_random_pastes(tmp_path: Path) -> None:
    """Of those that it chooses nearly all are hard, and a correlation would say little."""
    terse = disc_terse(tmp_path, learning_rate=3e-3, critic_goal=0.0)
    for step in range(60):
        images, targets = terse(*make_batch(step, sizes=((64, 64),) * 4, objects=0))
        terse.observe(hardness_by_place(images, targets))
        terse.step(1.0)
    assert terse.metrics()["predicted_hardness_correlation"] > 0.9


def test_it_learns_what_is_hard_from_values_alone_and_stays_diverse(tmp_path: Path) -> None:
    terse = disc_terse(tmp_path, learning_rate=3e-3)
    places = []
    for step in range(60):
        images, targets = terse(*make_batch(step, sizes=((64, 64),) * 4, objects=0))
        assert not any(image.requires_grad for image in images)
        terse.observe(hardness_by_place(images, targets))
        terse.step(1.0)
        places += [float(box[[0, 2]].mean()) / 64 for target in targets for box in target["boxes"]]
    metrics = terse.metrics()
    assert metrics["updates"] == 60
    assert metrics["extra_forwards"] == 0
    first, last = torch.tensor(places[:32]), torch.tensor(places[-120:])
    assert 0.3 < float((first > 0.5).float().mean()) < 0.7
    assert float((last > 0.5).float().mean()) > 0.8
    # Half of random pastes lie in the right half, where they are hard.
    assert 0.2 < metrics["hardness_gain"] < 0.6
    assert metrics["std_ratio/translate_y"] > 0.85
    assert metrics["std_ratio/rotation"] > 0.85


def test_the_target_is_asked_where_nobody_has_told(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("retinanet")  # in whose training nothing is heard
    terse = Terse(tiny_bank, Critic(update_interval=2), paste=every_image(), model=detector)
    before = [parameter.clone() for parameter in terse.parameters()]
    for step in range(4):
        images, targets = terse(*make_batch(step))
        losses = detector(images, targets)
        sum(losses.values()).backward()
        terse.step(losses)
    metrics = terse.metrics()
    assert metrics["updates"] == 2
    assert metrics["extra_forwards"] == 4
    assert 0 <= metrics["hardness"] <= 1
    assert any(not torch.equal(new, old) for new, old in zip(terse.parameters(), before, strict=True))


@pytest.mark.parametrize("policy", [(), ("critic",)])
def test_it_is_the_default_and_without_anybody_to_ask_it_says_so(
    tiny_bank: ForegroundBank, policy: tuple[str, ...]
) -> None:
    terse = Terse(tiny_bank, paste=every_image())
    terse(*make_batch())
    with pytest.raises(ValueError, match=r"'critic' learns from hardness: give Terse\(target=detector\), or call obs"):
        terse.step(1.0)


@pytest.mark.parametrize("policy", ["critic", "adversarial", "random"])
def test_hardness_that_does_not_fit_is_refused(tiny_bank: ForegroundBank, policy: str) -> None:
    terse = Terse(tiny_bank, policy, paste=every_image())
    with pytest.raises(ValueError, match="expected a call of Terse in training mode before"):
        terse.observe([])
    _, targets = terse(*make_batch())
    counts = [len(target["boxes"]) for target in targets]
    with pytest.raises(ValueError, match="expected a tensor for each of 2 images, got 1"):
        terse.observe([torch.zeros(1)])
    with pytest.raises(ValueError, match=rf"hardness of image 1: expected a tensor \[{counts[1]}\].*got \[1, 1\]"):
        terse.observe([torch.zeros(counts[0]), torch.zeros(1, 1)])
    with pytest.raises(ValueError, match=r"expected a tensor .* got list"):
        terse.observe([[0.5], [0.5]])  # type: ignore[list-item]  # wrong on purpose
    with pytest.raises(ValueError, match=r"hardness of image 0: expected values in \[0, 1\], got 7.0 to 7.0"):
        terse.observe([torch.full((count,), 7.0) for count in counts])
    terse.eval()
    terse(*make_batch())
    assert terse.pastes == []
    with pytest.raises(ValueError, match="expected a call of Terse in training mode before"):
        terse.observe([torch.zeros(count) for count in counts])


def test_hardness_goes_to_the_batch_that_it_is_of(tiny_bank: ForegroundBank) -> None:
    """Two batches are accumulated; nothing is pasted on the second, which has as many objects as the first."""
    terse = Terse(tiny_bank, Critic(update_interval=1), paste=every_image(objects=(1, 1)))
    _, targets = terse(*make_batch(0, objects=0))
    terse.observe([torch.full((len(target["boxes"]),), 0.1) for target in targets])
    images, targets = make_batch(1, objects=1)
    images = [torch.full_like(image, float("nan")) for image in images]
    with pytest.warns(UserWarning, match="NaN or infinity"):
        _, targets = terse(images, targets)
    terse.observe([torch.full((len(target["boxes"]),), 0.9) for target in targets])
    terse.step(1.0)
    assert terse.metrics()["updates"] == 1
    assert terse.metrics()["hardness"] == pytest.approx(0.1)


def test_accumulated_batches_are_all_learned_from(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, Critic(update_interval=1), paste=every_image(objects=(1, 1)))
    for value in (0.2, 0.6):
        _, targets = terse(*make_batch(int(10 * value), objects=0))
        terse.observe([torch.full((len(target["boxes"]),), value) for target in targets])
    terse.step(1.0)
    state = terse.policy.state_dict()
    assert int(state["_written"]) == 4
    assert state["_hardness"][:4].tolist() == pytest.approx([0.2, 0.2, 0.6, 0.6])


@pytest.mark.parametrize(("min_visibility", "asked"), [(0.0, 2), (1.0, 0)])
def test_only_images_with_a_labelled_paste_are_asked_about(tmp_path: Path, min_visibility: float, asked: int) -> None:
    """The frame cuts every disc in half, which is enough for a label or not; each image has an object of its own."""

    class Asked:
        first_label, label_limit = 0, None

        def __init__(self) -> None:
            self.batches: list[int] = []

        def object_scores(self, images: Any, targets: Any) -> list[Tensor]:
            self.batches.append(len(images))
            return [torch.full((len(target["boxes"]),), 0.5) for target in targets]

        def image_losses(self, images: Any, targets: Any, differentiable: bool = False) -> Tensor:
            raise AssertionError

    target, bank = Asked(), make_bank(tmp_path, [white_disc()])
    ranges = TransformRanges(translate_x=(0.0, 0.0), keep_inside=0.0)
    settings: dict[str, Any] = EVERY_IMAGE | {"objects": (1, 1), "min_visibility": min_visibility, "ranges": ranges}
    terse = Terse(bank, Critic(update_interval=1), **settings, model=target)
    terse(*make_batch(objects=0))
    assert all(len(pastes) == 1 for pastes in terse.pastes)
    terse.step(1.0)
    assert target.batches == ([asked] if asked else [])
    assert terse.metrics()["extra_forwards"] == asked


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": 0}, "candidates: expected at least 1, got 0"),
        ({"replay_updates": 0}, "replay_updates: expected at least 1, got 0"),
        ({"capacity": 0}, "capacity: expected at least 1, got 0"),
        ({"classes": 1}, "classes: expected at least 2, got 1"),
        ({"temperature": 0.0}, "temperature: expected a value above 0, got 0"),
    ],
)
def test_a_critic_refuses_numbers_outside_their_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CriticPolicy(**changes)


@pytest.mark.parametrize("held", ["scale", ("size",)])
def test_a_setting_that_names_no_parameter_is_refused(tiny_bank: ForegroundBank, held: Any) -> None:
    with pytest.raises(ValueError, match="critic_held: expected a list of some of rotation"):
        Terse(tiny_bank, "random")


def test_an_unknown_hardness_teaches_nothing(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, Critic(update_interval=1), paste=every_image())
    before = [parameter.clone() for parameter in terse.parameters()]
    _, targets = terse(*make_batch())
    terse.observe([torch.full((len(target["boxes"]),), float("nan")) for target in targets])
    terse.step(1.0)
    assert terse.metrics()["updates"] == 0
    assert all(torch.equal(new, old) for new, old in zip(terse.parameters(), before, strict=True))


def test_a_loss_that_is_not_finite_teaches_nothing_and_pastes_at_random(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    terse = Terse(tiny_bank, Critic(update_interval=2), paste=every_image(), model=detector)
    terse(*make_batch())
    with pytest.warns(UserWarning, match="the loss is nan"):
        terse.step(float("nan"))
    assert terse.metrics()["skipped_updates"] == 1
    assert terse.metrics()["extra_forwards"] == 0
    expected = Terse(tiny_bank, "random", paste=every_image())
    expected(*make_batch())
    assert torch.equal(terse(*make_batch())[0][0], expected(*make_batch())[0][0])


@pytest.mark.parametrize("at_once", [1, 2, 6])
def test_the_memory_forgets_the_oldest_and_keeps_picture_and_hardness_together(at_once: int) -> None:
    policy = CriticPolicy(capacity=4)
    values = torch.arange(6) / 10
    for part in values.split(at_once):
        proposal = Proposal(torch.zeros(len(part), len(PARAMETERS)), torch.zeros(len(part)))
        levels = (part * 100).round().to(torch.uint8)
        pictures = levels[:, None, None, None, None].expand(-1, *VIEW_SHAPE)
        labels = (part * 10).round().long() % 2
        proposal.replay_data = (pictures, part[:, None].expand(-1, VIEW_NUMBERS), torch.zeros(len(part)), labels)
        policy.add_to_replay(proposal, part)
    state = policy.state_dict()
    hardness = state["_hardness"]
    assert sorted(hardness.tolist()) == pytest.approx([0.2, 0.3, 0.4, 0.5])
    torch.testing.assert_close(state["_pictures"][:, 0, 0, 0, 0] / 100, hardness)
    torch.testing.assert_close(state["_figures"][:, 0], hardness)
    assert state["_labels"].tolist() == (hardness * 10).round().long().remainder(2).tolist()


def test_a_policy_that_learns_from_hardness_costs_the_detector_no_graph(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, Critic(update_interval=1), paste=every_image(), model=make_detector("fasterrcnn"))
    with torch.no_grad():
        terse(*make_batch())
    assert terse.metrics()["dropped/graph"] == 0
    images, _ = terse(*make_batch())
    assert not any(image.requires_grad for image in images)
    train_step(terse, RampLoss())
    assert terse.metrics()["updates"] == 1


def test_there_is_no_discriminator_where_none_is_used(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, Critic(discriminator_weight=0.5))
    assert terse.trainer.updater.discriminator is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_moved_to_another_dtype_it_still_proposes_and_learns(tiny_bank: ForegroundBank, dtype: torch.dtype) -> None:
    terse = Terse(tiny_bank, Critic(update_interval=1), paste=every_image()).to(dtype)
    for seed in range(2):
        _, targets = terse(*make_batch(seed))
        terse.observe([torch.full((len(target["boxes"]),), 0.3) for target in targets])
        terse.step(1.0)
    assert terse.metrics()["updates"] == 2


# --- chances of all classes -----------------------------------------------------------------------------------------


def test_log_odds_of_hardness_are_those_of_one_minus_the_softmax_at_the_label() -> None:
    logits = torch.randn(3, 5, 4, generator=generator_for(0), dtype=torch.float64)
    labels = torch.tensor([0, 3, 1, 1, 2])
    hardness = 1 - logits.softmax(-1)[:, torch.arange(5), labels]
    torch.testing.assert_close(hardness_log_odds(logits, labels), torch.logit(hardness))


def remembering(policy: CriticPolicy, labels: Tensor, hardness: Tensor, class_probabilities: Tensor | None) -> float:
    """The cross-entropy of a fresh memory; the critic foretells the same for everything."""
    count = len(labels)
    proposal = Proposal(torch.zeros(count, len(PARAMETERS)), torch.zeros(count))
    pictures = torch.zeros(count, *VIEW_SHAPE, dtype=torch.uint8)
    proposal.replay_data = (pictures, torch.zeros(count, VIEW_NUMBERS), torch.zeros(count), labels)
    policy.add_to_replay(proposal, hardness, class_probabilities)
    objective = policy.replay_loss(generator_for(0))
    assert objective is not None
    return float(objective.detach())


def test_what_is_rehearsed_is_the_cross_entropy_of_what_was_told() -> None:
    bias = torch.tensor([0.2, -0.4, 1.0])
    expected_log = bias.log_softmax(0)
    labels, told = torch.tensor([2]), torch.tensor([[0.5, 0.2, 0.3]])

    def policy() -> CriticPolicy:
        made = CriticPolicy(capacity=8, classes=3)
        last = made.critic.judge[-1]
        assert isinstance(last, torch.nn.Linear)
        last.bias.data = bias
        return made

    every = remembering(policy(), labels, torch.tensor([0.7]), told)
    assert every == pytest.approx(float(-(told[0] * expected_log).sum()), abs=1e-6)
    right = float(expected_log[2].exp())
    binary = -(0.3 * math.log(right) + 0.7 * math.log(1 - right))
    assert remembering(policy(), labels, torch.tensor([0.7]), None) == pytest.approx(binary, abs=1e-6)
    unknown = torch.full((1, 3), float("nan"))
    assert remembering(policy(), labels, torch.tensor([0.7]), unknown) == pytest.approx(binary, abs=1e-6)


def test_chances_are_the_target_s_and_reach_the_memory_by_either_way(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, [white_disc()])
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 5))
    target = ClassifierAdapter(model, classes=5)
    settings: dict[str, Any] = EVERY_IMAGE | {"objects": (1, 1), "move_every": 1}
    asked, told = (Terse(bank, "critic", **settings, model=target) for _ in range(2))
    batch = make_batch(sizes=((32, 32),) * 3, objects=1)
    asked(*batch)
    asked.step(1.0)
    images, targets = told(*batch)
    told.observe(class_probabilities=target.class_probabilities(list(images), targets))
    told.step(1.0)
    assert asked.metrics()["extra_forwards"] == 3
    assert told.metrics()["extra_forwards"] == 0
    expected = model(torch.stack(list(images))).softmax(1)
    labels = asked.policy.state_dict()["_labels"][:3]
    torch.testing.assert_close(asked.policy.state_dict()["_chances"][:3], expected)
    assert labels.tolist() == [1, 1, 1]
    for name, value in asked.policy.state_dict().items():
        assert torch.equal(value, told.policy.state_dict()[name]), name


class FiveClasses(ClassifierAdapter):
    """A target that tells whatever it was made to tell."""

    def __init__(self, told: Tensor | None = None) -> None:
        super().__init__(torch.nn.Flatten(), classes=5)
        self.told = told

    def class_probabilities(self, images: Any, targets: Any) -> list[Tensor]:
        assert self.told is not None
        return [self.told.expand(len(target["labels"]), -1) for target in targets]


def test_chances_that_do_not_fit_are_refused(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, "critic", paste=every_image(), model=FiveClasses())
    _, targets = terse(*make_batch())
    rows = [torch.full((len(target["boxes"]), 5), 0.2) for target in targets]
    with pytest.raises(ValueError, match="expected either hardness or chances, got neither"):
        terse.observe()
    with pytest.raises(ValueError, match="expected either hardness or chances, got both"):
        terse.observe([own[:, 0] for own in rows], class_probabilities=rows)
    with pytest.raises(ValueError, match=r"chances of image 0: expected a tensor \[\d, 5\], the probabilities of all"):
        terse.observe(class_probabilities=[own[:, :2] for own in rows])
    with pytest.raises(ValueError, match=r"chances of image 1: expected values in \[0, 1\], got -1.0"):
        terse.observe(class_probabilities=[rows[0], rows[1] - 1.2])
    with pytest.raises(ValueError, match=r"chances of image 0: expected rows that sum to 1, got sums \[0.5"):
        terse.observe(class_probabilities=[own / 2 for own in rows])
    terse.observe(class_probabilities=rows)
    for told, message in ((torch.full((4,), 0.25), r"expected a tensor \[\d, 5\]"), (torch.zeros(5), "sum to 1")):
        asking = Terse(tiny_bank, Critic(update_interval=1), paste=every_image(), model=FiveClasses(told))
        asking(*make_batch())
        with pytest.raises(ValueError, match=f"class_probabilities of image 0: .*{message}"):
            asking.step(1.0)


def test_without_a_target_that_tells_chances_they_are_taken_for_hardness(tiny_bank: ForegroundBank) -> None:
    """The host's own objects may have classes that no cut-out has, and labels that stand for nothing."""
    terse = Terse(tiny_bank, Critic(update_interval=1), paste=every_image())
    images, targets = make_batch()
    targets = [
        target | {"labels": torch.full_like(target["labels"], label)}
        for target, label in zip(targets, (-1, 9), strict=True)
    ]
    _, targets = terse(images, targets)
    row = torch.tensor([0.05, 0.3, 0.3, *[0.05] * 7])  # the bank has labels 1 and 2
    terse.observe(class_probabilities=[row.expand(len(target["boxes"]), -1) for target in targets])
    terse.step(1.0)
    assert terse.metrics()["updates"] == 1
    assert terse.metrics()["hardness"] == pytest.approx(0.7)
    assert terse.policy.classes is None


def test_with_many_classes_it_learns_from_hardness_as_with_one(tmp_path: Path) -> None:
    """Only a score is told: the network does not have to know what it looks at to foretell that it is hard."""
    foregrounds = [dataclasses.replace(white_disc(), label=label) for label in (1, 2, 7)]
    bank = make_bank(tmp_path, foregrounds)
    terse = Terse(
        bank, Critic(update_interval=1, target_hardness=0.0, learning_rate=3e-3), paste=every_image(objects=(2, 2))
    )
    for step in range(60):
        images, targets = terse(*make_batch(step, sizes=((64, 64),) * 4, objects=0))
        terse.observe(hardness_by_place(images, targets))
        terse.step(1.0)
    assert terse.metrics()["predicted_hardness_correlation"] > 0.9


def test_a_policy_made_for_other_classes_is_refused(tiny_bank: ForegroundBank) -> None:
    with pytest.raises(ValueError, match=r"chances of 2 classes, but .* none and the bank's labels go up to 2"):
        Terse(tiny_bank, CriticPolicy(classes=2))
    with pytest.raises(ValueError, match="chances of 3 classes, but the target tells those of 5"):
        Terse(tiny_bank, CriticPolicy(classes=3), model=FiveClasses())
    assert Terse(tiny_bank, "critic", model=FiveClasses()).policy.classes == 5
    assert Terse(tiny_bank, "critic", model=make_detector("fasterrcnn")).policy.classes is None


# --- choosing among cut-outs ----------------------------------------------------------------------------------------


def test_of_several_cut_outs_the_hardest_is_taken_and_its_row_is_said() -> None:
    policy = CriticPolicy(candidates=3, temperature=1e-4, foreground_candidates=4, goal=1.0)
    policy.critic = Foretell()  # type: ignore[assignment]  # a stand-in
    scene = dataclasses.replace(make_context(20), labels=torch.arange(20) // 4)
    proposal = policy.propose(scene, generator_for(0), learning=True)
    units = torch.rand(3, 5, 4, len(PARAMETERS), generator=generator_for(0))
    place = units[..., TRANSLATE_X]
    offer, candidate = place.amax(0).argmax(1), place.amax(2).argmax(0)
    assert torch.equal(proposal.unit, units[candidate, torch.arange(5), offer])
    assert proposal.rows is not None
    assert proposal.rows.tolist() == (torch.arange(5) * 4 + offer).tolist()
    assert [len(part) for part in proposal.replay_data] == [5] * 4
    assert proposal.replay_data[3].tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(proposal.replay_data[2], place.amax((0, 2)))


@pytest.mark.parametrize(("goal", "mean"), [(0.0, 0.5), (0.3, 0.5), (0.6, 0.6), (0.7, 0.7), (1.0, 0.8)])
def test_it_chooses_no_more_sharply_than_the_goal_takes(goal: float, mean: float) -> None:
    """Foretold hardness is the place, uniform; at the sharpest the mean of the best of four is 0.8."""
    policy = CriticPolicy(candidates=4, temperature=1e-3, goal=goal)
    policy.critic = Foretell()  # type: ignore[assignment]  # a stand-in
    proposal = policy.propose(make_context(20_000), generator_for(0), learning=False)
    assert float(proposal.unit[:, TRANSLATE_X].mean()) == pytest.approx(mean, abs=0.01)
    if mean == 0.5:
        assert proposal.log_density.abs().max() < 1e-5
    others = [column for column in range(len(PARAMETERS)) if column != TRANSLATE_X]
    assert (proposal.unit[:, others].std(0) - 12**-0.5).abs().max() < 0.01


@pytest.mark.parametrize("goal", [-0.1, 1.5])
def test_a_goal_that_is_no_hardness_is_refused(goal: float, tiny_bank: ForegroundBank) -> None:
    with pytest.raises(ValueError, match=r"^goal: expected a hardness in \[0, 1\]"):
        CriticPolicy(goal=goal)
    with pytest.raises(ValueError, match=r"critic_goal: expected a hardness in \[0, 1\]"):
        Terse(tiny_bank, "random")


def test_classes_to_choose_from_need_cut_outs_to_choose_from(tiny_bank: ForegroundBank) -> None:
    with pytest.raises(ValueError, match="critic_any_class: expected critic_cutouts above 1"):
        Terse(tiny_bank, Critic(mix_classes=True))


@pytest.mark.parametrize("random_fallback", [False, True])
def test_with_several_cut_outs_to_choose_from_numbers_and_classes_are_as_with_one(
    tiny_bank: ForegroundBank, random_fallback: bool
) -> None:
    settings: dict[str, Any] = EVERY_IMAGE | {"objects": (2, 2), "move_every": 2, "critic_candidates": 2}
    terse = Terse(tiny_bank, Critic(foreground_candidates=5), **settings)
    terse(*make_batch(0))
    if random_fallback:
        with pytest.warns(UserWarning, match="the loss is nan"):
            terse.step(float("nan"))
    counts: Counter[int] = Counter()
    for seed in range(15):
        terse(*make_batch(seed, sizes=((64, 80), (72, 64)) * 2))
        assert [len(pastes) for pastes in terse.pastes] == [2] * 4
        for pastes in terse.pastes:
            for paste in pastes:
                assert tiny_bank.labels[paste.index] == paste.label
                counts[paste.index] += 1
    share = {label: float((tiny_bank.labels == label).mean()) for label in set(tiny_bank.labels.tolist())}
    for label, expected in share.items():
        drawn = sum(count for index, count in counts.items() if tiny_bank.labels[index] == label) / 120
        assert drawn == pytest.approx(expected, abs=0.15)
    assert len(counts) == len(tiny_bank)


@pytest.mark.parametrize(("classes", "mix_classes"), [(1, False), (1, True), (2, True), (2, False)])
def test_it_learns_which_cut_outs_are_hard(tmp_path: Path, classes: int, mix_classes: bool) -> None:
    """Of two cut-outs, of one class or of two, the grey one is hard."""
    grey = dataclasses.replace(white_disc(), label=classes)
    grey.rgba[..., :3] = 128
    bank = make_bank(tmp_path, [white_disc(), grey])
    terse = Terse(
        bank,
        Critic(foreground_candidates=4, candidates=1, target_hardness=1.0, mix_classes=mix_classes, learning_rate=3e-3),
        **(EVERY_IMAGE | {"objects": (2, 2), "move_every": 1}),
    )
    greys = []
    for step in range(40):
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
    late = sum(greys[-100:])
    assert late > 85 if classes == 1 or mix_classes else 30 < late < 70

"""Policies: what they propose, what they learn, and the formulas behind it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from factories import EVERY_IMAGE, RampLoss, every_image, make_bank, make_batch, make_detector, policy_with, white_disc
from torch import Tensor, nn

from terse_aug import PARAMETERS, ForegroundBank, PasteConfig, Terse, TerseWarning, TransformRanges
from terse_aug.models import TorchvisionAdapter
from terse_aug.policies import (
    POLICIES,
    AdversarialPolicy,
    BestOfN,
    BestOfNPolicy,
    PaperPolicy,
    Policy,
    PolicyContext,
    Proposal,
    RandomPolicy,
    divergence_from_uniform,
    uniform_proposal,
)
from terse_aug.policies.adversarial import _log_density

TRANSLATE_X = PARAMETERS.index("translate_x")


def make_context(seed: int = 0, images: int = 2, pastes: int = 5) -> PolicyContext:
    generator = torch.Generator().manual_seed(seed)
    return PolicyContext(
        image_of=torch.arange(pastes) * images // pastes,
        image_count=images,
        labels=torch.ones(pastes, dtype=torch.long),
        backgrounds=torch.rand(images, 4, 32, 32, generator=generator),
        foregrounds=torch.rand(pastes, 4, 32, 32, generator=generator),
        base_size=torch.rand(pastes, 2, generator=generator),
    )


def disturbed_policy(temperature: float = 0.3, dropout: float = 0.0, size: float = 0.3) -> AdversarialPolicy:
    """A learned policy whose regressor is not at zero, so that its distribution is not uniform."""
    policy = AdversarialPolicy(seed=0, temperature=temperature, dropout=dropout)
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.synthesizer.regressor.parameters():
        parameter.data.copy_(size * torch.randn(parameter.shape, generator=generator))
    return policy


def smooth_loss(unit: Tensor) -> Tensor:
    """A loss of each paste ``[M]`` that depends on every parameter."""
    weights = torch.linspace(0.5, 2.0, unit.shape[1], dtype=unit.dtype)
    return (torch.sin(3 * unit) * weights).sum(1)


# --- every policy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_policy_proposes_one_point_of_the_unit_cube_per_paste_and_repeats_itself(
    name: str, tiny_bank: ForegroundBank
) -> None:
    terse = Terse(tiny_bank, name, paste=every_image(), model=make_detector("fasterrcnn"))
    first, second = (terse.compose(*make_batch(), seed=3) for _ in range(2))
    units = torch.stack([paste.unit for pastes in first.pastes for paste in pastes])
    assert units.shape[1] == len(PARAMETERS)
    assert units.min() >= 0
    assert units.max() <= 1
    again = torch.stack([paste.unit for pastes in second.pastes for paste in pastes])
    assert torch.equal(units, again)


@pytest.mark.parametrize("policy", [RandomPolicy(), AdversarialPolicy(0)], ids=["random", "adversarial"])
@pytest.mark.parametrize("learning", [False, True])
def test_a_scene_without_pastes_gets_an_empty_proposal(policy: Policy, learning: bool) -> None:
    scene = make_context(pastes=0)
    proposal = policy.propose(scene, torch.Generator(), learning)
    assert proposal.unit.shape == (0, len(PARAMETERS))


@pytest.mark.parametrize("name", ["random", "best-of-n"])
def test_policies_that_do_not_learn_have_no_parameters(name: str, tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, name, model=make_detector("fasterrcnn"))
    assert list(terse.parameters()) == []


def test_a_new_policy_is_one_class(tiny_bank: ForegroundBank) -> None:
    class Corner(Policy):
        def propose(self, scene: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
            unit = torch.zeros(len(scene.image_of), len(PARAMETERS))
            return Proposal(unit, torch.zeros(len(unit)))

    terse = Terse(tiny_bank, Corner(), paste=every_image())
    composites = terse.compose(*make_batch())
    assert all(float(paste.unit.sum()) == 0 for pastes in composites.pastes for paste in pastes)


def test_an_unknown_policy_is_refused_with_the_names_of_all(tiny_bank: ForegroundBank) -> None:
    with pytest.raises(
        ValueError,
        match=r"expected one of \['critic', 'deterministic', 'hard-random', 'learned', 'random'.*got 'lerned'",
    ):
        Terse(tiny_bank, "lerned")


# --- hard-random ----------------------------------------------------------------------------------------------------


def test_hard_random_picks_for_each_image_the_candidate_with_the_largest_loss(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    images, targets = make_batch(sizes=((64, 64), (64, 80), (80, 64)))
    settings: dict[str, Any] = {**EVERY_IMAGE, "candidates": 4}
    hard = Terse(tiny_bank, "best-of-n", **settings, model=detector).compose(images, targets, seed=5)
    losses = TorchvisionAdapter(detector).image_losses(hard.images, hard.targets)

    drawn: list[Tensor] = []

    class Nth(Policy):
        """The nth of the candidates that hard-random drew."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def propose(self, scene: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
            proposals = [uniform_proposal(len(scene.image_of), generator, torch.device("cpu")) for _ in range(4)]
            return proposals[self.number]

    for number in range(4):
        candidate = Terse(tiny_bank, Nth(number), **settings).compose(images, targets, seed=5)
        drawn.append(TorchvisionAdapter(detector).image_losses(candidate.images, candidate.targets))
    assert torch.equal(losses, torch.stack(drawn).amax(0))
    assert (torch.stack(drawn).amax(0) > torch.stack(drawn).amin(0)).all()


def test_hard_random_never_picks_a_candidate_whose_loss_is_not_finite() -> None:
    losses = iter([torch.tensor([math.nan, 1.0]), torch.tensor([0.5, math.inf])])
    scene = PolicyContext(
        torch.tensor([0, 1]), 2, torch.ones(2, dtype=torch.long), detector_loss=lambda unit: next(losses)
    )
    picked = BestOfNPolicy(2).propose(scene, torch.Generator().manual_seed(0), False).unit
    generator = torch.Generator().manual_seed(0)
    first, second = (uniform_proposal(2, generator, torch.device("cpu")).unit for _ in range(2))
    assert torch.equal(picked, torch.stack([second[0], first[1]]))


def test_hard_random_counts_the_detector_forwards_that_it_makes(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    forwards = []
    detector.register_forward_pre_hook(lambda module, inputs: forwards.append(len(inputs[0])))
    terse = Terse(
        tiny_bank, BestOfN(candidates=3), paste=PasteConfig(paste_probability=0.5, decoys=(0, 0)), model=detector
    )
    for seed in range(4):
        terse(*make_batch(seed, sizes=((64, 64),) * 3))
    assert 0 < terse.metrics()["composites"] < 12
    assert terse.metrics()["extra_forwards"] == sum(forwards) == 3 * terse.metrics()["composites"]


def test_hard_random_counts_no_image_that_shows_no_paste(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    forwards = []
    detector.register_forward_pre_hook(lambda module, inputs: forwards.append(len(inputs[0])))
    terse = Terse(tiny_bank, "best-of-n", paste=every_image(min_side=20, objects=(1, 1)), model=detector)
    with pytest.warns(TerseWarning, match="below min_side"):
        terse(*make_batch(sizes=((64, 64),) * 12))
    assert terse.metrics()["dropped/paste_too_small"] > 0
    assert 0 < terse.metrics()["extra_forwards"] == sum(forwards) < 2 * 12


def test_hard_random_without_a_target_is_refused(tiny_bank: ForegroundBank) -> None:
    with pytest.raises(ValueError, match="'hard-random' asks the detector: give Terse"):
        Terse(tiny_bank, "best-of-n")
    with pytest.raises(ValueError, match="asks the detector"):
        Terse(tiny_bank, "random").compose(*make_batch(), policy="best-of-n")


# --- learned: the formulas ------------------------------------------------------------------------------------------


def test_at_the_start_the_learned_policy_is_exactly_uniform() -> None:
    scene = make_context()
    proposal = AdversarialPolicy(0).propose(scene, torch.Generator().manual_seed(3), False)
    uniform = uniform_proposal(5, torch.Generator().manual_seed(3), torch.device("cpu"))
    torch.testing.assert_close(proposal.unit, uniform.unit, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(proposal.log_density, torch.zeros(5), rtol=0, atol=1e-5)


def test_the_divergence_equals_numerical_integration_is_not_negative_and_zero_for_uniform() -> None:
    x = torch.linspace(-400, 400, 400_001, dtype=torch.float64)
    for location in (-3.0, -1.0, 0.0, 0.5, 2.0):
        for log_spread in (-1.5, -0.5, 0.0, 0.7, 1.5):
            standard = (x - location) / math.exp(log_spread)
            log_q = -nn.functional.softplus(standard) - nn.functional.softplus(-standard) - log_spread
            log_u = -nn.functional.softplus(x) - nn.functional.softplus(-x)
            exact = float(torch.trapezoid(log_q.exp() * (log_q - log_u), x))
            got = float(divergence_from_uniform(torch.tensor(location), torch.tensor(log_spread)))
            assert got == pytest.approx(exact, rel=2e-3, abs=1e-3)
            assert got > -1e-3
    assert float(divergence_from_uniform(torch.zeros(()), torch.zeros(()))) == 0


def test_the_uniform_distribution_is_the_minimum_of_the_divergence() -> None:
    point = torch.zeros(2, requires_grad=True)
    divergence_from_uniform(point[0], point[1]).backward()
    assert point.grad is not None
    assert float(point.grad.abs().max()) < 1e-4


def test_the_density_integrates_to_one() -> None:
    points = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    points = (points[1:] + points[:-1]) / 2
    for location, log_spread in ((0.0, 0.0), (1.0, -0.5), (-2.0, 0.3)):
        parameters = (torch.full((len(points), 1), value, dtype=torch.float64) for value in (location, log_spread))
        density = _log_density(torch.logit(points)[:, None], *parameters).exp()
        assert float(density.mean()) == pytest.approx(1, abs=2e-3)


def test_the_density_of_a_proposal_is_that_of_its_noise_over_the_derivative_of_the_map() -> None:
    """log q(p) = log p(noise) - log |dp / dnoise|, with the derivative from autograd."""
    policy, scene = disturbed_policy(), make_context()
    proposal = policy.propose(scene, torch.Generator().manual_seed(2), True)
    location, log_spread = (leaf.detach().double() for leaf in proposal.leaves)
    uniform = torch.rand(5, len(PARAMETERS), generator=torch.Generator().manual_seed(2))
    noise = torch.logit(uniform.double()).requires_grad_()
    point = torch.sigmoid(location + log_spread.exp() * noise)
    (derivative,) = torch.autograd.grad(point.sum(), noise)
    log_noise = torch.nn.functional.logsigmoid(noise) + torch.nn.functional.logsigmoid(-noise)
    expected = (log_noise - derivative.log()).sum(1).detach()
    torch.testing.assert_close(proposal.unit.detach().double(), point.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(proposal.log_density.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_gradient_of_the_objective_is_that_of_expected_loss_and_divergence(dropout: float) -> None:
    """Against finite differences of mean(-L + tau KL) for the same noise, through the whole synthesizer."""
    policy, scene = disturbed_policy(temperature=0.7, dropout=dropout, size=0.1), make_context()

    def propose() -> Proposal:
        return policy.propose(scene, torch.Generator().manual_seed(4), True)

    def value() -> float:
        proposal = propose()
        divergence = divergence_from_uniform(*(output.double() for output in proposal.outputs)).sum(1)
        return float((-smooth_loss(proposal.unit.double()) + 0.7 * divergence).mean())

    proposal = propose()
    smooth_loss(proposal.unit).sum().backward()
    gradients = tuple(leaf.grad for leaf in proposal.leaves if leaf.grad is not None)
    policy.objective(proposal, gradients).backward()
    synthesizer = policy.synthesizer
    for parameter in (synthesizer.regressor.bias, synthesizer.hidden.bias, synthesizer.low_level[0][0].weight):
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
        step = 1e-2 * direction / direction.norm()
        with torch.no_grad():
            parameter += step
            above = value()
            parameter -= 2 * step
            below = value()
            parameter += step
        assert float((parameter.grad * step).sum()) == pytest.approx((above - below) / 2, rel=0.02, abs=2e-6)


def test_learning_draws_the_same_transforms_as_not_learning() -> None:
    policy, scene = disturbed_policy(), make_context()
    units = [policy.propose(scene, torch.Generator().manual_seed(1), learning).unit for learning in (False, True)]
    assert torch.equal(units[0], units[1].detach())


def test_dropout_is_inverted_and_drawn_from_the_generator_alone() -> None:
    policy = disturbed_policy(dropout=0.25)
    masks = [policy._dropout_mask(200, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert masks[0] is not None
    assert masks[1] is not None
    assert masks[2] is not None
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert masks[0].unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(masks[0].mean()) == pytest.approx(1, abs=0.02)


# --- learned: the game ----------------------------------------------------------------------------------------------


def play(
    bank: ForegroundBank, temperature: float, steps: int = 60, policy: str = "adversarial", seed: int = 0
) -> tuple[Terse, Tensor]:
    """Play against the ramp; returns the module and transforms proposed at the end, ``[n, P]``."""
    ranges = TransformRanges(rotation=(0, 0), shear=(0, 0), scale=(1, 1), scale_x=(1, 1), scale_y=(1, 1))
    settings: dict[str, Any] = {"ranges": ranges, "temperature": temperature, "move_every": 1, "learning_rate": 5e-3}
    terse = Terse(bank, policy, paste=every_image(objects=(2, 2)), **settings, seed=seed)
    detector = RampLoss()
    _, targets = make_batch(sizes=((32, 32),) * 4, objects=0)
    grey = [torch.full((3, 32, 32), 0.25)] * 4  # nothing in the background pulls anywhere
    for _ in range(steps):
        losses = detector(*terse(grey, targets))
        losses["loss_ramp"].backward()
        terse.step(losses)
    found = [terse.compose(grey, targets, seed=seed) for seed in range(8)]
    return terse, torch.stack([paste.unit for one in found for pastes in one.pastes for paste in pastes])


@pytest.fixture(scope="module")
def white_bank(tmp_path_factory: pytest.TempPathFactory) -> ForegroundBank:
    return make_bank(tmp_path_factory.mktemp("white"), [white_disc()])


def test_with_low_temperature_the_learned_policy_moves_to_where_the_loss_is_high(white_bank: ForegroundBank) -> None:
    # Nothing pulls at y, which wanders from seed to seed and with the processor's rounding; their mean does so less.
    units = [play(white_bank, temperature=0.05, seed=seed)[1] for seed in range(4)]
    unit = torch.cat(units)
    for found in (units[0], unit):
        assert float(found[:, TRANSLATE_X].mean()) > 0.75
        assert float(found[:, TRANSLATE_X].std()) < 0.8 * math.sqrt(1 / 12)
    assert abs(float(unit[:, PARAMETERS.index("translate_y")].mean()) - 0.5) < 0.15


def test_the_deterministic_policy_moves_to_where_the_loss_is_high_and_collapses(white_bank: ForegroundBank) -> None:
    terse, unit = play(white_bank, temperature=0.1, policy="paper")
    assert float(unit[:, TRANSLATE_X].mean()) > 0.85
    assert terse.metrics()["diversity"] < 0.35
    assert float(unit[:, TRANSLATE_X].std()) < 0.02


def test_dropout_is_all_that_varies_the_deterministic_policy() -> None:
    scene = make_context()
    for dropout, varies in ((0.0, False), (0.5, True)):
        policy = PaperPolicy(0, dropout)
        generator = torch.Generator().manual_seed(1)
        for parameter in policy.synthesizer.regressor.parameters():
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        first, second = (policy.propose(scene, torch.Generator().manual_seed(seed), False).unit for seed in (0, 1))
        assert torch.equal(first, second) is not varies


def test_with_high_temperature_the_learned_policy_stays_uniform(white_bank: ForegroundBank) -> None:
    terse, unit = play(white_bank, temperature=1000.0)
    assert abs(float(unit[:, TRANSLATE_X].mean()) - 0.5) < 0.1
    assert terse.metrics()["diversity"] == pytest.approx(1, abs=0.1)


def test_the_gradient_is_that_of_an_image_whatever_the_batch_size(white_bank: ForegroundBank) -> None:
    """The same image once and four times: the mean loss has a quarter of the gradient per image."""
    moments = []
    for copies in (1, 4):
        terse = Terse(
            white_bank, policy_with(HalfWay(), kl_weight=0.0, max_gradient_norm=1e9), paste=every_image(objects=(1, 1))
        )
        images, targets = make_batch(sizes=((32, 32),), objects=0)
        losses = RampLoss()(*terse(images * copies, targets * copies))
        losses["loss_ramp"].backward()
        terse.step(losses)
        moments.append(terse.state_dict()["adversary.policy_optimizer.exp_avg_0"])
    assert float(moments[0].abs().max()) > 0
    torch.testing.assert_close(moments[0], moments[1], rtol=1e-3, atol=1e-7)


class HalfWay(Policy):
    """One shared point of the cube, moved by the gradient: learning with nothing random in it."""

    learns = True

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.full((len(PARAMETERS),), 0.5))

    def propose(self, scene: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        points = self.point.expand(len(scene.image_of), -1)
        leaf = points.detach().clone().requires_grad_(learning)
        return Proposal(leaf, torch.zeros(len(leaf)), *(((leaf,), (points,)) if learning else ()))

    def objective(self, proposal: Proposal, gradients: tuple[Tensor, ...]) -> Tensor:
        return -(gradients[0] * proposal.outputs[0]).sum() / len(proposal.unit)


def test_a_policy_asked_for_by_name_is_the_one_in_use_and_never_an_untrained_one(tiny_bank: ForegroundBank) -> None:
    learned = Terse(tiny_bank, "adversarial", paste=PasteConfig(paste_probability=1.0))
    with torch.no_grad():
        learned.policy.synthesizer.regressor.bias.fill_(2.0)  # type: ignore[union-attr]  # a synthesizer's
    named, own, random = (learned.compose(*make_batch(), policy=policy) for policy in ("adversarial", None, "random"))
    for image, same, other in zip(named.images, own.images, random.images, strict=True):
        assert torch.equal(image, same)
        assert not torch.equal(image, other)
    with pytest.raises(ValueError, match="'learned' has learned nothing here"):
        Terse(tiny_bank, "random").compose(*make_batch(), policy="adversarial")

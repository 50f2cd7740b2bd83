"""Policies: what they propose, what they learn, and the formulas behind it."""

from __future__ import annotations

import math

import pytest
import torch
from factories import RampLoss, backward, every_image, make_bank, make_batch, make_detector, policy_with, white_disc
from torch import Tensor, nn

from terse_aug import PARAMETERS, ForegroundBank, PasteConfig, Terse, TerseWarning, TransformRanges
from terse_aug.models import TorchvisionAdapter
from terse_aug.policies import (
    Adversarial,
    AdversarialPolicy,
    BestOfN,
    BestOfNPolicy,
    MatchedPolicy,
    Paper,
    PaperPolicy,
    Policy,
    PolicyContext,
    Proposal,
    RandomPolicy,
    divergence_from_uniform,
    uniform_proposal,
)
from terse_aug.policies.real_objects import RealObjects

TRANSLATE_X, TRANSLATE_Y = PARAMETERS.index("translate_x"), PARAMETERS.index("translate_y")
CPU = torch.device("cpu")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_context(images: int = 2, pastes: int = 5) -> PolicyContext:
    generator = seeded(0)
    return PolicyContext(
        image_of=torch.arange(pastes) * images // max(pastes, 1),
        image_count=images,
        labels=torch.ones(pastes, dtype=torch.long),
        backgrounds=torch.rand(images, 4, 32, 32, generator=generator),
        foregrounds=torch.rand(pastes, 4, 32, 32, generator=generator),
        base_size=torch.rand(pastes, 2, generator=generator),
        boxes=lambda unit: torch.rand(*unit.shape[:2], 4, generator=generator),
        real=RealObjects(torch.rand(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)),
    )


def disturb(policy: AdversarialPolicy, size: float = 0.3) -> AdversarialPolicy:
    """Move the regressor away from zero, so that the distribution is not uniform."""
    generator = seeded(1)
    for parameter in policy.synthesizer.regressor.parameters():
        parameter.data.copy_(size * torch.randn(parameter.shape, generator=generator))
    return policy


def disturbed_policy(kl_weight: float = 0.3, dropout: float = 0.0, size: float = 0.3) -> AdversarialPolicy:
    return disturb(AdversarialPolicy(Adversarial(kl_weight=kl_weight, dropout=dropout)), size)


@pytest.mark.parametrize("name", ["random", "matched", "best-of-n", "critic", "adversarial", "paper"])
def test_a_policy_proposes_one_point_of_the_unit_cube_per_paste_and_repeats_itself(
    name: str, tiny_bank: ForegroundBank
) -> None:
    terse = Terse(tiny_bank, name, paste=every_image(), model=make_detector("fasterrcnn"))
    units = [
        torch.stack([paste.unit for pastes in terse.compose(*make_batch(), seed=3).pastes for paste in pastes])
        for _ in range(2)
    ]
    assert units[0].shape[1] == len(PARAMETERS)
    assert 0 <= units[0].min() <= units[0].max() <= 1
    assert torch.equal(*units)


@pytest.mark.parametrize("policy", [RandomPolicy(), MatchedPolicy(), AdversarialPolicy(), PaperPolicy()])
@pytest.mark.parametrize("learning", [False, True])
def test_a_context_without_pastes_gets_an_empty_proposal(policy: Policy, learning: bool) -> None:
    assert policy.propose(make_context(pastes=0), torch.Generator(), learning).unit.shape == (0, len(PARAMETERS))


def test_a_new_policy_is_one_class(tiny_bank: ForegroundBank) -> None:
    class Corner(Policy):
        def propose(self, context: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
            unit = torch.zeros(len(context.image_of), len(PARAMETERS))
            return Proposal(unit, torch.zeros(len(unit)))

    composites = Terse(tiny_bank, Corner(), paste=every_image()).compose(*make_batch())
    assert all(float(paste.unit.sum()) == 0 for pastes in composites.pastes for paste in pastes)


def test_best_of_n_picks_for_each_image_the_candidate_with_the_largest_loss(tiny_bank: ForegroundBank) -> None:
    class Nth(Policy):
        """The nth of the candidates that best-of-n drew."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def propose(self, context: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
            return [uniform_proposal(len(context.image_of), generator) for _ in range(4)][self.number]

    detector = make_detector("fasterrcnn")
    batch = make_batch(sizes=((64, 64), (64, 80), (80, 64)))
    losses = []
    for policy in (BestOfN(candidates=4), *map(Nth, range(4))):
        found = Terse(tiny_bank, policy, paste=every_image(), model=detector).compose(*batch, seed=5)
        losses.append(TorchvisionAdapter(detector).image_losses(found.images, found.targets))
    chosen, candidates = losses[0], torch.stack(losses[1:])
    assert torch.equal(chosen, candidates.amax(0))
    assert (candidates.amax(0) > candidates.amin(0)).all()


def test_best_of_n_never_picks_a_candidate_whose_loss_is_not_finite() -> None:
    losses = iter([torch.tensor([math.nan, 1.0]), torch.tensor([0.5, math.inf])])
    context = PolicyContext(
        torch.tensor([0, 1]), 2, torch.ones(2, dtype=torch.long), detector_loss=lambda unit: next(losses)
    )
    picked = BestOfNPolicy(BestOfN(candidates=2)).propose(context, seeded(0), False).unit
    generator = seeded(0)
    first, second = (uniform_proposal(2, generator, CPU).unit for _ in range(2))
    assert torch.equal(picked, torch.stack([second[0], first[1]]))


def test_best_of_n_counts_forwards_and_makes_none_for_an_image_without_pastes(tiny_bank: ForegroundBank) -> None:
    """Of some images nothing is drawn, of others every paste is too small to be visible."""
    detector = make_detector("fasterrcnn")
    forwards: list[int] = []
    detector.register_forward_pre_hook(lambda module, inputs: forwards.append(len(inputs[0])))
    paste = PasteConfig(objects=(1, 1), paste_probability=0.6, decoys=(0, 0), min_side=20)
    terse = Terse(tiny_bank, BestOfN(candidates=3), paste=paste, model=detector)
    with pytest.warns(TerseWarning, match="below min_side"):
        terse(*make_batch(sizes=((64, 64),) * 12))
    metrics = terse.metrics()
    assert metrics["dropped/paste_too_small"] > 0
    assert 0 < metrics["extra_forwards"] == sum(forwards) < 3 * (12 - 1)
    assert metrics["composites"] < 12


def test_best_of_n_without_a_model_is_refused(tiny_bank: ForegroundBank) -> None:
    with pytest.raises(ValueError, match="'best-of-n' needs forwards of the detector: give Terse"):
        Terse(tiny_bank, "best-of-n")
    with pytest.raises(ValueError, match="needs forwards of the detector"):
        Terse(tiny_bank).compose(*make_batch(), policy="best-of-n")


def test_at_the_start_the_adversarial_policy_is_exactly_uniform() -> None:
    proposal = AdversarialPolicy().propose(make_context(), seeded(3), False)
    torch.testing.assert_close(proposal.unit, uniform_proposal(5, seeded(3), CPU).unit, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(proposal.log_density, torch.zeros(5), rtol=0, atol=1e-5)


def test_the_divergence_equals_numerical_integration_and_is_least_for_uniform() -> None:
    x = torch.linspace(-400, 400, 200_001, dtype=torch.float64)
    for location in (-3.0, -1.0, 0.0, 0.5, 2.0):
        for log_spread in (-1.5, -0.5, 0.0, 0.7, 1.5):
            standard = (x - location) / math.exp(log_spread)
            log_q = -nn.functional.softplus(standard) - nn.functional.softplus(-standard) - log_spread
            log_u = -nn.functional.softplus(x) - nn.functional.softplus(-x)
            exact = float(torch.trapezoid(log_q.exp() * (log_q - log_u), x))
            got = float(divergence_from_uniform(torch.tensor(location), torch.tensor(log_spread)))
            assert got == pytest.approx(exact, rel=2e-3, abs=1e-3)
            assert got > -1e-3
    uniform = torch.zeros(2, requires_grad=True)
    divergence = divergence_from_uniform(uniform[0], uniform[1])
    divergence.backward()
    assert float(divergence.detach()) == 0
    assert uniform.grad is not None
    assert float(uniform.grad.abs().max()) < 1e-4


def test_the_density_of_a_proposal_is_that_of_its_noise_over_the_derivative_of_the_map() -> None:
    """log q(p) = log p(noise) - log |dp / dnoise|, with the derivative from autograd."""
    proposal = disturbed_policy().propose(make_context(), seeded(2), True)
    location, log_spread = (leaf.detach().double() for leaf in proposal.leaves)
    uniform = torch.rand(5, len(PARAMETERS), generator=seeded(2))
    noise = torch.logit(uniform.double()).requires_grad_()
    point = torch.sigmoid(location + log_spread.exp() * noise)
    (derivative,) = torch.autograd.grad(point.sum(), noise)
    log_noise = nn.functional.logsigmoid(noise) + nn.functional.logsigmoid(-noise)
    expected = (log_noise - derivative.log()).sum(1).detach()
    torch.testing.assert_close(proposal.unit.detach().double(), point.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(proposal.log_density.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_gradient_of_the_objective_is_that_of_expected_loss_and_divergence(dropout: float) -> None:
    """Against finite differences of mean(-L + kl_weight * KL) for the same noise, through the whole synthesizer."""
    policy, context = disturbed_policy(kl_weight=0.7, dropout=dropout, size=0.1), make_context()

    def smooth_loss(unit: Tensor) -> Tensor:
        weights = torch.linspace(0.5, 2.0, unit.shape[1], dtype=unit.dtype)
        return (torch.sin(3 * unit) * weights).sum(1)

    def value() -> float:
        proposal = policy.propose(context, seeded(4), True)
        divergence = divergence_from_uniform(*(output.double() for output in proposal.outputs)).sum(1)
        return float((-smooth_loss(proposal.unit.double()) + 0.7 * divergence).mean())

    proposal = policy.propose(context, seeded(4), True)
    smooth_loss(proposal.unit).sum().backward()
    gradients = tuple(leaf.grad for leaf in proposal.leaves if leaf.grad is not None)
    policy.objective(proposal, gradients).backward()
    synthesizer = policy.synthesizer
    for parameter in (synthesizer.regressor.bias, synthesizer.hidden.bias, synthesizer.low_level[0][0].weight):
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, generator=seeded(5))
        step = 1e-2 * direction / direction.norm()
        with torch.no_grad():
            parameter += step
            above = value()
            parameter -= 2 * step
            below = value()
            parameter += step
        assert float((parameter.grad * step).sum()) == pytest.approx((above - below) / 2, rel=0.02, abs=2e-6)


def test_learning_draws_the_same_transforms_as_not_learning() -> None:
    policy, context = disturbed_policy(), make_context()
    units = [policy.propose(context, seeded(1), learning).unit for learning in (False, True)]
    assert torch.equal(units[0], units[1].detach())


def test_dropout_is_inverted_and_drawn_from_the_generator_alone() -> None:
    policy = disturbed_policy(dropout=0.25)
    first, second, other = (policy._dropout_mask(200, seeded(seed)) for seed in (1, 1, 2))
    assert first is not None
    assert second is not None
    assert other is not None
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(first.mean()) == pytest.approx(1, abs=0.02)


def test_dropout_is_all_that_varies_the_policy_of_the_paper() -> None:
    for dropout, varies in ((0.0, False), (0.5, True)):
        policy = disturb(PaperPolicy(Paper(dropout=dropout)))
        first, second = (policy.propose(make_context(), seeded(seed), False).unit for seed in (0, 1))
        assert torch.equal(first, second) is not varies


PLACES = TransformRanges(rotation=(0, 0), shear=(0, 0), scale=(1, 1), scale_x=(1, 1), scale_y=(1, 1))


def grey_batch(count: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Nothing in the background pulls anywhere."""
    return [torch.full((3, 32, 32), 0.25)] * count, make_batch(sizes=((32, 32),) * count, objects=0)[1]


def play(
    bank: ForegroundBank, policy: str, kl_weight: float = 0.0, seed: int = 0, iterations: int = 30
) -> tuple[Terse, Tensor]:
    """Play against the ramp; returns the module and transforms proposed at the end, ``[n, P]``."""
    settings = policy_with(policy, kl_weight=kl_weight, update_interval=1, learning_rate=1e-2)
    terse = Terse(bank, settings, paste=every_image(objects=(2, 2), ranges=PLACES), seed=seed)
    detector = RampLoss()
    for _ in range(iterations):
        terse.step(backward(detector(*terse(*grey_batch(4)))))
    found = [terse.compose(*grey_batch(4), seed=number) for number in range(8)]
    return terse, torch.stack([paste.unit for one in found for pastes in one.pastes for paste in pastes])


@pytest.fixture(scope="module")
def white_bank(tmp_path_factory: pytest.TempPathFactory) -> ForegroundBank:
    return make_bank(tmp_path_factory.mktemp("white"), [white_disc()])


def test_with_low_kl_weight_the_adversarial_policy_moves_to_where_the_loss_is_high(white_bank: ForegroundBank) -> None:
    """Along y nothing pulls: where a policy ends there depends on rounding, so the pull itself is checked."""
    units = [play(white_bank, "adversarial", kl_weight=0.05, seed=seed, iterations=60)[1] for seed in range(3)]
    for unit in units:
        assert float(unit[:, TRANSLATE_X].mean()) > 0.75
        assert float(unit[:, TRANSLATE_X].std()) < 0.8 * math.sqrt(1 / 12)
    across, down = (float(torch.cat(units)[:, column].mean()) - 0.5 for column in (TRANSLATE_X, TRANSLATE_Y))
    assert abs(down) < across

    terse = Terse(white_bank, Adversarial(), paste=every_image(objects=(1, 1), ranges=PLACES))
    RampLoss()(*terse(*grey_batch(256)))["loss_ramp"].backward()
    (pending,) = terse.trainer.feedback.batches
    gradient = pending.proposal.leaves[0].grad
    assert gradient is not None
    standard_errors = gradient.mean(0) / (gradient.std(0) / math.sqrt(len(gradient)))
    assert float(standard_errors[TRANSLATE_X]) > 4
    assert abs(float(standard_errors[TRANSLATE_Y])) < 2


def test_the_policy_of_the_paper_moves_to_where_the_loss_is_high_and_collapses(white_bank: ForegroundBank) -> None:
    terse, unit = play(white_bank, "paper")
    assert float(unit[:, TRANSLATE_X].mean()) > 0.85
    assert terse.metrics()["diversity"] < 0.35
    assert float(unit[:, TRANSLATE_X].std()) < 0.02


def test_with_high_kl_weight_the_adversarial_policy_stays_uniform(white_bank: ForegroundBank) -> None:
    terse, unit = play(white_bank, "adversarial", kl_weight=1000.0)
    assert abs(float(unit[:, TRANSLATE_X].mean()) - 0.5) < 0.1
    assert terse.metrics()["diversity"] == pytest.approx(1, abs=0.1)


class HalfWay(Policy):
    """One shared point of the cube, moved by the gradient: learning with nothing random in it."""

    learns = True
    max_gradient_norm = 1e9

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.full((len(PARAMETERS),), 0.5))

    def propose(self, context: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        points = self.point.expand(len(context.image_of), -1)
        leaf = points.detach().clone().requires_grad_(learning)
        return Proposal(leaf, torch.zeros(len(leaf)), *(((leaf,), (points,)) if learning else ()))

    def objective(self, proposal: Proposal, gradients: tuple[Tensor, ...]) -> Tensor:
        return -(gradients[0] * proposal.outputs[0]).sum() / len(proposal.unit)


def test_the_gradient_is_that_of_an_image_whatever_the_batch_size(white_bank: ForegroundBank) -> None:
    """The same image once and four times: the mean loss has a quarter of the gradient per image."""
    moments = []
    for copies in (1, 4):
        terse = Terse(white_bank, HalfWay(), paste=every_image(objects=(1, 1)))
        terse.step(backward(RampLoss()(*terse(*grey_batch(copies)))))
        moments.append(terse.state_dict()["trainer.updater.policy_optimizer.exp_avg_0"])
    assert float(moments[0].abs().max()) > 0
    torch.testing.assert_close(moments[0], moments[1], rtol=1e-3, atol=1e-7)

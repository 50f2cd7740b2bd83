"""``Terse``: the loop in its docstring, and what it leaves alone."""

from __future__ import annotations

import copy
import gc
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import (
    EIGHT_BIT,
    EVERY_IMAGE,
    KEYPOINTS,
    RampLoss,
    all_equal,
    make_batch,
    make_detector,
    make_foreground,
    parameters_of,
    train_step,
)
from torch import Tensor, nn

from terse_aug import Composites, ForegroundBank, Terse, TerseConfig, TerseWarning
from terse_aug.bank import BankWriter
from terse_aug.policies import POLICIES, AdversarialPolicy, PolicyContext

LEARNED: dict[str, Any] = {"policy": "learned", "move_every": 1, **EVERY_IMAGE}
ALL = sorted(POLICIES)


def make_terse(bank: ForegroundBank, policy: str = "learned", **settings: Any) -> Terse:
    return Terse(bank, policy, target=make_detector("fasterrcnn"), **{**EVERY_IMAGE, "move_every": 1, **settings})


def policy_gradient(terse: Terse) -> list[Tensor]:
    """The gradient of the only move that was made: Adam's first moment is a tenth of it."""
    assert terse.metrics()["moves"] == 1
    state = terse.adversary.state_dict()
    names = sorted(name for name in state if name.startswith("policy_optimizer.exp_avg_") and "sq" not in name)
    return [10 * state[name] for name in names]


def assert_gradients_close(first: list[Tensor], second: list[Tensor]) -> None:
    scale = max(float(gradient.abs().max()) for gradient in second)
    assert scale > 0
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * scale)


# --- what it returns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ALL)
def test_training_mode_pastes_and_labels_what_it_pastes(tiny_bank: ForegroundBank, policy: str) -> None:
    terse = make_terse(tiny_bank, policy)
    images, targets = make_batch(masks=True)
    composites, corrected = terse(images, targets)
    assert all(a.shape == b.shape and not torch.equal(a, b) for a, b in zip(images, composites, strict=True))
    pasted = terse.metrics()["objects_labelled"] - terse.metrics()["dropped/occluded"]
    assert sum(len(target["boxes"]) for target in corrected) == 2 + pasted
    assert all(target["boxes"].shape[0] == target["masks"].shape[0] for target in corrected)


def test_evaluation_mode_passes_batches_through_unchanged(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank).eval()
    images, targets = make_batch()
    before = copy.deepcopy(terse.state_dict())
    composites, corrected = terse(images, targets)
    assert all(a is b for a, b in zip(images, composites, strict=True))
    assert all(a is b for a, b in zip(targets, corrected, strict=True))
    stacked = torch.stack([images[0], images[0]])
    assert terse(stacked, targets)[0] is stacked
    assert all(torch.equal(value, before[name]) for name, value in terse.state_dict().items() if "averages" not in name)


def test_a_stacked_batch_comes_back_stacked_and_equal_to_the_list(tiny_bank: ForegroundBank) -> None:
    images, targets = make_batch(sizes=((64, 64), (64, 64)))
    as_list, _ = make_terse(tiny_bank)(images, targets)
    stacked, _ = make_terse(tiny_bank)(torch.stack(images), targets)
    assert isinstance(stacked, Tensor)
    assert torch.equal(stacked, torch.stack(list(as_list)))


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("discriminator_weight", [0.0, 0.5])
def test_inputs_are_never_modified(tiny_bank: ForegroundBank, policy: str, discriminator_weight: float) -> None:
    terse = make_terse(tiny_bank, policy, discriminator_weight=discriminator_weight, decoys=(1, 1))
    images, targets = make_batch(masks=True, objects=2)
    targets[0]["boxes"][0, 0] = -3.0  # has to be mended
    targets[0]["ids"] = torch.tensor([4, 5])
    kept_images, kept_targets = copy.deepcopy(images), copy.deepcopy(targets)
    with pytest.warns(TerseWarning, match="more than a pixel beyond the image: clipped"):
        terse(images, targets)
    terse.compose(images, targets)
    assert all_equal(images, kept_images)
    for target, kept in zip(targets, kept_targets, strict=True):
        assert target.keys() == kept.keys()
        assert all(torch.equal(target[name], kept[name]) for name in target)


# --- randomness -----------------------------------------------------------------------------------------------------


def run(terse: Terse, steps: int = 3) -> list[Tensor]:
    """Composites of a few iterations of training."""
    detector, seen = RampLoss(), []
    for seed in range(steps):
        images, targets = terse(*make_batch(seed))
        seen += [image.detach().clone() for image in images] + [target["boxes"] for target in targets]
        losses = detector(images, targets)
        losses["loss_ramp"].backward()
        terse.step(losses)
    return seen


@pytest.mark.parametrize("policy", ALL)
def test_the_same_seed_gives_the_same_composites_and_another_seed_others(
    tiny_bank: ForegroundBank, policy: str
) -> None:
    first, second, other = (run(make_terse(tiny_bank, policy, seed=seed)) for seed in (1, 1, 2))
    assert all_equal(first, second)
    assert not all_equal(first, other)


def test_each_call_draws_anew(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank, "random")
    first, _ = terse(*make_batch())
    second, _ = terse(*make_batch())
    assert not all_equal(list(first), list(second))


@pytest.mark.parametrize("policy", ALL)
def test_the_global_random_state_is_neither_read_nor_moved(tiny_bank: ForegroundBank, policy: str) -> None:
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002

    detector = make_detector("fasterrcnn")
    seen = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = states()
        terse = Terse(tiny_bank, policy, target=detector, discriminator_weight=0.5, dropout=0.3, **EVERY_IMAGE)
        seen.append(run(terse))
        terse.compose(*make_batch())
        terse.metrics()
        assert states() == before
    assert all_equal(*seen)


def test_seeding_inside_leaves_the_generators_of_accelerators_alone(
    tiny_bank: ForegroundBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.manual_seed would also seed every CUDA device, without putting it back."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("CUDA was seeded"))
    terse = make_terse(tiny_bank, "hard-random")
    terse(*make_batch())
    make_terse(tiny_bank, discriminator_weight=0.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_random_state_is_left_alone_and_the_policy_moves(tiny_bank: ForegroundBank) -> None:
    device = torch.device("cuda")
    terse = make_terse(tiny_bank, discriminator_weight=0.5).to(device)
    detector = RampLoss().to(device)
    before, parameters = torch.cuda.get_rng_state(), parameters_of(terse)
    images, targets = make_batch()
    targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
    images, targets = terse([image.to(device) for image in images], targets)
    losses = detector(images, targets)
    losses["loss_ramp"].backward()
    terse.step(losses)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert not all_equal(parameters_of(terse), parameters)


def test_random_and_learned_begin_with_the_same_composites(tiny_bank: ForegroundBank) -> None:
    """Only the policy differs between arms of a comparison, not what is pasted on which image.

    An iteration that learns is rendered in float, others are in 8 bits, to about a level.
    """
    random_images, _ = make_terse(tiny_bank, "random")(*make_batch())
    learned_images, _ = make_terse(tiny_bank, "learned")(*make_batch())
    for one, other in zip(random_images, learned_images, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=EIGHT_BIT)


# --- compose --------------------------------------------------------------------------------------------------------


def pictures(composites: Composites) -> list[Tensor]:
    return composites.images


@pytest.mark.parametrize("policy", [None, "random", "hard-random", "learned"])
def test_compose_moves_no_state_and_is_a_function_of_its_seed(tiny_bank: ForegroundBank, policy: str | None) -> None:
    terse = make_terse(tiny_bank)
    train_step(terse, RampLoss())
    before, metrics = copy.deepcopy(terse.state_dict()), terse.metrics()
    first, second, other = (terse.compose(*make_batch(), policy=policy, seed=seed) for seed in (1, 1, 2))
    assert all_equal(pictures(first), pictures(second))
    assert not all_equal(pictures(first), pictures(other))
    assert not any(image.requires_grad for image in first.images)
    assert terse.metrics() == metrics
    assert all(torch.equal(value.nan_to_num(), before[name].nan_to_num()) for name, value in terse.state_dict().items())


def test_compose_does_not_change_what_is_pasted_next(tiny_bank: ForegroundBank) -> None:
    plain, asked = make_terse(tiny_bank), make_terse(tiny_bank)
    asked.compose(*make_batch())
    assert all_equal(run(plain), run(asked))


# --- one backward, two players --------------------------------------------------------------------------------------


def test_the_detectors_gradient_is_that_of_the_same_composites_without_a_graph(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank, discriminator_weight=0.5, objects=(2, 2))
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


@pytest.mark.parametrize("move_every", [1, 3])
def test_the_policy_moves_in_every_kth_iteration_and_in_no_other(tiny_bank: ForegroundBank, move_every: int) -> None:
    terse, detector = make_terse(tiny_bank, move_every=move_every), RampLoss()
    for iteration in range(7):
        before = parameters_of(terse)
        images, targets = terse(*make_batch(iteration))
        moves = iteration % move_every == 0
        assert all(image.requires_grad is moves for image in images)
        losses = detector(images, targets)
        losses["loss_ramp"].backward()
        terse.step(losses)
        assert all_equal(before, parameters_of(terse)) is not moves
    assert terse.metrics()["moves"] == len(range(0, 7, move_every))


@pytest.mark.parametrize("policy", ["random", "hard-random"])
def test_policies_that_do_not_learn_leave_composites_without_a_graph(tiny_bank: ForegroundBank, policy: str) -> None:
    terse = make_terse(tiny_bank, policy)
    images, _ = terse(*make_batch())
    assert not any(image.requires_grad for image in images)
    terse.step(1.0)
    assert terse.metrics()["moves"] == terse.metrics()["skipped_moves"] == 0


def test_the_detector_is_no_part_of_terse(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    terse = Terse(tiny_bank, "learned", target=detector)
    mine = {id(parameter) for parameter in detector.parameters()}
    assert not mine & {id(parameter) for parameter in terse.parameters()}
    assert not any(module is detector for module in terse.modules())
    assert not any("roi_heads" in name for name in terse.state_dict())
    terse.eval()
    assert detector.training


def test_loss_scale_is_taken_out_of_the_gradient(tiny_bank: ForegroundBank) -> None:
    gradients = []
    for scale in (1.0, 1024.0):
        terse, detector = make_terse(tiny_bank, max_gradient_norm=1e9), RampLoss()
        losses = detector(*terse(*make_batch()))
        (losses["loss_ramp"] * scale).backward()
        terse.step(losses, loss_scale=scale)
        gradients.append(policy_gradient(terse))
    assert_gradients_close(*gradients)


def accumulated(bank: ForegroundBank, batches: list[int], divide: float = 1.0, loss_scale: float = 1.0) -> list[Tensor]:
    """The gradient of one step after a backward for each of the batches 0, 1, ..."""
    terse, detector = make_terse(bank, max_gradient_norm=1e9), RampLoss()
    total = 0.0
    for number in batches:
        terse.ledger.counts["calls"] = number  # the same random numbers, whether alone or not
        losses = detector(*terse(*make_batch(number, sizes=((64, 64),) * (2 + number))))
        (losses["loss_ramp"] / divide).backward()
        total += float(losses["loss_ramp"].detach())
    terse.step(total, loss_scale)
    return policy_gradient(terse)


@pytest.mark.parametrize(("divide", "loss_scale"), [(1.0, 1.0), (2.0, 0.5)], ids=["summed", "averaged"])
def test_a_step_after_two_backwards_learns_from_both(
    tiny_bank: ForegroundBank, divide: float, loss_scale: float
) -> None:
    both = accumulated(tiny_bank, [0, 1], divide, loss_scale)
    each = [accumulated(tiny_bank, [number]) for number in (0, 1)]
    assert_gradients_close(both, [(one + other) / 2 for one, other in zip(*each, strict=True)])


def test_composites_of_a_whole_accumulation_carry_a_graph(tiny_bank: ForegroundBank) -> None:
    terse, detector = make_terse(tiny_bank, move_every=2), RampLoss()
    for iteration in range(2):
        for part in range(3):
            images, targets = terse(*make_batch(part))
            assert all(image.requires_grad is (iteration == 0) for image in images)
            losses = detector(images, targets)
            losses["loss_ramp"].backward()
        terse.step(losses)
    assert terse.metrics()["moves"] == 1


# --- when the loop is not kept to -----------------------------------------------------------------------------------


def test_without_step_memory_is_bounded_and_it_is_counted_and_said_once(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank)
    for _ in range(64):
        terse(*make_batch(sizes=((32, 32),)))
    with pytest.warns(
        TerseWarning, match=r"called more than 64 times since the last step\(\), .*: call step\(\) after"
    ):
        terse(*make_batch(sizes=((32, 32),)))
    for _ in range(4):
        terse(*make_batch(sizes=((32, 32),)))
    assert len(terse._turns) == 64
    assert terse.metrics()["dropped/graph"] == 5


@pytest.mark.parametrize("policy", ["random", "critic"])
def test_without_step_a_sampler_that_learns_keeps_few_images(tiny_bank: ForegroundBank, policy: str) -> None:
    terse = Terse(tiny_bank, policy, sampler="hardness", **EVERY_IMAGE)
    for _ in range(16):
        terse(*make_batch(sizes=((32, 32),)))
    batch = make_batch(sizes=((32, 32),))
    with pytest.warns(TerseWarning, match=r"called more than 16 times since the last step\(\)"):
        _ = [terse(*batch) for _ in range(2)]
    for _ in range(20):
        terse(*make_batch(sizes=((32, 32),)))
    assert len(terse._turns._unheard) <= 16
    assert terse.metrics()["dropped/graph"] > 0


def test_without_step_few_images_are_kept_to_be_asked_about(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, "critic", **EVERY_IMAGE)
    for _ in range(16):
        terse(*make_batch(sizes=((32, 32),)))
    with pytest.warns(TerseWarning, match=r"called more than 16 times since the last step\(\)"):
        terse(*make_batch(sizes=((32, 32),)))
    for _ in range(4):
        terse(*make_batch(sizes=((32, 32),)))
    assert sum(turn.composites is not None for turn in terse._turns) == 16
    assert terse.metrics()["dropped/graph"] == 5


def test_without_backward_the_move_is_skipped_counted_and_explained(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank)
    before = parameters_of(terse)
    losses = RampLoss()(*terse(*make_batch()))
    with pytest.warns(TerseWarning, match=r"call backward\(\) on the detector's loss before step\(\)"):
        terse.step(losses)
    assert all_equal(before, parameters_of(terse))
    assert terse.metrics()["skipped_moves"] == 1
    assert terse.metrics()["suspended"] == 0
    train_step(terse, RampLoss())
    assert terse.metrics()["moves"] == 1


def test_under_no_grad_it_is_said_that_nothing_can_be_learned(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank)
    with torch.no_grad(), pytest.warns(TerseWarning, match=r"call Terse outside torch\.no_grad\(\)"):
        images, _ = terse(*make_batch())
    assert not any(image.requires_grad for image in images)
    terse.step(1.0)
    assert terse.metrics()["moves"] == 0
    assert terse.metrics()["dropped/graph"] == 1


def test_step_without_forward_does_nothing(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank)
    before = parameters_of(terse)
    terse.step(1.0)
    assert all_equal(before, parameters_of(terse))


@pytest.mark.parametrize("discriminator_weight", [0.0, 0.5])
def test_memory_does_not_grow(tiny_bank: ForegroundBank, discriminator_weight: float) -> None:
    terse, detector = make_terse(tiny_bank, discriminator_weight=discriminator_weight), RampLoss()

    def live_tensors_after(steps: int) -> int:
        for seed in range(steps):
            train_step(terse, detector, seed, sizes=((32, 32),))
        gc.collect()
        return sum(type(thing) is Tensor for thing in gc.get_objects())

    live_tensors_after(3)
    gc.freeze()  # what other tests have left is many times as much, and is not looked through
    try:
        assert live_tensors_after(5) == live_tensors_after(10)
    finally:
        gc.unfreeze()


# --- state ----------------------------------------------------------------------------------------------------------


def test_moving_to_another_dtype_keeps_the_optimizer_linked(tiny_bank: ForegroundBank) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        terse = make_terse(tiny_bank, discriminator_weight=0.5).to(dtype)
        before = parameters_of(terse)
        train_step(terse, RampLoss())
        assert {parameter.dtype for parameter in terse.parameters()} == {dtype}
        assert not all_equal(before, parameters_of(terse))
        assert terse.metrics()["moves"] == 1


def test_the_optimizers_step_count_survives_a_coarse_dtype(tiny_bank: ForegroundBank) -> None:
    optimizer = make_terse(tiny_bank).adversary.policy_optimizer
    assert optimizer is not None
    optimizer.to(torch.bfloat16)
    for _ in range(300):
        optimizer.step()
    assert int(optimizer.steps) == 300


def test_a_copy_learns_on_its_own(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank)
    twin, before = copy.deepcopy(terse), parameters_of(terse)
    train_step(twin, RampLoss())
    assert all_equal(before, parameters_of(terse))
    assert not all_equal(before, parameters_of(twin))


# --- construction ---------------------------------------------------------------------------------------------------


def test_an_unknown_setting_is_refused_with_the_names_of_all(tiny_bank: ForegroundBank) -> None:
    with pytest.raises(ValueError, match=r"unknown settings \['object'\]; expected some of \['objects', "):
        Terse(tiny_bank, object=(1, 2))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"objects": (3, 1)}, r"objects: expected whole numbers .low, high., 0 <= low <= high <= 20, got \(3, 1\)"),
        ({"image_probability": 1.5}, r"image_probability: expected a share within \[0, 1\], got 1.5"),
        ({"temperature": -1.0}, r"temperature: expected a finite value of at least 0, got -1.0"),
        ({"move_every": 0}, r"move_every: expected at least 1, got 0"),
        ({"learning_rate": 0.0}, r"learning_rate: expected a value above 0, got 0.0"),
        ({"temperature": float("nan")}, r"temperature: expected"),
        ({"edge_sigma": float("inf")}, r"edge_sigma: expected a finite value"),
        ({"objects": 3}, r"objects: expected whole numbers .low, high.,.* got 3"),
        ({"objects": (1.5, 3)}, r"objects: expected whole numbers"),
        ({"ranges": None}, r"ranges: expected TransformRanges, got None"),
        ({"learning_rate": float("nan")}, r"learning_rate: expected"),
        ({"max_gradient_norm": float("nan")}, r"max_gradient_norm: expected"),
    ],
)
def test_a_setting_outside_its_range_is_refused_by_name(
    tiny_bank: ForegroundBank, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Terse(tiny_bank, **setting)


def test_settings_replace_those_of_the_configuration(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, config=TerseConfig(objects=(2, 2), move_every=7), move_every=3)
    assert (terse.config.objects, terse.config.move_every) == ((2, 2), 3)


def test_classes_translate_the_banks_labels_by_name(tiny_bank: ForegroundBank) -> None:
    for classes in (["bird", "dog", "cat"], {"dog": 2, "cat": 3}):
        terse = Terse(tiny_bank, "random", classes=classes, **EVERY_IMAGE)
        composites = terse.compose(*make_batch())
        labels = {paste.label for pastes in composites.pastes for paste in pastes}
        assert labels <= {2, 3}
        assert terse.bank.categories == {2: "dog", 3: "cat"}


# --- suspension -----------------------------------------------------------------------------------------------------


def disturb(terse: Terse) -> None:
    """Give the synthesizer an opinion, so that its composites differ from random ones."""
    assert isinstance(terse.policy, AdversarialPolicy)
    nn.init.constant_(terse.policy.synthesizer.regressor.bias, 1.0)


def composites_without_graph(terse: Terse, seed: int) -> list[Tensor]:
    return list(terse(*make_batch(seed))[0])


def test_after_a_loss_that_is_not_finite_pastes_are_random_until_a_move_succeeds(tiny_bank: ForegroundBank) -> None:
    learned, uniform = (make_terse(tiny_bank, policy, move_every=2) for policy in ("learned", "random"))
    disturb(learned)
    detector = RampLoss()
    for iteration in range(5):
        images, targets = learned(*make_batch(iteration))
        expected, _ = uniform(*make_batch(iteration))
        losses = detector(images, targets)
        if images[0].requires_grad:
            losses["loss_ramp"].backward()
        if iteration == 0:
            before = parameters_of(learned)
            with pytest.warns(TerseWarning, match="the loss is nan; the adversary does not move and pastes at random"):
                learned.step(float("nan"))
            assert all_equal(before, parameters_of(learned))
            assert learned.metrics()["suspended"] == 1
        else:
            learned.step(losses)
        assert all_equal([image.detach() for image in images], list(expected)) is (iteration == 1)
        uniform.step(1.0)
    assert learned.metrics()["skipped_moves"] == 1
    assert learned.metrics()["losses_not_finite"] == 1
    assert learned.metrics()["suspended"] == 0
    assert learned.metrics()["moves"] == 2


def test_a_loss_that_is_not_finite_between_moves_suspends_too(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank, move_every=3)
    train_step(terse, RampLoss())
    with pytest.warns(TerseWarning, match="the loss is inf"):
        terse.step(float("inf"))
    assert terse.metrics()["suspended"] == 1
    assert terse.metrics()["losses_not_finite"] == 1
    assert terse.metrics()["skipped_moves"] == 0
    terse.step(1.0)
    train_step(terse, RampLoss())
    assert terse.metrics()["suspended"] == 0


def test_a_gradient_that_is_not_finite_skips_the_move(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank)
    before = parameters_of(terse)
    images, targets = terse(*make_batch())
    (RampLoss()(images, targets)["loss_ramp"] * float("inf")).backward()
    with pytest.warns(TerseWarning, match="a loss or gradient is not finite on some rank; the adversary does not move"):
        terse.step(1.0)
    assert all_equal(before, parameters_of(terse))
    assert terse.metrics()["skipped_moves"] == terse.metrics()["suspended"] == 1
    train_step(terse, RampLoss())
    assert terse.metrics()["suspended"] == 0


def test_a_policy_whose_own_gradient_is_not_finite_does_not_move(tiny_bank: ForegroundBank) -> None:
    class Broken(AdversarialPolicy):
        def _distribution(self, scene: PolicyContext, mask: Tensor | None) -> tuple[Tensor, Tensor]:
            location, log_spread = super()._distribution(scene, mask)
            zero = self.synthesizer.regressor.bias.sum() * 0
            return location + zero.sqrt(), log_spread  # infinite slope

    terse = Terse(tiny_bank, Broken(), move_every=1, **EVERY_IMAGE)
    before = parameters_of(terse)
    with pytest.warns(TerseWarning, match="not finite"):
        train_step(terse, RampLoss())
    assert all_equal(before, parameters_of(terse))
    assert terse.metrics()["suspended"] == 1


@pytest.mark.parametrize(
    ("flips", "message"),
    [
        ([("left_eye", "left_ear")], r"keypoint flips name \['left_ear'\]; the keypoints are \['nose', "),
        ([("left_eye", "right_eye"), ("nose", "left_eye")], "a keypoint is in two pairs"),
        ([("left_eye", "right_eye", "nose")], "expected pairs of names"),
    ],
)
def test_keypoint_flips_are_checked(tmp_path: Path, flips: list[tuple[str, str]], message: str) -> None:
    with BankWriter(tmp_path / "own.bank", {1: "cat"}, keypoint_names=KEYPOINTS) as out:
        out.add(make_foreground(0, keypoints=np.ones((3, 3), np.float32)))
    bank = ForegroundBank.open(tmp_path / "own.bank")
    with pytest.raises(ValueError, match=message):
        Terse(bank, "random", keypoint_flips=flips)
    Terse(bank, "random", keypoint_flips=[])

"""``Terse``: the loop in its docstring, and what it leaves alone."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import torch
from factories import (
    EIGHT_BIT,
    KEYPOINTS,
    RampLoss,
    all_equal,
    backward,
    disturb_synthesizer,
    every_image,
    make_bank,
    make_batch,
    make_detector,
    make_foreground,
    parameters_of,
    train_step,
)
from torch import Tensor

from terse_aug import ForegroundBank, Terse, TerseWarning
from terse_aug.policies import Adversarial

POLICIES = ["random", "best-of-n", "critic", "adversarial", "paper"]
LITTLE: Any = {"sizes": ((32, 32),)}


def make_terse(bank: ForegroundBank, policy: str = "adversarial", seed: int = 0, **settings: Any) -> Terse:
    return factories.make_terse(bank, policy, seed, model=make_detector("fasterrcnn"), **settings)


def run(terse: Terse, steps: int = 2) -> list[Tensor]:
    """Composites and boxes of a few iterations of training."""
    detector, seen = RampLoss(), []
    for seed in range(steps):
        images, targets = terse(*make_batch(seed, **LITTLE))
        seen += [image.detach().clone() for image in images] + [target["boxes"] for target in targets]
        terse.step(backward(detector(images, targets)))
    return seen


@pytest.mark.parametrize("policy", POLICIES)
def test_training_mode_pastes_and_labels_and_leaves_its_input_alone(tiny_bank: ForegroundBank, policy: str) -> None:
    terse = make_terse(tiny_bank, policy, discriminator_weight=0.5, paste=every_image(decoys=(1, 1)))
    images, targets = make_batch(masks=True, objects=2)
    targets[0]["boxes"][0, 0] = -3.0  # has to be clipped
    targets[0]["ids"] = torch.tensor([4, 5])
    kept_images, kept_targets = copy.deepcopy(images), copy.deepcopy(targets)
    with pytest.warns(TerseWarning, match="more than a pixel beyond the image: clipped"):
        composites, corrected = terse(images, targets)
    terse.compose(images, targets)
    assert all(a.shape == b.shape and not torch.equal(a, b) for a, b in zip(images, composites, strict=True))
    labelled = terse.metrics()["objects_labelled"] - terse.metrics()["dropped/occluded"]
    assert sum(len(target["boxes"]) for target in corrected) == 4 + labelled
    assert all(len(target["boxes"]) == len(target["masks"]) for target in corrected)
    assert all_equal(images, kept_images)
    for target, kept in zip(targets, kept_targets, strict=True):
        assert target.keys() == kept.keys()
        assert all(torch.equal(target[name], kept[name]) for name in target)


def test_evaluation_mode_passes_batches_through_unchanged(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank).eval()
    images, targets = make_batch()
    before = copy.deepcopy(terse.state_dict())
    composites, corrected = terse(images, targets)
    assert all(a is b for a, b in zip([*images, *targets], [*composites, *corrected], strict=True))
    stacked = torch.stack([images[0], images[0]])
    assert terse(stacked, targets)[0] is stacked
    assert all(torch.equal(value, before[name]) for name, value in terse.state_dict().items())


def test_a_stacked_batch_comes_back_stacked_and_equal_to_the_list(tiny_bank: ForegroundBank) -> None:
    images, targets = make_batch(sizes=((64, 64), (64, 64)))
    as_list, _ = make_terse(tiny_bank)(images, targets)
    stacked, _ = make_terse(tiny_bank)(torch.stack(images), targets)
    assert isinstance(stacked, Tensor)
    assert torch.equal(stacked, torch.stack(list(as_list)))


@pytest.mark.parametrize("policy", POLICIES)
def test_composites_depend_on_the_seed_and_neither_read_nor_move_the_global_random_state(
    tiny_bank: ForegroundBank, policy: str
) -> None:
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002

    seen = []
    for global_seed, seed in ((1, 1), (2, 1), (2, 2)):
        torch.manual_seed(global_seed)
        before = states()
        terse = make_terse(
            tiny_bank, policy, seed, paste=every_image(objects=(1, 1)), discriminator_weight=0.5, dropout=0.3
        )
        seen.append(run(terse))
        terse.compose(*make_batch())
        terse.metrics()
        assert states() == before
    assert all_equal(seen[0], seen[1])
    assert not all_equal(seen[1], seen[2])


def test_each_call_draws_anew(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank, "random")
    assert not all_equal(list(terse(*make_batch())[0]), list(terse(*make_batch())[0]))


def test_seeding_inside_leaves_the_generators_of_accelerators_alone(
    tiny_bank: ForegroundBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.manual_seed would also seed every CUDA device, without putting it back."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("CUDA was seeded"))
    make_terse(tiny_bank, "best-of-n")(*make_batch())
    make_terse(tiny_bank, discriminator_weight=0.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_random_state_is_left_alone_and_the_policy_is_updated(tiny_bank: ForegroundBank) -> None:
    device = torch.device("cuda")
    terse, detector = make_terse(tiny_bank, discriminator_weight=0.5).to(device), RampLoss().to(device)
    before, parameters = torch.cuda.get_rng_state(), parameters_of(terse)
    images, targets = make_batch()
    targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
    terse.step(backward(detector(*terse([image.to(device) for image in images], targets))))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert not all_equal(parameters_of(terse), parameters)


def test_random_and_adversarial_begin_with_the_same_composites(tiny_bank: ForegroundBank) -> None:
    """Only the policy differs between arms of a comparison, not what is pasted on which image.

    An iteration with an update is rendered in float, others are in 8 bits, to about a level.
    """
    uniform, _ = make_terse(tiny_bank, "random")(*make_batch())
    adversarial, _ = make_terse(tiny_bank, "adversarial")(*make_batch())
    for one, other in zip(uniform, adversarial, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=EIGHT_BIT)


@pytest.mark.parametrize("policy", [None, "random", "best-of-n"])
def test_compose_changes_nothing_and_is_a_function_of_its_seed(tiny_bank: ForegroundBank, policy: str | None) -> None:
    terse, plain = make_terse(tiny_bank), make_terse(tiny_bank)
    for each in (terse, plain):
        train_step(each, RampLoss())
    before, metrics = copy.deepcopy(terse.state_dict()), terse.metrics()
    first, second, other = (terse.compose(*make_batch(), policy=policy, seed=seed).images for seed in (1, 1, 2))
    assert all_equal(first, second)
    assert not all_equal(first, other)
    assert not any(image.requires_grad for image in first)
    assert terse.metrics() == metrics
    assert all(torch.equal(value, before[name]) for name, value in terse.state_dict().items())
    assert all_equal(run(terse, 1), run(plain, 1))


@pytest.mark.parametrize("own", ["adversarial", Adversarial(kl_weight=0.2)], ids=["name", "settings"])
def test_compose_by_name_takes_the_policy_in_use_and_never_an_untrained_one(
    tiny_bank: ForegroundBank, own: Any
) -> None:
    terse = Terse(tiny_bank, own, paste=every_image())
    disturb_synthesizer(terse)
    images, expected, uniform = (
        terse.compose(*make_batch(), policy=policy).images for policy in ("adversarial", None, "random")
    )
    assert all_equal(images, expected)
    assert not any(torch.equal(one, other) for one, other in zip(images, uniform, strict=True))
    for other in ("critic", Adversarial(kl_weight=0.3)):
        with pytest.raises(ValueError, match="has learned nothing here"):
            terse.compose(*make_batch(), policy=other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_moving_to_another_dtype_keeps_the_optimizer_linked(tiny_bank: ForegroundBank, dtype: torch.dtype) -> None:
    terse = make_terse(tiny_bank, discriminator_weight=0.5, paste=every_image(objects=(1, 1))).to(dtype)
    before = parameters_of(terse)
    train_step(terse, RampLoss(), **LITTLE)
    assert {parameter.dtype for parameter in terse.parameters()} == {dtype}
    assert not all_equal(before, parameters_of(terse))
    assert terse.metrics()["updates"] == 1
    optimizer = terse.trainer.updater.policy_optimizer
    assert optimizer is not None
    optimizer.steps.fill_(256)  # from where bfloat16 cannot count on
    optimizer.step()
    assert int(optimizer.steps) == 257


def test_a_copy_learns_on_its_own(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank)
    twin, before = copy.deepcopy(terse), parameters_of(terse)
    train_step(twin, RampLoss())
    assert all_equal(before, parameters_of(terse))
    assert not all_equal(before, parameters_of(twin))


def test_the_detector_is_no_part_of_terse(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    terse = Terse(tiny_bank, "adversarial", model=detector)
    mine = {id(parameter) for parameter in detector.parameters()}
    assert not mine & {id(parameter) for parameter in terse.parameters()}
    assert not any(module is detector for module in terse.modules())
    assert not any("roi_heads" in name for name in terse.state_dict())
    terse.eval()
    assert detector.training


def test_classes_translate_the_banks_labels_by_name(tiny_bank: ForegroundBank) -> None:
    for classes in (["bird", "dog", "cat"], {"dog": 2, "cat": 3}):
        terse = Terse(tiny_bank, paste=every_image(), classes=classes)
        composites = terse.compose(*make_batch())
        assert {paste.label for pastes in composites.pastes for paste in pastes} <= {2, 3}
        assert terse.bank.categories == {2: "dog", 3: "cat"}


@pytest.mark.parametrize(
    ("flips", "message"),
    [
        ([("left_eye", "left_ear")], r"keypoint flips name \['left_ear'\]; the keypoints are \['nose', "),
        ([("left_eye", "right_eye"), ("nose", "left_eye")], "a keypoint is in two pairs"),
        ([("left_eye", "right_eye", "nose")], "expected pairs of names"),
    ],
)
def test_keypoint_flips_are_checked(tmp_path: Path, flips: list[tuple[str, str]], message: str) -> None:
    foreground = make_foreground(0, keypoints=np.ones((3, 3), np.float32))
    bank = make_bank(tmp_path, [foreground], keypoint_names=KEYPOINTS)
    with pytest.raises(ValueError, match=message):
        Terse(bank, keypoint_flips=flips)
    Terse(bank, keypoint_flips=[])

"""Mixed precision: composites keep full precision, and the policy learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from factories import RampLoss, all_equal, backward, every_image, make_batch, make_detector, make_terse, parameters_of
from torch import Tensor, nn

from terse_aug import ForegroundBank, Robustness, Terse
from terse_aug.models import ClassifierAdapter


@pytest.mark.parametrize("policy", ["random", "adversarial"])
def test_composites_and_the_update_under_autocast_are_those_without(tiny_bank: ForegroundBank, policy: str) -> None:
    """Matrix products in bfloat16 would move pastes by pixels."""
    seen = []
    for enabled in (False, True):
        terse = make_terse(tiny_bank, policy, discriminator_weight=0.1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            images, targets = terse(*make_batch())
            composites = terse.compose(*make_batch(1))
        assert all(image.dtype == torch.float32 for image in images)
        losses = backward(RampLoss()(images, targets))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            terse.step(losses)
        boxes = [target["boxes"] for target in targets]
        seen.append([*(image.detach() for image in images), *composites.images, *boxes, *parameters_of(terse)])
    assert all_equal(*seen)


@pytest.mark.parametrize("policy", ["random", "matched", "best-of-n", "critic", "adversarial", "paper"])
def test_training_under_autocast_updates_policy_and_detector(tiny_bank: ForegroundBank, policy: str) -> None:
    detector = make_detector("fasterrcnn")
    terse = make_terse(tiny_bank, policy, model=detector, discriminator_weight=0.1)
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    before, detector_before = parameters_of(terse), parameters_of(detector)
    for seed in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = detector(*terse(*make_batch(seed)))
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terse.step(losses)
    learns = terse.policy.learns
    assert terse.metrics()["updates"] == (2 if learns else 0)
    assert all_equal(before, parameters_of(terse)) is not learns
    assert not all_equal(detector_before, parameters_of(detector))
    assert all(bool(parameter.isfinite().all()) for parameter in terse.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("policy", ["random", "adversarial"])
def test_images_of_another_precision_keep_it(tiny_bank: ForegroundBank, policy: str, dtype: torch.dtype) -> None:
    settings: dict[str, Any] = {"discriminator_weight": 0.1, "paste": every_image(decoys=(1, 1))}
    terse = make_terse(tiny_bank, policy, **settings)
    images, targets = make_batch()
    expected = make_terse(tiny_bank, policy, **settings)(images, targets)[0]
    composites, corrected = terse([image.to(dtype) for image in images], targets)
    assert all(image.dtype == dtype for image in composites)
    assert all(target["boxes"].dtype == torch.float32 for target in corrected)
    for one, other in zip(composites, expected, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0, atol=0.02)
    terse.step(backward(RampLoss()([image.float() for image in composites], corrected)))
    assert terse.metrics()["updates"] == int(policy == "adversarial")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_scale_of_a_grad_scaler_on_cuda_does_not_reach_the_policy(tiny_bank: ForegroundBank) -> None:
    device = torch.device("cuda")
    terse, detector = make_terse(tiny_bank, discriminator_weight=0.1).to(device), RampLoss().to(device)
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-6)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    images, targets = make_batch()
    targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
    with torch.autocast("cuda", dtype=torch.float16):
        losses = detector(*terse([image.to(device) for image in images], targets))
    scaler.scale(losses["loss_ramp"]).backward()
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    terse.step(losses, loss_scale=scale)
    assert terse.metrics()["updates"] == 1


class Faint(nn.Module):
    """A classifier whose gradients are too small for float16, or with a high gain too large."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.conv, self.gain = nn.Conv2d(3, 3, 3, stride=2), gain

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).float().mean((2, 3)) * self.gain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradient_steps_under_autocast_are_nearly_those_without(tiny_bank: ForegroundBank, dtype: torch.dtype) -> None:
    model, seen = Faint(1e-3), []
    for enabled in (False, True):
        adapter = ClassifierAdapter(model, 3)
        terse = Terse(tiny_bank, paste=every_image(), robustness=Robustness(), model=adapter)
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            moved, _ = terse(*make_batch(sizes=((64, 64), (64, 64))))
        assert all(image.dtype == torch.float32 for image in moved)
        seen.append(torch.stack(list(moved)))
        assert terse.metrics()["robustness/images"] == 2
        assert terse.metrics()["robustness/zero_fraction"] < 0.1
    assert float((seen[0] == seen[1]).float().mean()) > 0.95
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_that_overflow_in_float16_leave_images_alone_until_the_scale_fits(tiny_bank: ForegroundBank) -> None:
    adapter = ClassifierAdapter(Faint(1e5), 3)
    terse = Terse(tiny_bank, paste=every_image(), robustness=Robustness(), model=adapter)
    history = []
    for _ in range(12):
        with torch.autocast("cpu", dtype=torch.float16):
            terse(*make_batch(sizes=((32, 32),)))
        history.append(terse.metrics()["robustness/images"])
    assert history[0] == 0
    assert terse.metrics()["robustness/not_finite"] > 0
    assert history[-1] > history[-2] > history[-3] > 0

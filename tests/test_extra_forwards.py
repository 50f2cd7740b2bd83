"""Extra forwards and gradients with respect to the input: they are right, and leave the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from factories import DETECTORS, all_equal, make_batch, make_detector
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from terse_aug.models import (
    ClassifierAdapter,
    GivesInputGradients,
    RegressorAdapter,
    SegmenterAdapter,
    TorchvisionAdapter,
)
from terse_aug.utils.random import isolated_global_rng


class Recomputed(nn.Module):
    """A classifier that recomputes its activations in the backward, with BatchNorm and dropout inside."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
        self.reentrant = reentrant

    def forward(self, images: Tensor) -> Tensor:
        return self.head(checkpoint(self.features, images, use_reentrant=self.reentrant))


def _dense() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5))


def _flat(outputs: int) -> nn.Module:
    return nn.Sequential(_dense(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, outputs))


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    **{name: lambda name=name: (model := make_detector(name), TorchvisionAdapter(model)) for name in DETECTORS},
    "classifier": lambda: (model := _flat(3), ClassifierAdapter(model, 3)),
    "reentrant": lambda: (model := Recomputed(True), ClassifierAdapter(model, 3)),
    "recomputed": lambda: (model := Recomputed(False), ClassifierAdapter(model, 3)),
    "segmenter": lambda: (model := _dense(), SegmenterAdapter(model, 3)),
    "regressor": lambda: (model := _flat(2), RegressorAdapter(model, lambda target: target["boxes"][-1, :2], 10.0)),
}


def everything_of(model: nn.Module) -> list[Tensor]:
    """What a forward or backward could change."""
    return [
        *(value.clone() for value in model.state_dict().values()),
        *(torch.zeros(0) if own.grad is None else own.grad.clone() for own in model.parameters()),
        torch.tensor([own.requires_grad for own in model.parameters()]),
        torch.tensor([module.training for module in model.modules()]),
        torch.get_rng_state(),
    ]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # in forwards without gradients
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_extra_forwards_and_gradients_leave_no_trace_in_the_model(name: str, training: bool) -> None:
    with isolated_global_rng(0):
        model, adapter = MODELS[name]()
    assert isinstance(adapter, GivesInputGradients)
    model.train(training)
    next(iter(model.children())).train(not training)  # a mixed state has to come back as well
    next(model.parameters()).requires_grad_(False)
    fired: list[int] = []
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
        if parameter.requires_grad:  # as DistributedDataParallel's reducer waits for them
            parameter.register_post_accumulate_grad_hook(lambda _: fired.append(1))
    fields = {"masks": name in ("maskrcnn", "segmenter"), "keypoints": name == "keypointrcnn"}
    images, targets = make_batch(2, sizes=((64, 64), (64, 64)), objects=2, **fields)
    given, before = [image.clone() for image in images], everything_of(model)
    losses, scores = adapter.image_losses(images, targets), adapter.object_scores(images, targets)
    assert all_equal(before, everything_of(model))
    assert not losses.requires_grad
    assert [len(own) for own in scores] == [2, 2]
    with torch.no_grad():  # wherever it is called
        loss, gradients = adapter.input_gradients(images, targets, loss_scale=4.0)
    again, unscaled = adapter.input_gradients(images, targets)
    assert all_equal(before, everything_of(model))
    assert all_equal(images, given)
    assert not fired
    assert torch.equal(loss, again)
    assert not loss.requires_grad
    for one, other in zip(gradients, unscaled, strict=True):
        assert bool(one.isfinite().all())
        assert bool(one.any())
        torch.testing.assert_close(one, 4 * other, rtol=1e-4, atol=1e-9)


def test_modes_are_restored_after_an_error() -> None:
    detector = make_detector("fasterrcnn").eval()
    before = everything_of(detector)
    with pytest.raises(KeyError):
        TorchvisionAdapter(detector).image_losses(make_batch()[0], [{}, {}])
    assert all_equal(before, everything_of(detector))


def test_the_gradient_of_a_batch_is_that_of_its_loss() -> None:
    """By a difference of the loss along it, and along another direction."""
    with isolated_global_rng(0):
        _, adapter = MODELS["classifier"]()
    images, targets = make_batch(0, sizes=((32, 32), (32, 32)))
    _, gradients = adapter.input_gradients(images, targets)
    for direction in (gradients, [torch.full_like(image, 0.1) for image in images]):
        step = 0.1 / max(float(own.abs().max()) for own in direction)
        ahead, behind = (
            adapter.image_losses([i + s * d for i, d in zip(images, direction, strict=True)], targets).mean()
            for s in (step, -step)
        )
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
        assert float(ahead - behind) / (2 * step) == pytest.approx(slope, rel=0.02)

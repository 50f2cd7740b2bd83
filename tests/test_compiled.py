"""Terse in functions under ``torch.compile``, and in a module that a person trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from factories import RampLoss, all_equal, make_batch, make_terse, parameters_of
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from terse_aug import ForegroundBank

Step = Callable[[list[Tensor], list[dict[str, Tensor]]], tuple[Tensor, list[Tensor]]]


def run(bank: ForegroundBank, policy: str, compiler: Callable[[Step], Step]) -> tuple[list[Any], Any]:
    """Three iterations, in which Terse is called between two parts that can be compiled."""
    detector = RampLoss()
    terse = make_terse(bank, policy, model=detector)

    def step(images: list[Tensor], targets: list[dict[str, Tensor]]) -> tuple[Tensor, list[Tensor]]:
        brighter = [image * 1.5 for image in images]
        composites, corrected = terse(brighter, targets)
        terse.observe([torch.full((len(target["labels"]),), 0.5) for target in corrected])
        loss = detector(composites, corrected)["loss_ramp"] * 2
        loss.backward()
        terse.step(loss)
        return loss.detach(), composites

    compiled = compiler(step)
    found: list[Any] = []
    for number in range(3):
        loss, composites = compiled(*make_batch(number))
        found += [loss, *(image.detach() for image in composites)]
    assert terse.metrics()["objects_pasted"] > 3
    return found, terse


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("policy", ["random", "critic", "adversarial"])
def test_a_compiled_step_calls_terse_as_it_is(tiny_bank: ForegroundBank, policy: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    expected, plain = run(tiny_bank, policy, lambda step: step)
    found, terse = run(tiny_bank, policy, lambda step: torch.compile(step, backend=counter))
    assert 2 <= counter.frame_count <= 12  # what is before and after Terse, and nothing of Terse itself
    assert all_equal(found, expected)
    assert all_equal(parameters_of(terse), parameters_of(plain))
    torch._dynamo.reset()


class Whole(nn.Module):
    """A detector and its Terse in one module."""

    def __init__(self, bank: ForegroundBank) -> None:
        super().__init__()
        self.detector = RampLoss()
        self.terse = make_terse(bank, "critic", model=self.detector)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        images, targets = self.terse(images, targets)
        loss: Tensor = self.detector(images, targets)["loss_ramp"]
        return loss


def test_a_module_that_holds_terse_has_its_state_but_not_its_parameters(tiny_bank: ForegroundBank) -> None:
    whole = Whole(tiny_bank)
    assert [name for name, _ in whole.named_parameters()] == ["detector.gain"]
    assert whole.terse in set(whole.modules())
    assert len(list(whole.terse.parameters())) > 4
    state = whole.state_dict()
    assert {f"terse.{name}" for name in whole.terse.state_dict()} < state.keys()
    other = Whole(tiny_bank)
    with torch.no_grad():
        for parameter in whole.terse.parameters():
            parameter += 1
    other.load_state_dict(whole.state_dict())
    assert all_equal(parameters_of(other.terse), parameters_of(whole.terse))
    assert not other.eval().terse.training
    assert next(other.double().terse.parameters()).dtype == torch.float64

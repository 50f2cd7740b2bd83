"""The state of ``Terse`` is complete: a resumed run is the run that was not stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import RampLoss, all_equal, every_image, make_batch, make_detector, policy_with, train_step
from torch import Tensor, nn

from terse_aug import ForegroundBank, Terse, TerseWarning
from terse_aug.policies import Adversarial

STOP, END = 3, 6


class Run:
    """A training run that can be saved and loaded, as a host would do it."""

    def __init__(self, bank: ForegroundBank, policy: str, **settings: Any) -> None:
        self.detector = make_detector("fasterrcnn")
        self.optimizer = torch.optim.SGD(self.detector.parameters(), lr=0.01, momentum=0.9)
        self.terse = Terse(
            bank,
            policy_with(policy, update_interval=2, discriminator_weight=0.2, dropout=0.3),
            **settings,
            model=self.detector,
            seed=3,
        )
        torch.manual_seed(0)

    def train(self, first: int, end: int) -> list[Tensor]:
        """Iterations ``first`` to ``end``; returns their composites."""
        seen: list[Tensor] = []
        for iteration in range(first, end):
            images, targets = self.terse(*make_batch(iteration))
            seen += [image.detach().clone() for image in images]
            losses = self.detector(images, targets)
            torch.stack(list(losses.values())).sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.terse.step(losses)
        return seen

    def save(self, path: Path) -> None:
        state = {"detector": self.detector, "optimizer": self.optimizer, "terse": self.terse}
        torch.save({name: part.state_dict() for name, part in state.items()} | {"rng": torch.get_rng_state()}, path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        for name in ("detector", "optimizer", "terse"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["rng"])

    def state(self) -> list[Tensor]:
        terse = [value.nan_to_num() for value in self.terse.state_dict().values()]
        return terse + [value.clone() for value in self.detector.state_dict().values()]


@pytest.mark.parametrize("policy", ["random", "best-of-n", "critic", "adversarial"])
def test_a_resumed_run_is_equal_to_the_bit_to_one_that_was_not_stopped(
    tiny_bank: ForegroundBank, tmp_path: Path, policy: str
) -> None:
    whole = Run(tiny_bank, policy)
    expected = whole.train(0, END)

    stopped = Run(tiny_bank, policy)
    before = stopped.train(0, STOP)
    stopped.save(tmp_path / "checkpoint.pt")
    resumed = Run(tiny_bank, policy)
    torch.manual_seed(77)
    resumed.load(tmp_path / "checkpoint.pt")
    after = resumed.train(STOP, END)

    assert all_equal(before + after, expected)
    assert all_equal(resumed.state(), whole.state())
    assert resumed.terse.metrics() == whole.terse.metrics()
    assert whole.terse.metrics()["updates"] == (3 if policy in ("critic", "adversarial") else 0)


def test_a_run_that_was_suspended_resumes_suspended(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    terse = Terse(tiny_bank, Adversarial(update_interval=3), paste=every_image())
    with pytest.warns(TerseWarning, match="the loss is nan"):
        terse.step(float("nan"))
    fresh = Terse(tiny_bank, Adversarial(update_interval=3), paste=every_image())
    fresh.load_state_dict(terse.state_dict())
    assert fresh.metrics()["random_fallback"] == 1
    for each in (terse, fresh):
        nn.init.constant_(each.policy.synthesizer.regressor.bias, 1.0)  # type: ignore[union-attr]  # a synthesizer's
    expected = Terse(tiny_bank, "random", paste=every_image())
    assert all_equal(list(fresh(*make_batch())[0]), list(expected(*make_batch())[0]))


def test_every_value_of_the_state_is_a_tensor_that_later_training_does_not_change(
    tiny_bank: ForegroundBank,
) -> None:
    terse = Terse(tiny_bank, Adversarial(update_interval=1, discriminator_weight=0.2), paste=every_image())
    state = terse.state_dict()
    assert all(type(value) is Tensor for value in state.values())
    own = {name: value for name, value in state.items() if name.startswith("ledger")}
    kept = {name: value.clone() for name, value in own.items()}
    train_step(terse, RampLoss())
    assert all(torch.equal(value.nan_to_num(), kept[name].nan_to_num()) for name, value in own.items())
    assert state.keys() == terse.state_dict().keys()


def test_the_state_of_another_version_is_refused_clearly(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, "random")
    for name in ("counts", "averages", "moments"):
        state = terse.state_dict()
        state[f"ledger.{name}"] = state[f"ledger.{name}"][:-1]
        with pytest.raises(RuntimeError, match="the state is of another version of terse-aug"):
            terse.load_state_dict(state)
        del state[f"ledger.{name}"]
        with pytest.raises(RuntimeError, match=f"Missing key.*ledger.{name}"):
            terse.load_state_dict(state)


def test_the_state_of_another_policy_is_refused(tiny_bank: ForegroundBank) -> None:
    with pytest.raises(RuntimeError, match=r"Missing key.*adversary\.policy\.synthesizer"):
        Terse(tiny_bank, "adversarial").load_state_dict(Terse(tiny_bank, "random").state_dict())


def test_loading_replaces_counters_and_pending_batches(tiny_bank: ForegroundBank) -> None:
    """A batch composed before loading is of another run; nothing is learned from it."""
    state = Terse(tiny_bank, Adversarial(update_interval=1), paste=every_image()).state_dict()
    terse = Terse(tiny_bank, Adversarial(update_interval=1), paste=every_image())
    detector = RampLoss()
    images, targets = terse(*make_batch())
    losses = detector(images, targets)
    losses["loss_ramp"].backward()
    terse.load_state_dict(state)
    terse.step(losses)
    assert terse.metrics()["updates"] == 0
    assert terse.metrics()["calls"] == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_state_saved_on_cuda_loads_on_the_cpu(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    terse = Terse(tiny_bank, Adversarial(discriminator_weight=0.2)).to("cuda")
    torch.save(terse.state_dict(), tmp_path / "state.pt")
    fresh = Terse(tiny_bank, Adversarial(discriminator_weight=0.2), seed=5)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu"))
    pairs = zip(fresh.parameters(), terse.parameters(), strict=True)
    assert all(torch.equal(mine, theirs.cpu()) for mine, theirs in pairs)

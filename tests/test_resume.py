"""The state of ``Terse`` is complete and saved by name: a resumed run is the run that was not stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from coloured_samples import everything
from factories import RampLoss, all_equal, backward, every_image, make_batch, make_detector, policy_with, train_step
from torch import Tensor, nn

from terse_aug import ForegroundBank, Robustness, Terse, TerseWarning
from terse_aug.policies import Adversarial
from terse_aug.training import metrics

STOP, END = 2, 4


class Run:
    """A training run that can be saved and loaded, as a framework would do it."""

    def __init__(self, bank: ForegroundBank, policy: str, more: dict[str, Any]) -> None:
        self.detector = make_detector("fasterrcnn")
        self.optimizer = torch.optim.SGD(self.detector.parameters(), lr=0.01, momentum=0.9)
        settings = policy_with(policy, update_interval=2, discriminator_weight=0.2, dropout=0.3)
        self.terse = Terse(bank, settings, model=self.detector, seed=3, **more)
        self.half = "robustness" in more

    def train(self, first: int, end: int) -> list[Tensor]:
        """Iterations ``first`` to ``end``; returns their composites."""
        seen: list[Tensor] = []
        for iteration in range(first, end):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.half):
                images, targets = self.terse(*make_batch(iteration))
                losses = self.detector(list(images), targets)
            seen += [image.detach().clone() for image in images]
            torch.stack([loss.float() for loss in losses.values()]).sum().backward()
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
        return [value for part in (self.terse, self.detector) for value in part.state_dict().values()]


@pytest.mark.parametrize(
    ("policy", "more"),
    [("random", False), ("best-of-n", False), ("critic", False), ("adversarial", False), ("adversarial", True)],
)
def test_a_resumed_run_is_equal_to_the_bit_to_one_that_was_not_stopped(
    tiny_bank: ForegroundBank, distractors: ForegroundBank, tmp_path: Path, policy: str, more: bool
) -> None:
    """Also with backgrounds, distractors, occludees, robustness and autocast."""
    settings = everything(distractors) | {"robustness": Robustness(steps=2)} if more else {}
    whole, stopped, resumed = (Run(tiny_bank, policy, settings) for _ in range(3))
    torch.manual_seed(0)
    expected = whole.train(0, END)
    torch.manual_seed(0)
    before = stopped.train(0, STOP)
    stopped.save(tmp_path / "checkpoint.pt")
    torch.manual_seed(77)
    resumed.load(tmp_path / "checkpoint.pt")
    after = resumed.train(STOP, END)

    assert all_equal(before + after, expected)
    assert all_equal(resumed.state(), whole.state())
    metrics = whole.terse.metrics()
    assert resumed.terse.metrics() == metrics
    assert metrics["updates"] == (2 if policy in ("critic", "adversarial") else 0)
    if more:
        assert min(metrics[part] for part in ("backgrounds", "distractors", "occludees", "robustness/images")) > 0


def test_a_run_that_fell_back_to_random_pastes_resumes_with_them(tiny_bank: ForegroundBank) -> None:
    terse, fresh = (Terse(tiny_bank, Adversarial(update_interval=3), paste=every_image()) for _ in range(2))
    with pytest.warns(TerseWarning, match="the loss is nan"):
        terse.step(float("nan"))
    fresh.load_state_dict(terse.state_dict())
    assert fresh.metrics()["random_fallback"] == 1
    nn.init.constant_(fresh.policy.synthesizer.regressor.bias, 1.0)  # type: ignore[union-attr]  # a synthesizer's
    expected = Terse(tiny_bank, "random", paste=every_image())
    assert all_equal(list(fresh(*make_batch())[0]), list(expected(*make_batch())[0]))


def test_every_value_of_the_state_is_a_tensor_that_later_training_does_not_change(tiny_bank: ForegroundBank) -> None:
    policy = Adversarial(update_interval=1, discriminator_weight=0.2)
    terse = Terse(tiny_bank, policy, paste=every_image(objects=(1, 1)))
    train_step(terse, RampLoss())
    state = terse.state_dict()
    assert all(type(value) is Tensor for value in state.values())
    own = {name: value for name, value in state.items() if name.startswith("counters.")}
    assert len(own) > len(metrics.COUNTERS)
    kept = {name: value.clone() for name, value in own.items()}
    train_step(terse, RampLoss())
    assert all(torch.equal(value, kept[name]) for name, value in own.items())
    assert state.keys() == terse.state_dict().keys()


def test_loading_replaces_counters_and_pending_batches(tiny_bank: ForegroundBank) -> None:
    """A batch composed before loading is of another run; nothing is learned from it."""
    state = Terse(tiny_bank, Adversarial(update_interval=1), paste=every_image()).state_dict()
    terse = Terse(tiny_bank, Adversarial(update_interval=1), paste=every_image())
    losses = backward(RampLoss()(*terse(*make_batch())))
    terse.load_state_dict(state)
    terse.step(losses)
    assert terse.metrics()["updates"] == terse.metrics()["calls"] == 0


@pytest.mark.parametrize("added", [True, False], ids=["missing", "unknown"])
@pytest.mark.parametrize("policy", ["random", "critic"])
def test_a_state_with_other_counters_loads_with_one_warning_that_names_them(
    tiny_bank: ForegroundBank, monkeypatch: pytest.MonkeyPatch, policy: str, added: bool
) -> None:
    """A counter that was added after the state was saved starts at 0; one that is gone is ignored."""

    def made(counters: tuple[str, ...]) -> Terse:
        with monkeypatch.context() as patch:
            patch.setattr("terse_aug.terse.COUNTERS", counters)
            return Terse(tiny_bank, policy, paste=every_image())

    more = (*metrics.COUNTERS, "dropped/of_tomorrow")
    old, new = (made(metrics.COUNTERS), made(more)) if added else (made(more), made(metrics.COUNTERS))
    old(*make_batch())
    new(*make_batch())
    word = "missing" if added else "unknown"
    with pytest.warns(TerseWarning, match=rf"{word} \['(count/)?dropped/of_tomorrow'\]") as warned:
        new.load_state_dict(old.state_dict())
    assert len(warned) == 1
    expected = {name: value for name, value in old.metrics().items() if not name.endswith("of_tomorrow")}
    assert {name: value for name, value in new.metrics().items() if not name.endswith("of_tomorrow")} == expected
    assert new.metrics().get("dropped/of_tomorrow", 0) == 0


def test_a_state_without_moments_loads_with_one_warning(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, paste=every_image())
    terse(*make_batch())
    state = terse.state_dict()
    del state["counters.transform_moments"]
    with pytest.warns(TerseWarning, match=r"missing \['transform_moments'\]"):
        terse.load_state_dict(state)
    assert "diversity" not in terse.metrics()
    assert terse.metrics()["calls"] == 1


@pytest.mark.parametrize(
    ("saved", "loaded"), [("random", "adversarial"), ("critic", "random"), ("critic", "adversarial")]
)
def test_the_state_of_another_policy_is_refused(tiny_bank: ForegroundBank, saved: str, loaded: str) -> None:
    with pytest.raises(RuntimeError, match=r"(Missing|Unexpected) key.*trainer\.updater\.policy"):
        Terse(tiny_bank, loaded).load_state_dict(Terse(tiny_bank, saved).state_dict())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_state_saved_on_cuda_loads_on_the_cpu(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    terse = Terse(tiny_bank, Adversarial(discriminator_weight=0.2)).to("cuda")
    torch.save(terse.state_dict(), tmp_path / "state.pt")
    fresh = Terse(tiny_bank, Adversarial(discriminator_weight=0.2), seed=5)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu"))
    pairs = zip(fresh.parameters(), terse.parameters(), strict=True)
    assert all(torch.equal(mine, theirs.cpu()) for mine, theirs in pairs)

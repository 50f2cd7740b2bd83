"""MMDetection's trainings with composites that a thread makes, one batch ahead."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from frameworks import QUIET_MMDET, need_mmdet

need_mmdet()
from mmdet_factories import bank, by_epochs, data, made, settings  # noqa: F401 - fixtures
from mmengine.hooks import Hook
from test_mmdet_workers import PIPELINE, same, train
from torch.utils.data import DataLoader

from terse_aug import ForegroundBank

pytestmark = [*QUIET_MMDET, pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")]

CRITIC = {"policy": {"type": "critic", "update_interval": 1, "learning_rate": 0.1, "temperature": 0.01}}


@pytest.mark.parametrize("epochs", [False, True])
def test_critic_composes_in_a_thread_and_resumes_from_a_checkpoint_of_the_loop(
    data: Path, bank: ForegroundBank, tmp_path: Path, composing_threads: set[str], epochs: bool
) -> None:
    by: dict[str, Any] = {"pipeline": PIPELINE, "terse": CRITIC} | (by_epochs(2) if epochs else {})
    saving = {"type": "CheckpointHook", "interval": 1 if epochs else 2, "by_epoch": epochs}
    runner, hook, entered = train(data, tmp_path, bank, hooks=[saving], **by)
    assert composing_threads == {"terse_aug_0"}
    metrics = hook.terse.metrics()
    assert metrics["updates"] == metrics["iterations"] == runner.iter
    assert metrics["images"] == len(entered)
    assert metrics["hardness"] > 0
    assert metrics["extra_forwards"] == metrics["skipped_updates"] == 0
    saved = str(tmp_path / ("epoch_1.pth" if epochs else "iter_2.pth"))
    resumed, own, rest = train(data, tmp_path, bank, workers=2, load_from=saved, resume=True, **by)
    assert 0 < len(rest) < len(entered)
    assert rest == entered[-len(rest) :]
    assert own.terse.metrics() == metrics
    assert same(runner.model, resumed.model)


@pytest.mark.parametrize("policy", ["random", "critic"])
def test_it_can_be_switched_off(
    data: Path, bank: ForegroundBank, tmp_path: Path, composing_threads: set[str], policy: str
) -> None:
    train(data, tmp_path, bank, 1, terse={"policy": policy, "compose_ahead": False})
    assert composing_threads == {"MainThread"}


@pytest.mark.parametrize("epochs", [False, True])
def test_after_training_the_loop_is_as_it_was(data: Path, bank: ForegroundBank, tmp_path: Path, epochs: bool) -> None:
    threads, kinds = set(threading.enumerate()), set()

    class Look(Hook):
        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            kinds.add(type(runner.train_loop.dataloader))

    runner, hook = made(data, tmp_path, 2, settings(bank), **(by_epochs(2) if epochs else {}))
    runner.register_hook(Look())
    loop = runner.build_train_loop(runner._train_loop)
    runner._train_loop, iterator = loop, getattr(loop, "dataloader_iterator", None)
    runner.train()
    assert kinds == {DataLoader} == {type(loop.dataloader)}
    assert getattr(loop, "dataloader_iterator", None) is iterator
    assert set(threading.enumerate()) <= threads
    assert hook.terse.metrics()["iterations"] == runner.iter


def test_a_training_that_an_error_has_ended_is_begun_again_without_the_thread_of_before(
    data: Path, bank: ForegroundBank, tmp_path: Path
) -> None:
    class Fail(Hook):
        failed = False

        def after_train_iter(self, *_: Any, **__: Any) -> None:
            if not self.failed:
                self.failed = True
                raise RuntimeError("stopped")

    runner, hook = made(data, tmp_path, 3, settings(bank, "critic"))
    runner.register_hook(Fail(), priority="LOWEST")
    with pytest.raises(RuntimeError, match="stopped"):
        runner.train()
    before = hook.terse
    calls = before.metrics()["calls"]
    assert calls > 0
    runner.train()
    assert hook.terse is not before
    assert before.metrics()["calls"] == calls
    assert hook.terse.metrics()["calls"] > 0


@pytest.mark.parametrize(
    ("terse", "workers"),
    [({"policy": "random"}, 0), ({"policy": "random"}, 2), (CRITIC, 0), ({"compose_ahead": False}, 0)],
)
@pytest.mark.parametrize("epochs", [False, True])
def test_nothing_is_pasted_in_the_last_fraction_of_a_training(
    data: Path, bank: ForegroundBank, tmp_path: Path, terse: dict[str, Any], workers: int, epochs: bool
) -> None:
    by: dict[str, Any] = {"pipeline": PIPELINE, "workers": workers} | (by_epochs(2) if epochs else {})
    runner, hook, entered = train(data, tmp_path, bank, terse=terse | {"close_fraction": 0.5}, **by)
    plain, _, alone = train(data, tmp_path, bank, terse={"enabled": False}, **by)
    assert runner.iter == plain.iter
    pasted = [one != other for one, other in zip(entered, alone, strict=True)]
    half = len(pasted) // 2
    assert pasted == [True] * half + [False] * half
    assert hook.terse.metrics()["images"] == len(pasted)

"""Composites that are made in the workers of MMEngine's data loader."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from factories import weights_of
from framework_runs import LogRecorder
from frameworks import QUIET_MMDET, need_mmdet

need_mmdet()
from mmdet_factories import bank, by_epochs, data, made, pipeline, settings  # noqa: F401 - fixtures
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import BatchSampler

from terse_aug import ForegroundBank, Terse
from terse_aug_mmdet import TerseHook
from terse_aug_mmdet.workers import first_closed_sample

pytestmark = [*QUIET_MMDET, pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")]

RESIZE = {"type": "Resize", "scale": (72, 72), "keep_ratio": True}
PIPELINE = [*pipeline()[:2], RESIZE, *pipeline()[-1:]]  # nothing random
PASTE: dict[str, Any] = {"paste_probability": 1.0, "decoys": (0, 2), "occluded_object_probability": 0.5}


class Watch(Hook):
    """What enters the model, whose own draws are a function of the iteration."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.entered: list[Any] = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        torch.manual_seed(runner.iter)
        for image, sample in zip(data_batch["inputs"], data_batch["data_samples"], strict=True):
            own = sample.gt_instances
            assert image.dtype == torch.uint8
            assert "terse_record" not in sample
            values = [own.bboxes.tensor.tolist(), own.labels.tolist(), own.masks.masks.tolist()]
            self.entered.append([sample.img_path, image.tolist(), *values])


def train(
    data: Path, out: Path, bank: ForegroundBank, iterations: int = 4, workers: int = 0, **changes: Any
) -> tuple[Runner, TerseHook, list[Any]]:
    terse = settings(bank, **{"policy": "random", "paste": PASTE} | changes.pop("terse", {}))
    runner, hook = made(data, out, iterations, terse, workers=workers, **changes)
    runner.register_hook(watch := Watch())
    runner.train()
    # Ends the workers; the garbage collector waits 5 s for each.
    runner.train_loop.dataloader_iterator = runner.train_dataloader._iterator = None
    return runner, hook, watch.entered


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(map(torch.equal, weights_of(first), weights_of(second)))


@pytest.mark.parametrize("epochs", [False, True])
def test_any_number_of_workers_gives_one_training_and_so_does_resuming(
    data: Path, bank: ForegroundBank, tmp_path: Path, epochs: bool
) -> None:
    by: dict[str, Any] = {"pipeline": PIPELINE}
    if epochs:
        by |= {**by_epochs(2), "batch_sampler": "AspectRatioBatchSampler"}
    saving = {"type": "CheckpointHook", "interval": 1 if epochs else 2, "by_epoch": epochs}
    runner, hook, entered = train(data, tmp_path, bank, hooks=[saving], **by)
    metrics = hook.terse.metrics()
    assert min(metrics[name] for name in ("decoys", "objects_labelled", "occludees", "iterations")) > 0
    saved = str(tmp_path / ("epoch_1.pth" if epochs else "iter_2.pth"))
    other, own, seen = train(data, tmp_path, bank, workers=3, persistent_workers=epochs, **by)
    assert seen == entered
    assert own.terse.metrics() == metrics
    assert same(runner.model, other.model)
    resumed, own, rest = train(data, tmp_path, bank, workers=1, load_from=saved, resume=True, **by)
    assert 0 < len(rest) < len(entered)
    assert rest == entered[-len(rest) :]
    assert own.terse.metrics() == metrics
    assert same(runner.model, resumed.model)


def test_data_sets_inside_others_and_switched_pipelines_are_composed(
    data: Path, bank: ForegroundBank, tmp_path: Path
) -> None:
    steps = pipeline()
    switch = {"type": "PipelineSwitchHook", "switch_epoch": 1, "switch_pipeline": pipeline(side=48)}
    runner, hook, entered = train(data, tmp_path, bank, hooks=[switch], **by_epochs(2))
    assert runner.train_dataloader.dataset.metainfo["classes"]
    assert hook.terse.metrics()["images"] == len(entered)
    assert torch.tensor(entered[-1][1]).shape == (3, 48, 48) != torch.tensor(entered[0][1]).shape
    _, hook, entered = train(data, tmp_path, bank, 2, mixed=steps[-1:], pipeline=steps[:-1])
    assert hook.terse.metrics()["images"] == len(entered) == 4


@pytest.mark.parametrize(
    ("terse", "reason"),
    [({"policy": "adversarial"}, "policy: AdversarialPolicy"), ({"sampler": "balanced"}, "sampler: BalancedSampler")],
)
def test_what_needs_the_iteration_before_is_composed_in_the_loop(
    data: Path, bank: ForegroundBank, tmp_path: Path, terse: dict[str, Any], reason: str
) -> None:
    texts: list[str] = []
    runner, hook = made(data, tmp_path, 1, settings(bank, **{"policy": "random", **terse}), log_level="INFO")
    runner.logger.addHandler(LogRecorder(texts))
    runner.train()
    messages = [text for text in texts if "Composites are made" in text]
    assert [("training loop" in own, reason in own) for own in messages] == [(True, True)]
    assert hook.terse.metrics()["objects_pasted"] > 0


def test_it_can_be_switched_off(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    found = [train(data, tmp_path, bank, 1, terse={"compose_ahead": own})[2] for own in (True, False)]
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("by_iterations", "kind", "drop_last"),
    [
        (False, "default", False),
        (False, "default", True),
        (True, "default", False),
        (True, "default", True),
        (True, "infinite", False),
    ],
)
def test_samples_are_counted_until_the_last_batch_with_pastes(
    bank: ForegroundBank, by_iterations: bool, kind: str, drop_last: bool
) -> None:
    """Of a training that was resumed, without state of terse-aug, after one epoch of 17 samples."""
    terse, done, left = Terse(bank), 4 if drop_last else 5, 7
    own = DefaultSampler(range(17), shuffle=False) if kind == "default" else InfiniteSampler(range(17))
    batches = BatchSampler(own, 4, drop_last)
    terse.close_after(left)
    loop = SimpleNamespace(**({"dataloader_iterator": None} if by_iterations else {}))
    runner: Any = SimpleNamespace(train_dataloader=SimpleNamespace(batch_sampler=batches), train_loop=loop, iter=done)
    endless = itertools.chain.from_iterable(itertools.repeat(batches))
    sizes = [len(batch) for batch in itertools.islice(endless, (done if by_iterations else 0) + left)]
    assert first_closed_sample(runner, terse) == sum(sizes)

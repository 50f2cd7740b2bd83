"""Detectron2's trainings with composites that a thread makes, one batch ahead."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from factories import parameters_of
from frameworks import QUIET_DETECTRON2, need_detectron2

need_detectron2()
from detectron2.data import get_detection_dataset_dicts
from detectron2_factories import bank, dataset, trainer_with_hook  # noqa: F401 - fixtures
from test_detectron2_workers import Configure, Trainer, configured, contents, train  # noqa: F401 - fixtures

pytestmark = [*QUIET_DETECTRON2, pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")]

CRITIC: dict[str, Any] = {"policy": {"name": "critic", "critic": {"learning_rate": 0.1, "temperature": 0.01}}}


def test_critic_composes_in_a_thread_and_resumes_from_a_checkpoint_of_the_loop(
    configured: Configure, composing_threads: set[str]
) -> None:
    trainer, hook, entered = train(configured(0, **CRITIC), 4)
    assert composing_threads == {"terse_aug_0"}
    metrics = hook.terse.metrics()
    assert metrics["updates"] == metrics["iterations"] == 4
    assert metrics["images"] == len(entered) == 8
    assert metrics["hardness"] > 0
    assert metrics["extra_forwards"] == metrics["skipped_updates"] == 0
    _, _, first = train(configured(2, **CRITIC), 2)
    resumed, own, rest = train(configured(2, **CRITIC), 4, start=2)
    assert contents(first + rest) == contents(entered)
    assert own.terse.metrics() == metrics
    assert all(map(torch.equal, parameters_of(trainer.model), parameters_of(resumed.model)))


@pytest.mark.parametrize("policy", ["random", "critic"])
def test_it_can_be_switched_off(configured: Configure, composing_threads: set[str], policy: str) -> None:
    train(configured(0, policy=policy, compose_ahead=False), 2)
    assert composing_threads == {"MainThread"}


def test_a_new_data_loader_is_composed_and_after_training_the_trainer_is_as_it_was(configured: Configure) -> None:
    cfg, threads = configured(0), set(threading.enumerate())
    cfg.SOLVER.MAX_ITER = 3
    cfg.TERSE.POLICY.NAME = "critic"
    sources: list[Any] = []

    class Resetting(Trainer):
        def before_step(self) -> None:
            super().before_step()
            sources.append(self._trainer._data_loader_iter.source)
            if self.iter == 1:
                self._trainer.reset_data_loader(lambda: self.build_train_loader(cfg))
                sources.append(self._trainer._data_loader_iter.source)

        def after_train(self) -> None:
            super().after_train()
            assert set(threading.enumerate()) <= threads | {threading.current_thread()}

    trainer, hook = trainer_with_hook(cfg, Resetting)
    trainer.train()
    assert trainer._trainer._data_loader_iter is sources[-1] is not sources[0]
    assert hook.terse.metrics()["images"] == 6


@pytest.mark.parametrize(
    ("terse", "workers"),
    [
        ({"policy": "random"}, 0),
        ({"policy": "random"}, 2),
        (CRITIC, 0),
        ({"policy": "random", "compose_ahead": False}, 0),
    ],
)
def test_nothing_is_pasted_in_the_last_fraction_of_a_training(
    configured: Configure, composing_threads: set[str], terse: dict[str, Any], workers: int
) -> None:
    closing = configured(workers, **terse, paste={"paste_probability": 1.0}, close_fraction=0.5)
    records = get_detection_dataset_dicts(closing.DATASETS.TRAIN, filter_empty=False)
    annotated = {own["file_name"]: sum(not entry.get("iscrowd") for entry in own["annotations"]) for own in records}
    _, hook, entered = train(closing, 4)
    pasted = [len(item["instances"]) != annotated[item["file_name"]] for item in entered]
    assert any(pasted[2:4])
    assert not any(pasted[4:])
    assert hook.terse.metrics()["images"] == len(pasted) == 8
    assert ("terse_aug_0" in composing_threads) == (terse is CRITIC)

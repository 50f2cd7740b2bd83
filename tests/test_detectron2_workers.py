"""Composites that are made in the workers of Detectron2's data loader."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import parameters_of
from frameworks import QUIET_DETECTRON2, need_detectron2
from torch.utils.data import Sampler

need_detectron2()
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.engine import DefaultTrainer, SimpleTrainer
from detectron2_factories import CLASSES, Watched, bank, dataset, tiny_cfg  # noqa: F401 - fixtures

from terse_aug import ForegroundBank
from terse_aug_detectron2 import TerseHook

pytestmark = [*QUIET_DETECTRON2, pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")]


class Order(Sampler[int]):
    """The order of a run; it can be begun anywhere, as no sampler of Detectron2 can."""

    def __init__(self, size: int) -> None:
        self.size, self.start = size, 0

    def __iter__(self) -> Iterator[int]:
        number = self.start
        while True:
            yield number * 5 % self.size
            number += 1


class Mapper(DatasetMapper):
    """Without random augmentation."""

    def __call__(self, dataset_dict: dict[str, Any]) -> Any:
        np.random.seed(0)  # noqa: NPY002 - what Detectron2's augmentations draw from
        return super().__call__(dataset_dict)


class Trainer(DefaultTrainer):
    """With an order that can be resumed, and batches that do not depend on the number of workers."""

    def __init__(self, cfg: CfgNode) -> None:
        torch.manual_seed(0)
        super().__init__(cfg)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
        order = Order(len(records))
        loader = build_detection_train_loader(
            records,
            mapper=Mapper(cfg, is_train=True),
            sampler=order,
            total_batch_size=2,
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        cls.order = order
        return loader

    def build_writers(self) -> list[Any]:
        return []


class Seeded(Watched):
    """What entered the model, whose own draws are a function of the iteration."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer.model)
        trainer.model.register_forward_pre_hook(lambda module, inputs: torch.manual_seed(trainer.iter) and None)


Configure = Callable[..., CfgNode]


@pytest.fixture
def configured(dataset: str, bank: ForegroundBank, tmp_path: Path) -> Configure:
    def make(workers: int, grouping: bool = False, **terse: Any) -> CfgNode:
        given = {"policy": "random", "paste": {"decoys": (0, 2), "occluded_object_probability": 0.5}} | terse
        cfg = tiny_cfg("mask_fpn", dataset, tmp_path, bank, **given)
        cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.ASPECT_RATIO_GROUPING = workers, grouping
        return cfg

    return make


def train(cfg: CfgNode, stop: int, start: int = 0) -> tuple[Any, TerseHook, list[Any]]:
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.CHECKPOINT_PERIOD = 4, (), 2
    trainer = Trainer(cfg)
    hook = TerseHook.from_config(cfg)
    assert hook is not None
    trainer.register_hooks([hook])
    trainer.resume_or_load(resume=start > 0)
    assert trainer.start_iter == start
    trainer.max_iter, trainer.order.start = stop, 2 * start
    entered = Seeded(trainer)
    trainer.train()
    trainer._trainer._data_loader_iter_obj = None  # ends the workers; the garbage collector waits 5 s for each
    return trainer, hook, [item for batch in entered.batches for item in batch]


def contents(items: list[Any]) -> list[Any]:
    fields = ("gt_boxes", "gt_classes", "gt_masks")
    values = [[item["instances"].get(name) for name in fields] for item in items]
    return [
        (item["file_name"], item["image"].tolist(), *[getattr(own, "tensor", own).tolist() for own in each])
        for item, each in zip(items, values, strict=True)
    ]


def test_any_number_of_workers_gives_one_training_and_so_does_resuming(configured: Configure) -> None:
    trainer, hook, entered = train(configured(0), 4)
    assert {item["image"].dtype for item in entered} == {torch.uint8}
    assert not any("terse_record" in item for item in entered)
    metrics = hook.terse.metrics()
    assert min(metrics[name] for name in ("decoys", "objects_labelled", "occludees", "iterations")) > 0
    assert metrics["images"] == 8
    for workers in (1, 3):
        other, own, seen = train(configured(workers), 4)
        assert contents(seen) == contents(entered)
        assert own.terse.metrics() == metrics
        assert all(map(torch.equal, parameters_of(trainer.model), parameters_of(other.model)))
    _, _, first = train(configured(2), 2)
    resumed, own, rest = train(configured(2), 4, start=2)
    assert contents(first + rest) == contents(entered)
    assert own.terse.metrics() == metrics
    assert all(map(torch.equal, parameters_of(trainer.model), parameters_of(resumed.model)))


def test_grouping_by_aspect_ratio_changes_batches_but_no_composite(configured: Configure) -> None:
    composites = []
    for workers in (0, 2):
        _, hook, entered = train(configured(workers, grouping=True), 4)
        composites.append({str(own) for own in contents(entered)})
        assert hook.terse.metrics()["images"] == 8
    assert len(composites[0] & composites[1]) >= 4


@pytest.mark.parametrize(
    ("terse", "reason"),
    [({"policy": "adversarial"}, "policy: AdversarialPolicy"), ({"sampler": "balanced"}, "sampler: BalancedSampler")],
)
def test_what_needs_the_iteration_before_is_composed_in_the_loop(
    configured: Configure, caplog: pytest.LogCaptureFixture, terse: dict[str, Any], reason: str
) -> None:
    logging.getLogger("detectron2.terse_aug").propagate = True
    with caplog.at_level(logging.INFO, "detectron2.terse_aug"):
        _, hook, _ = train(configured(0, **terse), 2)
    messages = [record.message for record in caplog.records if "Composites are made" in record.message]
    assert [("training loop" in own, reason in own) for own in messages] == [(True, True)]
    assert hook.terse.metrics()["objects_pasted"] > 0


def test_a_loader_that_has_begun_is_left_alone(
    configured: Configure, bank: ForegroundBank, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = configured(0)
    model = DefaultTrainer.build_model(cfg)
    trainer = SimpleTrainer(model, Trainer.build_train_loader(cfg), DefaultTrainer.build_optimizer(cfg, model))
    next(trainer._data_loader_iter)
    hook = TerseHook(bank.relabel(CLASSES), seed=0)
    trainer.register_hooks([hook])
    with caplog.at_level(logging.INFO, "detectron2.terse_aug"):
        trainer.train(0, 2)
    messages = [record.message for record in caplog.records if "Composites are made" in record.message]
    assert [("by a thread" in own, "made before the hook began" in own) for own in messages] == [(True, True)]
    assert hook.terse.metrics()["images"] == 4


def test_it_can_be_switched_off_and_leaves_the_loader_as_it_was(configured: Configure) -> None:
    counts = []
    for enabled in (True, False):
        trainer, hook, _ = train(configured(0, compose_ahead=enabled), 2)
        part = trainer._trainer.data_loader
        while hasattr(part, "dataset"):
            assert type(part.dataset).__name__ != "NumberedDataset"
            part = part.dataset
        counts.append(hook.terse.metrics())
    assert counts[0] != counts[1]

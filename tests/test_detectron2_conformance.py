"""Detectron2's adapter has every property of ``conformance``, with real models and trainers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance import Conformance
from framework_runs import (
    KEPT_BATCHES,
    Framework,
    LogRecorder,
    Run,
    Seen,
    Training,
    generator_states,
    resident_megabytes,
)
from frameworks import QUIET_DETECTRON2, need_detectron2
from torch import Tensor, nn

need_detectron2()
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2_factories import CLASSES, registered, tiny_cfg
from factories import tiny_bank, weights_of

from terse_aug_detectron2 import TerseHook, build_from_detectron2
from terse_aug_detectron2.batch import bitmasks

pytestmark = QUIET_DETECTRON2


@META_ARCH_REGISTRY.register()
class PlainModel(nn.Module):
    """The cheapest that a trainer accepts: a loss from the pixels in the boxes."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.weight = nn.Conv2d(3, 1, 1)
        self.num_classes = len(CLASSES)

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        if not self.training:
            from detectron2.structures import Boxes, Instances

            empty = {"pred_boxes": Boxes(torch.zeros(0, 4)), "scores": torch.zeros(0)}
            found = Instances((1, 1), **empty, pred_classes=torch.zeros(0, dtype=torch.long))
            return [{"instances": found} for _ in batch]
        return {"loss": torch.stack([self.weight(item["image"] / 255).square().mean() for item in batch]).mean()}


class Batches:
    """A mapper's work on a registered data set, batch by batch; drawn from the number of the iteration."""

    def __init__(self, cfg: CfgNode) -> None:
        from detectron2.data import DatasetCatalog

        self.records = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
        self.mapper = DatasetMapper(cfg, is_train=True)
        self.start = 0

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        number = self.start
        while True:
            np.random.seed(number)  # noqa: NPY002 - what Detectron2's augmentations draw from
            torch.manual_seed(number)
            pair = (2 * number % len(self.records), (2 * number + 1) % len(self.records))
            yield [self.mapper(self.records[index]) for index in pair]
            number += 1


class Trainer(DefaultTrainer):
    """Detectron2's own, with data that can be resumed."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Batches:
        return Batches(cfg)

    def build_writers(self) -> list[Any]:
        return []


class Watch(HookBase):
    """Records what goes through the trainer."""

    def __init__(self, run: Run, training: Training) -> None:
        self.run, self.training = run, training

    def before_train(self) -> None:
        inner = self.trainer._trainer
        inner.data_loader.start = self.trainer.start_iter
        source = inner._data_loader_iter

        def loaded() -> Iterator[Any]:
            for batch in source:
                if len(self.run.loaded) < KEPT_BATCHES:
                    self.run.loaded.append([seen(item) for item in batch])
                self.before = generator_states()
                yield batch

        inner._data_loader_iter_obj = loaded()
        self.trainer.model.register_forward_pre_hook(self._entered)
        self.trainer.model.register_forward_hook(self._left, prepend=True)

    def _entered(self, module: nn.Module, inputs: Any) -> None:
        if not is_training_forward(module):
            return
        self.run.draws.append((self.before, generator_states()))
        if len(self.run.entered) < KEPT_BATCHES:
            self.run.entered.append([seen(item) for item in inputs[0]])

    def _left(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not is_training_forward(module):
            return output
        if self.trainer.iter == self.training.not_finite_at:
            output = {name: value * 0 + float("inf") for name, value in output.items()}
        self.run.losses.append(float(sum(output.values()).detach()))
        self.before = generator_states()
        return output

    def after_step(self) -> None:
        self.run.draws.append((self.before, generator_states()))
        self.run.resident.append(resident_megabytes())
        if self.trainer.iter + 1 == self.training.save_at:
            self.trainer.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)


def is_training_forward(model: nn.Module) -> bool:
    """Whether this is the training's forward; in an extra forward no weight requires a gradient."""
    return model.training and any(parameter.requires_grad for parameter in model.parameters())


def seen(item: Mapping[str, Any]) -> Seen:
    instances, image = item["instances"], item["image"].detach().float().flip(0) / 255
    masks: Tensor | None = None
    if instances.has("gt_masks"):
        masks = instances.gt_masks.tensor if hasattr(instances.gt_masks, "tensor") else None
        if masks is None:
            masks = bitmasks(instances.gt_masks, *instances.image_size).tensor
    elif len(instances) == 0:
        masks = torch.zeros(0, *instances.image_size, dtype=torch.bool)
    return Seen(image.clone(), instances.gt_boxes.tensor.clone(), instances.gt_classes.clone(), masks)


class Detectron2(Framework):
    classes, pool = CLASSES, "folder"

    def __init__(self, dataset: str, bank: Any) -> None:
        self.dataset, self.bank = dataset, bank

    def run(self, training: Training) -> Run:
        bank, out = None if training.terse is None else self.bank, training.out
        cfg = tiny_cfg("mask_fpn", self.dataset, out, bank, **(training.terse or {}))
        cfg.TERSE.ROBUSTNESS.ENABLED = "robustness" in (training.terse or {})
        cfg.SOLVER.MAX_ITER = training.iterations
        cfg.SOLVER.STEPS = ()
        if training.model == "plain":
            cfg.MODEL.META_ARCHITECTURE = "PlainModel"
        torch.manual_seed(0)
        run = Run()
        trainer = Trainer(cfg)
        trainer._trainer.gather_metric_period = 10**9  # Detectron2 ends a training whose loss is not finite
        trainer.register_hooks([Watch(run, training)])
        if bank is not None:
            hook = TerseHook.from_config(cfg)
            trainer.register_hooks([hook])
        if training.start:
            (out / "last_checkpoint").write_text(f"model_{training.start - 1:07d}.pth")
            trainer.resume_or_load(resume=True)
            assert trainer.start_iter == training.start
        log = logging.getLogger("detectron2.terse_aug")
        log.addHandler(recorder := LogRecorder(run.warned))
        try:
            trainer.train()
        finally:
            log.removeHandler(recorder)
        if bank is not None and hook is not None:
            run.terse = hook.terse
        del run.loaded[len(run.entered) :]  # the batch that was composed ahead of the last one
        run.weights = weights_of(trainer.model)
        return run

    def bank_source(self, folder: Path, boxes_only: bool = False) -> tuple[Callable[..., Any], list[str]]:
        name = "boxes_only" if boxes_only else self.dataset
        return partial(build_from_detectron2, name), ["detectron2", "--datasets", name]


@pytest.fixture(scope="module")
def framework(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Detectron2]:
    folder = tmp_path_factory.mktemp("data")
    with contextlib.ExitStack() as stack:
        dataset = stack.enter_context(registered(folder))
        stack.enter_context(registered(folder, "boxes_only", masks=False))
        yield Detectron2(dataset, tiny_bank(folder))


class TestDetectron2(Conformance):
    """All of it."""

"""MMDetection's adapter has every property of ``conformance``, with real models and a real runner."""

from __future__ import annotations

import itertools
from collections.abc import Callable
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
from frameworks import QUIET_MMDET, need_mmdet
from torch import nn

need_mmdet()
from factories import tiny_bank, weights_of
from mmcv.transforms import BaseTransform
from mmdet.models.detectors import BaseDetector
from mmdet.registry import HOOKS, MODELS, TRANSFORMS
from mmdet_factories import CLASSES, pipeline, runner_config, tiny_mask_rcnn, write_data
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from terse_aug.data.numbered_dataset import NumberedDataset
from terse_aug_mmdet import TerseHook, build_from_mmdet

pytestmark = QUIET_MMDET
_NUMBERS = itertools.count()
_RUNS: dict[int, Run] = {}
"""By number, since a config copies what it holds."""


@TRANSFORMS.register_module()
class SeedByImage(BaseTransform):
    """Makes what later transforms draw a function of the image."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        np.random.seed(results["img_id"])  # noqa: NPY002 - what MMDetection's transforms draw from
        return results


@MODELS.register_module()
class PlainDetector(BaseDetector):
    """The cheapest that a runner accepts."""

    def __init__(self, data_preprocessor: Any = None) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        self.weight = nn.Conv2d(3, 1, 1)
        self.blown_up = False

    def loss(self, batch_inputs: Any, batch_data_samples: Any) -> dict[str, Any]:
        loss = self.weight(batch_inputs).square().mean()
        return {"loss_plain": loss * 0 + float("inf") if self.blown_up else loss}

    def predict(self, batch_inputs: Any, batch_data_samples: Any, rescale: bool = True) -> Any:
        for sample in batch_data_samples:
            empty = {"bboxes": torch.zeros(0, 4), "scores": torch.zeros(0)}
            sample.pred_instances = InstanceData(**empty, labels=torch.zeros(0, dtype=torch.long))
        return batch_data_samples

    def _forward(self, batch_inputs: Any, batch_data_samples: Any = None) -> Any:
        return self.weight(batch_inputs)

    def extract_feat(self, batch_inputs: Any) -> Any:
        return batch_inputs


@HOOKS.register_module()
class WatchLoaded(Hook):
    """Records batches before every other hook; seeds what the model draws by the iteration."""

    priority = "VERY_HIGH"

    def __init__(self, run: int, not_finite_at: int | None) -> None:
        self.run, self.not_finite_at = _RUNS[run], not_finite_at

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if len(self.run.loaded) < KEPT_BATCHES:
            self.run.loaded.append(seen(not_composed(runner.train_dataloader.dataset, data_batch)))
        torch.manual_seed(runner.iter)
        np.random.seed(runner.iter)  # noqa: NPY002
        runner.model.blown_up = runner.iter == self.not_finite_at
        self.run.draws.append((generator_states(), ""))

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.run.draws.append((generator_states(), ""))


@HOOKS.register_module()
class WatchEntered(Hook):
    """Records batches and losses after every other hook."""

    priority = "LOWEST"

    def __init__(self, run: int, save_at: int | None) -> None:
        self.run, self.save_at = _RUNS[run], save_at

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.run.draws[-1] = (self.run.draws[-1][0], generator_states())
        if len(self.run.entered) < KEPT_BATCHES:
            self.run.entered.append(seen(data_batch))

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.run.draws[-1] = (self.run.draws[-1][0], generator_states())
        self.run.losses.append(float(outputs["loss"].detach()))
        self.run.resident.append(resident_megabytes())
        if runner.iter + 1 == self.save_at:
            runner.save_checkpoint(runner.work_dir, f"iter_{self.save_at}.pth", by_epoch=False)


def not_composed(dataset: Any, batch: Any) -> Any:
    """The batch as the data set gives it, where the loader has composed it."""
    if not isinstance(dataset, NumberedDataset):
        return batch
    plain = vars(dataset)["dataset"]
    numbers = {plain.get_data_info(number)["img_id"]: number for number in range(len(plain))}
    packed = [plain[numbers[sample.img_id]] for sample in batch["data_samples"]]
    return {name: [own[name] for own in packed] for name in ("inputs", "data_samples")}


def seen(batch: Any) -> list[Seen]:
    every = []
    for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
        instances = sample.gt_instances
        masks = instances.masks.to_tensor(torch.bool, "cpu")
        rgb = image.detach().float().flip(0) / 255
        every.append(Seen(rgb.clone(), instances.bboxes.tensor.clone(), instances.labels.clone(), masks))
    return every


class MMDetection(Framework):
    classes, pool = CLASSES, "source"

    def __init__(self, data: Path, bank: Path) -> None:
        self.data, self.bank = data, bank

    def run(self, training: Training) -> Run:
        number, run = next(_NUMBERS), Run()
        _RUNS[number] = run
        hooks: list[dict[str, Any]] = [
            {"type": "WatchLoaded", "run": number, "not_finite_at": training.not_finite_at},
            {"type": "WatchEntered", "run": number, "save_at": training.save_at},
        ]
        steps = pipeline()
        steps.insert(2, {"type": "SeedByImage"})
        if training.terse is not None:
            settings = {"bank": str(self.bank), **training.terse}
            hooks.insert(0, {"type": "TerseHook", **settings})
            steps.insert(-1, {"type": "TersePaste", **settings})
        scaled = {"type": "DetDataPreprocessor", "mean": [0.0] * 3, "std": [255.0] * 3}
        plain = {"type": "PlainDetector", "data_preprocessor": scaled}
        cfg = runner_config(
            tiny_mask_rcnn() if training.model == "masks" else plain,
            self.data,
            training.out,
            training.iterations,
            hooks,
            pipeline=steps,
            resume=bool(training.start),
            load_from=str(training.out / f"iter_{training.start}.pth") if training.start else None,
            experiment_name=f"conformance{number}",
        )
        runner = Runner.from_cfg(cfg)
        runner.logger.addHandler(LogRecorder(run.warned))
        runner.train()
        run.terse = next((hook.terse for hook in runner.hooks if isinstance(hook, TerseHook) and hook.started), None)
        run.weights = weights_of(runner.model)
        return run

    def bank_source(self, folder: Path, boxes_only: bool = False) -> tuple[Callable[..., Any], list[str]]:
        data = write_data(folder, boxes_only)
        cfg = runner_config(tiny_mask_rcnn(), data, folder, 1, [], experiment_name=f"bank{next(_NUMBERS)}")
        cfg.dump(str(folder / "config.py"))
        return partial(build_from_mmdet, cfg), ["mmdet", "--config", str(folder / "config.py")]


@pytest.fixture(scope="module")
def framework(tmp_path_factory: pytest.TempPathFactory) -> MMDetection:
    folder = tmp_path_factory.mktemp("data")
    return MMDetection(write_data(folder), tiny_bank(folder).path)


class TestMMDetection(Conformance):
    """All of it."""

"""Checkpoints and logs of Detectron2's trainers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import QUIET_DETECTRON2, need_detectron2

need_detectron2()
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, hooks
from detectron2.utils.events import get_event_storage
from detectron2_factories import (  # noqa: F401 - fixtures
    CLASSES,
    KeepStorage,
    Watched,
    bank,
    dataset,
    registered,
    tiny_cfg,
    trainer_with_hook,
)

from terse_aug import ForegroundBank
from terse_aug_detectron2 import TerseHook

pytestmark = QUIET_DETECTRON2


class Trained:
    """A training of four iterations with checkpoints, logs and images, which several tests use."""

    def __init__(self, cfg: CfgNode) -> None:
        images: list[int] = []

        class Trainer(DefaultTrainer):
            def build_hooks(self) -> list[Any]:
                return [*super().build_hooks()[:-1], hooks.PeriodicWriter(self.build_writers(), period=2)]

            def after_step(self) -> None:
                super().after_step()
                images.append(len(get_event_storage()._vis_data))

        self.cfg, self.folder, self.waiting_images = cfg, Path(cfg.OUTPUT_DIR), images
        self.trainer, self.hook = trainer_with_hook(cfg, Trainer)
        self.hooks_before = list(self.trainer._hooks)
        self.trainer.train()

    def copy(self, folder: Path) -> CfgNode:
        """A config that resumes from a copy of the folder, for one more iteration."""
        shutil.copytree(self.folder, folder)
        cfg = self.cfg.clone()
        cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER = str(folder), 5
        return cfg


@pytest.fixture(scope="module")
def trained(dataset: str, bank: ForegroundBank, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    return Trained(tiny_cfg("faster_fpn", dataset, folder, bank, log_period=2, image_period=4))


@pytest.mark.parametrize("register_first", [True, False])
def test_the_state_is_found_whether_registering_or_resuming_came_first(
    trained: Trained, tmp_path: Path, register_first: bool
) -> None:
    cfg = trained.copy(tmp_path / "out")
    resumed, hook = DefaultTrainer(cfg), TerseHook.from_config(cfg)
    if register_first:
        resumed.register_hooks([hook])
    resumed.resume_or_load(resume=True)
    if not register_first:
        resumed.register_hooks([hook])
    assert resumed.start_iter == 4
    resumed.train()
    assert hook is not None
    assert hook.terse.metrics()["iterations"] == 5
    assert trained.hook.terse.metrics()["iterations"] == 4


def test_a_checkpoint_has_the_detectors_weights_alone_and_can_be_resumed_without(
    trained: Trained, tmp_path: Path
) -> None:
    cfg = trained.copy(tmp_path / "out")
    saved = torch.load(tmp_path / "out" / "model_final.pth", map_location="cpu")
    assert set(saved["model"]) == set(trained.trainer.model.state_dict())
    assert set(saved["trainer"]["hooks"]["TerseHook"]) == {"seed", "terse"}
    cfg.TERSE.ENABLED = False
    without = DefaultTrainer(cfg)
    without.resume_or_load(resume=True)
    without.train()


def test_after_training_the_trainer_is_as_it_was(trained: Trained) -> None:
    trainer = trained.trainer
    assert trainer._hooks == trained.hooks_before
    assert "reset_data_loader" not in vars(trainer._trainer)
    assert not trainer.model._forward_hooks
    batch = next(trainer._trainer._data_loader_iter)
    assert all(one["image"].dtype == torch.uint8 for one in batch)
    assert all("gt_masks" not in one["instances"].get_fields() for one in batch)


def test_metrics_and_images_are_written_with_their_iteration(trained: Trained) -> None:
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    lines = [json.loads(line) for line in (trained.folder / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 3]
    assert [line["terse_aug/iterations"] for line in lines] == [2, 4]
    for name in ("hardness", "diversity", "skipped_updates", "time_fraction", "hardness_gain", "non_finite"):
        assert f"terse_aug/{name}" in lines[-1], name
    assert 0 < lines[-1]["terse_aug/time_fraction"] < 1
    assert not [name for name in lines[-1] if name.startswith("terse_aug/") and "loss" in name]
    events = tensorboard.EventAccumulator(str(trained.folder)).Reload()
    assert [event.step for event in events.Images("terse_aug/composites")] == [3]
    assert not any(trained.waiting_images)


def test_images_do_not_pile_up_without_a_writer(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    class Silent(KeepStorage):
        def build_writers(self) -> list[Any]:
            return []

    cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank, image_period=1)
    cfg.SOLVER.MAX_ITER = 2
    trainer, _ = trainer_with_hook(cfg, Silent)
    trainer.train()
    assert [name for name, *_ in trainer.kept._vis_data] == ["terse_aug/composites"]  # type: ignore[attr-defined]

"""Samplers, pools of backgrounds and distractors in MMDetection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hosts import QUIET_MMDET, need_mmdet
from PIL import Image

need_mmdet()
from factories import make_foreground
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmdet_factories import pipeline, runner_config, tiny_bank, tiny_mask_rcnn, write_data
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from terse_aug.bank import BankWriter
from terse_aug.samplers import RaritySampler
from terse_aug_mmdet import TerseHook, TersePaste
from terse_aug_mmdet.batch import put_back

pytestmark = QUIET_MMDET


def distractors(folder: Path, name: str) -> str:
    with BankWriter(folder / f"{name}.bank", {1: name}) as out:
        out.add(make_foreground(3))
    return str(folder / f"{name}.bank")


class Watching(Hook):
    """Keeps what enters the model, after the pasting."""

    priority = "LOW"

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.batches.append(dict(data_batch))


@pytest.mark.parametrize("in_workers", [True, False])
def test_a_model_is_trained_on_images_of_the_pool(tmp_path: Path, in_workers: bool) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "pool").mkdir()
    Image.fromarray(np.full((90, 140, 3), (200, 0, 0), np.uint8)).save(tmp_path / "pool" / "red.png")
    own = {
        "bank": str(tiny_bank(tmp_path).path),
        "policy": "random",
        "sampler": "rarity",
        "backgrounds": str(tmp_path / "pool"),
        "background_probability": 1.0,
        "distractor_bank": distractors(tmp_path, "teapot"),
        "distractors": (1, 1),
        "superimpose_probability": 0.5,
    }
    steps = pipeline({"type": "TersePaste", **own}) if in_workers else pipeline()
    data = write_data(tmp_path / "data")
    cfg = runner_config(
        tiny_mask_rcnn(),
        data,
        tmp_path / "out",
        2,
        [{"type": "TerseHook", **own}],
        pipeline=steps,
        experiment_name=f"pairing{in_workers}",
    )
    runner = Runner.from_cfg(cfg)
    watching = Watching()
    runner.register_hook(watching)
    runner.train()
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, TerseHook))
    assert isinstance(hook.terse.sampler, RaritySampler)
    figures = hook.terse.metrics()
    assert figures["backgrounds"] == figures["images"] == 4
    for batch in watching.batches:
        for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
            masks = torch.from_numpy(sample.gt_instances.masks.masks).bool()
            red = (image[2] > 190) & (image[:2].amax(0) < 10)
            assert float(red[~masks.any(0)].float().mean()) > 0.6
            assert 1 <= len(sample.gt_instances) <= 6
            assert len(sample.ignored_instances) == 0


def test_regions_to_ignore_go_with_the_image_they_were_on() -> None:
    samples = []
    for _ in range(2):
        boxes = HorizontalBoxes(torch.tensor([[0.0, 0.0, 5.0, 5.0]]))
        masks = BitmapMasks(np.ones((1, 20, 30), np.uint8), 20, 30)
        parts = InstanceData(bboxes=boxes, labels=torch.tensor([0]), masks=masks)
        samples.append(DetDataSample(metainfo={"img_path": "a"}, gt_instances=parts, ignored_instances=parts.clone()))
    batch: dict[str, Any] = {"inputs": [torch.zeros(3, 20, 30)] * 2, "data_samples": samples}
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "masks": torch.zeros(0, 20, 30)}
    put_back(batch, batch["inputs"], [target, target], {1: 0})
    after = [sample.ignored_instances for sample in batch["data_samples"]]
    assert [len(own) for own in after] == [1, 0]
    assert len(after[1].bboxes) == len(after[1].labels) == len(after[1].masks) == 0
    assert len(samples[1].ignored_instances) == 1


def test_what_cannot_be_is_said_before_training(tmp_path: Path) -> None:
    bank = str(tiny_bank(tmp_path).path)
    for make in (TerseHook, TersePaste):
        with pytest.raises(ValueError, match="sampler: expected one of uniform, rarity, hardness, balanced"):
            make(bank, sampler="even")
    for name in ("hardness", "balanced"):
        with pytest.raises(ValueError, match="in MMDetection without TersePaste"):
            TersePaste(bank, sampler=name)
    (tmp_path / "data").mkdir()
    data = write_data(tmp_path / "data")
    # The data set has dogs, though the bank has none.
    cats = {"type": "TerseHook", "bank": distractors(tmp_path, "cat"), "distractors": (1, 1)}
    hooks = [cats | {"distractor_bank": distractors(tmp_path, "dog")}]
    runner = Runner.from_cfg(runner_config(tiny_mask_rcnn(), data, tmp_path / "out", 1, hooks, experiment_name="known"))
    with pytest.raises(ValueError, match="distractor_bank: dog: the detector knows this class"):
        runner.train()

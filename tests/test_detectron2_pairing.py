"""Samplers, pools of backgrounds and distractors in Detectron2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosts import QUIET_DETECTRON2, need_detectron2
from PIL import Image

need_detectron2()
from detectron2_factories import Watched, bank, dataset, tiny_cfg, trainer_with_hook  # noqa: F401 - fixtures
from factories import make_foreground

from terse_aug import ForegroundBank
from terse_aug.bank import BankWriter
from terse_aug.samplers import BalancedSampler, HardnessSampler, RaritySampler
from terse_aug_detectron2 import TerseHook, TerseMapper, terse_config

pytestmark = QUIET_DETECTRON2


def pool(folder: Path) -> str:
    (folder / "pool").mkdir()
    for number in range(3):
        picture = np.full((90, 140, 3), (200, 0, 0), np.uint8)
        Image.fromarray(picture).save(folder / "pool" / f"{number}.png")
    return str(folder / "pool")


def distractors(folder: Path, name: str) -> str:
    with BankWriter(folder / f"{name}.bank", {1: name}) as out:
        out.add(make_foreground(3))
    return str(folder / f"{name}.bank")


def test_a_model_is_trained_on_images_of_the_pool_paired_in_turn(
    dataset: str,
    bank: ForegroundBank,
    tmp_path: Path,
) -> None:
    own: dict[str, Any] = {
        "SAMPLER": "balanced",
        "BACKGROUNDS": pool(tmp_path),
        "BACKGROUND_PROBABILITY": 1.0,
        "DISTRACTOR_BANK": distractors(tmp_path, "teapot"),
        "DISTRACTORS": (1, 1),
        "SUPERIMPOSE_PROBABILITY": 0.5,
        "POLICY": "random",
    }
    trainer, hook = trainer_with_hook(tiny_cfg("mask_fpn", dataset, tmp_path / "out", bank, **own))
    watched = Watched(trainer.model)
    trainer.train()
    assert isinstance(hook.terse.sampler, BalancedSampler)
    figures = hook.terse.metrics()
    assert figures["backgrounds"] == figures["images"] == 8
    assert figures["distractors"] > 0
    for item in (item for batch in watched.batches for item in batch):
        instances, image = item["instances"], item["image"]
        free = ~instances.gt_masks.tensor.any(0)
        # BGR: the pool is red. What is not is a distractor, or the edge of something.
        red = (image[2] > 190) & (image[:2].amax(0) < 10)
        assert float(red[free].float().mean()) > 0.6
        assert 1 <= len(instances) <= 6
        assert image.shape[1:] == instances.image_size


def test_hardness_of_the_classes_is_heard_and_saved(
    dataset: str,
    bank: ForegroundBank,
    tmp_path: Path,
) -> None:
    trainer, hook = trainer_with_hook(
        tiny_cfg("faster_fpn", dataset, tmp_path, bank, SAMPLER="hardness", POLICY="random")
    )
    trainer.train()
    assert isinstance(hook.terse.sampler, HardnessSampler)
    assert float(hook.state_dict()["terse"]["sampler.totals"][1].sum()) > 0
    assert hook.terse.metrics()["extra_forwards"] == 0


def test_training_goes_on_with_a_sampler_of_ones_own(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    _, hook = trainer_with_hook(tiny_cfg("faster_fpn", dataset, tmp_path, bank, POLICY="random"))
    hook._pairing["sampler"] = RaritySampler()
    for _ in range(2):  # as every train() begins
        hook.before_train()
        assert isinstance(hook.terse.sampler, RaritySampler)


def test_what_cannot_be_is_said_before_training(
    dataset: str,
    bank: ForegroundBank,
    tmp_path: Path,
) -> None:
    cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank, DISTRACTOR_BANK=distractors(tmp_path, "cat"))
    with pytest.raises(ValueError, match="distractor_bank: cat: the detector knows this class"):
        TerseHook.from_config(cfg)
    cfg.TERSE.DISTRACTOR_BANK, cfg.TERSE.SAMPLER = "", "even"
    with pytest.raises(ValueError, match="sampler: expected one of uniform, rarity, hardness, balanced"):
        terse_config(cfg)
    cfg.TERSE.SAMPLER = "balanced"
    with pytest.raises(ValueError, match="in Detectron2 without TerseMapper"):
        TerseMapper.from_config(cfg)
    cfg.TERSE.SAMPLER = "dog=2,cat=0.5"
    assert TerseMapper.from_config(cfg) is not None

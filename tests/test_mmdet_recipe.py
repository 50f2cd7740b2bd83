"""MMDetection: the documented recipe with shipped configs, and what is refused or warned about."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import cv2
import mmdet
import numpy as np
import pytest
import torch
from factories import make_bank, make_foreground
from frameworks import QUIET_MMDET, need_mmdet

need_mmdet()
from mmdet.registry import MODELS, TRANSFORMS
from mmdet.structures import DetDataSample
from mmdet_factories import bank, data, made, narrowed, pipeline, runner_config, settings, shipped, tiny_mask_rcnn  # noqa: F401
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from terse_aug import ForegroundBank, Terse, TerseWarning
from terse_aug.cli import main
from terse_aug_mmdet import MMDetAdapter, TerseHook
from terse_aug_mmdet.batch import to_samples
from terse_aug_mmdet.workers import records_of

pytestmark = QUIET_MMDET
CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
RTMDET = CONFIGS / "rtmdet" / "rtmdet_tiny_8xb32-300e_coco.py"
CPU = torch.device("cpu")


def child_config(folder: Path, base: Path, terse: dict[str, Any]) -> Config:
    """A config of its own, as docs/mmdet.md has it."""
    (folder / "own.py").write_text(
        f'_base_ = "{base}"\n'
        f"terse = {terse!r}\n"
        'default_hooks = dict(terse=dict(type="terse_aug_mmdet.TerseHook", **terse))\n'
        "train_pipeline = _base_.train_pipeline\n"
        'train_pipeline.insert(-1, dict(type="terse_aug_mmdet.TersePaste", **terse))\n'
        "train_dataloader = dict(dataset=dict(pipeline=train_pipeline))\n"
    )
    return Config.fromfile(folder / "own.py")


@pytest.mark.parametrize(
    "name", ["rtmdet/rtmdet_tiny_8xb32-300e_coco.py", "yolox/yolox_tiny_8xb8-300e_coco.py", "rtmdet.py"]
)
def test_a_child_config_keeps_hooks_and_imports_of_its_base(name: str, tmp_path: Path) -> None:
    path = CONFIGS / name
    if not path.exists():  # a base of one's own
        path = tmp_path / name
        path.write_text(f'_base_ = "{RTMDET}"\ncustom_imports = dict(imports=["json"])\n')
    base, own = Config.fromfile(path), child_config(tmp_path, path, {"bank": "objects.bank"})
    assert own.custom_hooks == base.custom_hooks
    assert "EMAHook" in [hook.type for hook in own.custom_hooks]
    assert own.get("custom_imports") == base.get("custom_imports")
    assert own.default_hooks.pop("terse").type == "terse_aug_mmdet.TerseHook"
    assert own.default_hooks == base.default_hooks
    steps = own.train_dataloader.dataset.pipeline
    assert [step.type for step in steps[-2:]] == ["terse_aug_mmdet.TersePaste", "PackDetInputs"]
    base.merge_from_dict({"default_hooks.terse.type": "terse_aug_mmdet.TerseHook", "default_hooks.terse.bank": "b"})
    assert base.default_hooks.terse == {"type": "terse_aug_mmdet.TerseHook", "bank": "b"}


def test_the_recipe_trains_beside_the_hooks_of_the_base(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    own = child_config(tmp_path, RTMDET, settings(bank, "random"))
    cfg = runner_config(tiny_mask_rcnn(), data, tmp_path / "out", 2, own.custom_hooks, log_level="ERROR")
    cfg.default_hooks.update(terse=own.default_hooks.terse)
    cfg.train_dataloader.dataset.pipeline.insert(-1, own.train_pipeline[-2])
    torch.manual_seed(0)
    runner = Runner.from_cfg(cfg)
    runner.train()
    kinds = [type(hook).__name__ for hook in runner.hooks]
    assert {"EMAHook", "PipelineSwitchHook", "TerseHook"} <= set(kinds)
    hook = next(hook for hook in runner.hooks if isinstance(hook, TerseHook))
    assert hook.terse.metrics()["objects_pasted"] > 0


def test_two_hooks_are_refused_unless_one_is_off(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    terse = settings(bank, "random")
    runner, _ = made(data, tmp_path, 1, terse, hooks=[{"type": "TerseHook", **terse}])
    with pytest.raises(ValueError, match="two TerseHooks are enabled, which would both paste"):
        runner.train()
    runner, hook = made(data, tmp_path, 1, terse, hooks=[{"type": "TerseHook", **terse, "enabled": False}])
    runner.train()
    assert hook.terse.metrics()["calls"] == 1


@pytest.mark.parametrize(("policy", "ahead"), [("random", True), ("matched", False)])
def test_a_transform_with_other_settings_than_the_hooks_is_refused(
    policy: str, ahead: bool, data: Path, bank: ForegroundBank, tmp_path: Path
) -> None:
    terse = settings(bank, policy)
    other = {**terse, "paste": {**terse["paste"], "objects": (5, 5)}}
    steps = pipeline({"type": "TersePaste", **other})
    runner, _ = made(data, tmp_path, 1, {**terse, "compose_ahead": ahead}, pipeline=steps)
    with pytest.raises(ValueError, match=r"paste_probability, objects, decoys: expected .* got \(1.0, \(5, 5\)"):
        runner.train()


def test_a_transform_without_a_hook_warns_once(bank: ForegroundBank) -> None:
    gc.collect()  # hooks of other trainings
    step = TRANSFORMS.build({"type": "TersePaste", "bank": str(bank.path)})
    with pytest.warns(TerseWarning, match="TersePaste samples foregrounds, but no TerseHook was made so far") as given:
        step({"img": np.zeros((4, 4, 3))})
    step({"img": np.zeros((4, 4, 3))})
    off = TerseHook(str(bank.path), enabled=False)
    with pytest.warns(TerseWarning, match="no TerseHook was made so far"):
        TRANSFORMS.build({"type": "TersePaste", "bank": str(bank.path)})({"img": np.zeros((4, 4, 3))})
    hook = TerseHook(str(bank.path))
    TRANSFORMS.build({"type": "TersePaste", "bank": str(bank.path)})({"img": np.zeros((4, 4, 3))})
    assert len(given) == 1
    assert (off.started, hook.started) == (False, False)


def test_semi_supervised_training_is_refused_by_model_and_by_batch() -> None:
    model = shipped("soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py")
    model.detector = narrowed(model.detector)
    with pytest.raises(ValueError, match=r"SoftTeacher learns from batches in branches, .* not supported"):
        MMDetAdapter(MODELS.build(model))
    branches = {"sup": torch.zeros(3, 4, 4), "unsup_teacher": torch.zeros(3, 4, 4)}
    for read in (records_of, lambda batch: to_samples(batch, CPU)):
        with pytest.raises(ValueError, match=r"branches, \['sup', 'unsup_teacher'\], as MultiBranch makes them"):
            read({"inputs": {"sup": [], "unsup_teacher": []}, "data_samples": {}})
        with pytest.raises(ValueError, match="as MultiBranch makes them"):
            read({"inputs": [branches], "data_samples": [{}]})
        with pytest.raises(ValueError, match=r"a dictionary of inputs and data_samples, .* got tuple: batches of sev"):
            read(({"inputs": []}, {"inputs": []}))


@pytest.mark.parametrize(("columns", "channels", "reason"), [(5, 3, "rotated boxes"), (4, 1, r"image.expand\(3, -1")])
def test_rotated_boxes_and_gray_images_are_refused(
    columns: int, channels: int, reason: str, bank: ForegroundBank
) -> None:
    boxes = torch.tensor([[10.0, 10, 20, 20, 0.5]])[:, :columns]
    sample = DetDataSample(gt_instances=InstanceData(bboxes=boxes, labels=torch.zeros(1, dtype=torch.int64)))
    batch = {"inputs": [torch.zeros(channels, 64, 64, dtype=torch.uint8)], "data_samples": [sample]}
    with pytest.raises(ValueError, match=reason):
        Terse(bank)(*to_samples(batch, CPU))


def test_a_misspelled_class_is_recognized(data: Path, tmp_path: Path) -> None:
    bears = make_bank(tmp_path, [make_foreground(label=1), make_foreground(label=7)])
    runner, _ = made(data, tmp_path, 1, {"bank": str(bears.path)})
    with pytest.raises(ValueError, match=r"lacks: zebra; .* leave .* out with drop_unknown_classes=True"):
        runner.train()


def test_a_bank_is_built_from_a_config_that_mmdet_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path("data/coco")
    for name in ("annotations", "train2017"):
        (root / name).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8)
    cv2.imwrite(str(root / "train2017" / "1.png"), pixels)
    outline = [10, 10, 60, 10, 60, 50, 10, 50]
    own = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 50, 40], "area": 2000, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 80, "width": 90}],
        "annotations": [own | {"segmentation": [outline]}],
        "categories": [{"id": 7, "name": "person"}],
    }
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    config = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
    assert main(["bank", "build", "mmdet", "--config", config, "--out", "own.bank"]) == 0
    assert list(ForegroundBank.open("own.bank").categories.values()) == ["person"]

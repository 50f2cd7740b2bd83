"""examples/mmdet: converted weights give the same features, and the benchmark's arms are the configs of their names."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import QUIET_MMDET, need_mmdet

need_mmdet()
from mmdet.models.backbones import MobileNetV2
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from mmengine.config import Config, DictAction
from torchvision.models import mobilenet_v2

pytestmark = QUIET_MMDET
ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "mmdet"


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(EXAMPLE / script), run_name="__main__")


def test_features_are_those_of_torchvisions_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    other = mobilenet_v2().eval()
    for part in other.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    torch.save(other.state_dict(), tmp_path / "given.pth")
    run(monkeypatch, "mobilenet_weights.py", str(tmp_path / "given.pth"), "--out", str(tmp_path / "new" / "own.pth"))
    backbone = dict(Config.fromfile(EXAMPLE / "configs" / "pedestrians_mobilenet.py").model.backbone)
    assert (backbone.pop("type"), backbone.pop("init_cfg")["type"]) == ("MobileNetV2", "Pretrained")
    own = MobileNetV2(**backbone)
    own.eval()
    missing, unexpected = own.load_state_dict(torch.load(tmp_path / "new" / "own.pth"), strict=False)
    assert not missing
    assert all(name.startswith(("conv2.", "layer")) for name in unexpected)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = own(image)
        for features, end in zip(found, (4, 7, 14, 18), strict=True):
            torch.testing.assert_close(features, other.features[:end](image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arm", ["none", "critic", "copypaste"])
def test_an_arm_of_the_benchmark_has_the_config_of_its_name(
    arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks._frameworks import MMDetection, Run

    paths = {"data": tmp_path, "weights": tmp_path / "w.pth", "out": tmp_path}
    args = argparse.Namespace(**paths, iterations=40, amp=False, device="cpu", options=[])
    benchmark = MMDetection(args)
    command = benchmark.command(Run(60, arm, 7))
    cfg = Config.fromfile(next(part for part in command if "configs" in part))
    options = argparse.ArgumentParser()
    options.add_argument("--cfg-options", nargs="+", action=DictAction)
    cfg.merge_from_dict(options.parse_args(command[command.index("--cfg-options") :]).cfg_options)
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval, cfg.randomness.seed) == (40, 40, 7)
    assert [(step.type, step.get("milestones")) for step in cfg.param_scheduler][1] == ("MultiStepLR", [30])
    data = cfg.train_dataloader.dataset
    steps = [step.type for step in data.pipeline]
    if arm == "copypaste":
        assert steps == ["CopyPaste", "PackDetInputs"]
        data = data.dataset
    assert data.ann_file == "data/train_60.json"
    assert (
        ("terse_aug_mmdet.TersePaste" in steps)
        == (arm == "critic")
        == ("terse_aug_mmdet.TerseHook" in [hook.type for hook in cfg.default_hooks.values()])
    )
    if arm == "critic":
        for part in (data.pipeline[-2], cfg.default_hooks.terse):
            assert part.type.startswith("terse_aug_mmdet.Terse")
            assert (part.policy.type, Path(part.bank).name) == ("critic", "people-60.bank")


def test_copypaste_pastes_people_on_images_of_one_size(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_all_modules(init_default_scope=True)
    monkeypatch.chdir(tmp_path)
    Path("PennFudanPed").symlink_to(data_root / "penn_fudan")
    run(monkeypatch, "penn_fudan_to_coco.py", "PennFudanPed", "--out", "data")
    counts: dict[str, list[int]] = {}
    for name in ("", "_copypaste"):
        cfg = Config.fromfile(EXAMPLE / "configs" / f"pedestrians_mobilenet{name}.py")
        dataset: Any = DATASETS.build(cfg.train_dataloader.dataset)
        samples = [dataset[index] for index in range(10)]
        counts[name] = [len(sample["data_samples"].gt_instances) for sample in samples]
        if name:
            assert {tuple(sample["inputs"].shape) for sample in samples} == {(3, 448, 448)}
    more = [after - before for before, after in zip(counts[""], counts["_copypaste"], strict=True)]
    assert max(more) <= 3
    assert sum(more) > 3

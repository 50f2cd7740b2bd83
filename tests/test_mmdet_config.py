"""MMDetection by a config alone: two lines on top of a base, no code and no transform."""

from __future__ import annotations

from pathlib import Path

import pytest
from frameworks import QUIET_MMDET, need_mmdet

need_mmdet()

from mmdet_factories import bank, data, runner_config, tiny_yolox
from mmengine.config import Config
from mmengine.runner import Runner

from terse_aug import ForegroundBank

pytestmark = QUIET_MMDET
__all__ = ["bank", "data"]


@pytest.mark.parametrize("policy", ["random", "critic"])
def test_the_hook_in_a_config_is_enough(data: Path, bank: ForegroundBank, tmp_path: Path, policy: str) -> None:
    base = runner_config(tiny_yolox(), data, tmp_path / "out", 2, [], experiment_name=f"config_{policy}")
    base.pop("custom_hooks")
    base.dump(tmp_path / "base.py")
    (tmp_path / "own.py").write_text(
        '_base_ = "base.py"\n'
        'custom_imports = dict(imports=["terse_aug_mmdet"])\n'
        f'custom_hooks = [dict(type="TerseHook", bank={str(bank.path)!r}, policy={policy!r},'
        " paste=dict(paste_probability=1.0))]\n"
    )
    runner = Runner.from_cfg(Config.fromfile(tmp_path / "own.py"))
    runner.train()
    (hook,) = (hook for hook in runner.hooks if type(hook).__name__ == "TerseHook")
    metrics = hook.terse.metrics()
    assert (metrics["calls"], metrics["images"], metrics["iterations"]) == (2, 4, 2)
    assert metrics["objects_pasted"] >= 4
    assert metrics["feedback_failed"] == metrics["extra_forwards"] == 0

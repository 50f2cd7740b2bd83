"""Penn-Fudan's cut-outs made of boxes, for the benchmark that compares ways to cut out."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from terse_aug.bank import ForegroundBank

ROOT = Path(__file__).parents[1]


def test_boxes_are_cut_out_as_if_there_were_no_masks(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks._hosts import Run, Torchvision

    folders = {"data": data_root / "penn_fudan", "weights": data_root / "weights" / "mobilenet_v2.pth", "out": tmp_path}
    training = {"iterations": 1, "device": "cpu", "amp": False, "probe_images": 0, "terse": []}
    host = Torchvision(argparse.Namespace(**folders, **training, boxes="ellipse", min_quality=0.5))
    host.prepare([20])
    command = host.command(Run(20, "random", 0))
    with ForegroundBank.open(command[command.index("--bank") + 1]) as bank:
        assert bank.info()["built"]["mask_sources"] == {"ellipse": len(bank)}
        assert len(bank) > 40

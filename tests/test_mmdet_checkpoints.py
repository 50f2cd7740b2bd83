"""Checkpoints and logs of MMDetection's hook."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import QUIET_MMDET, need_mmdet

need_mmdet()
from mmdet_factories import bank, data, made, settings  # noqa: F401 - fixtures
from mmengine.logging import HistoryBuffer

from terse_aug import ForegroundBank
from terse_aug_mmdet.checkpoints import statistic_of_buffer

pytestmark = QUIET_MMDET


class Trained:
    """A training of three iterations with checkpoints, logs and images, which several tests use."""

    def __init__(self, data: Path, bank: ForegroundBank, folder: Path) -> None:
        self.folder = folder
        saving = [{"type": "CheckpointHook", "interval": 2, "by_epoch": False}]
        terse = settings(bank, interval=1, image_interval=3)
        self.runner, self.hook = made(data, folder, 3, terse, hooks=saving)
        self.runner.train()
        self.runner.save_checkpoint(str(folder), "whole.pth", by_epoch=False)
        self.runner.save_checkpoint(str(folder), "best.pth", save_optimizer=False, by_epoch=False)

    def saved(self, name: str) -> Any:
        return torch.load(self.folder / name, weights_only=False)


@pytest.fixture(scope="module")
def trained(data: Path, bank: ForegroundBank, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(data, bank, tmp_path_factory.mktemp("trained") / "out")


def test_metrics_reach_the_log_and_composites_the_visualizer(trained: Trained) -> None:
    written = next(trained.folder.rglob("scalars.json")).read_text().splitlines()
    logged = [line for line in map(json.loads, written) if "terse_aug/hardness" in line]
    for name in ("hardness", "hardness_gain", "diversity", "skipped_updates", "time_fraction"):
        assert f"terse_aug/{name}" in logged[-1], name
    assert 0 < logged[-1]["terse_aug/time_fraction"] < 1
    assert [path.name for path in trained.folder.rglob("vis_image/**/*.png")] == ["terse_aug_composites_3.png"]


def test_the_state_is_saved_with_that_of_the_optimizer(trained: Trained) -> None:
    assert set(trained.saved("whole.pth")["terse_aug"]) == {"seed", "terse"}
    assert "terse_aug" not in trained.saved("best.pth")
    assert set(trained.saved("whole.pth")["state_dict"]) == set(trained.runner.model.state_dict())
    state = trained.saved("iter_2.pth")["terse_aug"]["terse"]
    counts = {name: int(value) for name, value in state.items() if "count/" in name}
    assert [counts[f"counters.count/{name}"] for name in ("iterations", "updates")] == [2, 2]


def test_weights_to_start_from_do_not_bring_the_state(
    trained: Trained, data: Path, bank: ForegroundBank, tmp_path: Path
) -> None:
    again, hook = made(data, tmp_path, 1, settings(bank), load_from=str(trained.folder / "whole.pth"))
    again.train()
    assert hook.terse.metrics()["iterations"] == 1


def test_a_run_that_was_resumed_by_hand_continues(
    trained: Trained, data: Path, bank: ForegroundBank, tmp_path: Path
) -> None:
    shutil.copy(trained.folder / "iter_2.pth", tmp_path / "two.pth")
    again, hook = made(data, tmp_path, 4, settings(bank))
    again.optim_wrapper = again.build_optim_wrapper(again.optim_wrapper)
    again._train_loop = again.build_train_loop(again._train_loop)
    again.resume(str(tmp_path / "two.pth"))
    resumed_at = again.iter
    again.train()
    assert hook.terse.metrics()["iterations"] == 2 + 4 - resumed_at


def test_only_statistics_of_a_log_may_be_loaded(tmp_path: Path) -> None:
    assert statistic_of_buffer(HistoryBuffer, "mean") is HistoryBuffer.mean
    wrong = ((HistoryBuffer, "__reduce__"), (HistoryBuffer, "register_statistics"), (Path, "cwd"), (warnings, "warn"))
    for owner, name in wrong:
        with pytest.raises(ValueError, match="no statistic of MMEngine's log"):
            statistic_of_buffer(owner, name)

    class Evil:
        def __reduce__(self) -> Any:
            return getattr, (HistoryBuffer, "register_statistics")

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(Exception, match="no statistic"):
        torch.load(tmp_path / "evil.pt", weights_only=True)

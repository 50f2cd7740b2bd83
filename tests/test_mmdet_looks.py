"""Photometric parameters and blends from MMDetection's configs, in workers, thread and loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from frameworks import QUIET_MMDET, need_mmdet

need_mmdet()
from mmdet_factories import bank, data, settings  # noqa: F401 - fixtures
from mmengine.config import Config
from test_mmdet_workers import PASTE, PIPELINE, same, train

from terse_aug import PARAMETERS, ForegroundBank, PasteConfig, Photometric
from terse_aug.integration import TerseSettings
from terse_aug.transforms import BLENDS, PHOTOMETRIC
from terse_aug_mmdet import TerseHook, TersePaste

pytestmark = [*QUIET_MMDET, pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")]

RANGES: dict[str, Any] = {
    "brightness": [0.6, 1.4],
    "contrast": [0.6, 1.4],
    "saturation": [0.5, 1.5],
    "hue": [-40, 40],
    "blur": [0, 1],
    "noise": [0, 0.1],
}
LOOKS: dict[str, Any] = {"photometric": RANGES, "blends": list(BLENDS)}
CRITIC: dict[str, Any] = {"type": "critic", "update_interval": 1, "fixed_parameters": ["scale", "hue"]}


def trained(data: Path, out: Path, bank: ForegroundBank, policy: Any = "random", **changes: Any) -> Any:
    terse = {"policy": policy, "paste": PASTE | changes.pop("paste", LOOKS), **changes.pop("terse", {})}
    return train(data, out, bank, terse=terse, pipeline=PIPELINE, **changes)


def test_the_settings_of_a_config_are_those_of_the_core(tmp_path: Path, bank: ForegroundBank) -> None:
    """As read from a file, and the same dictionary for hook and transform."""
    Config({"terse": settings(bank, CRITIC, paste=LOOKS)}).dump(tmp_path / "own.py")
    given = Config.fromfile(tmp_path / "own.py").terse
    expected = PasteConfig(paste_probability=1.0, photometric=Photometric(**RANGES), blends=BLENDS)
    assert TerseSettings(given["policy"], paste=given["paste"]).paste == expected
    TerseHook(**given)
    assert expected.columns == (*PARAMETERS, *PHOTOMETRIC, "blend")
    TersePaste(**given, seed=0)
    for wrong, message in (
        ({"photometric": {"hues": [0, 1]}}, r"unknown settings \['hues'\] of Photometric"),
        ({"photometric": {"blur": [0, 2]}}, r"blur: expected values within \[0, 1\]"),
        ({"blends": ["soft"]}, "blends: expected a list of some of gaussian"),
    ):
        for kind in (TerseHook, TersePaste):
            with pytest.raises(ValueError, match=message):
                kind(**settings(bank, paste=wrong))


def test_workers_compose_as_the_main_process(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    runner, hook, entered = trained(data, tmp_path, bank, iterations=2)
    assert hook.terse.paste == PasteConfig(**PASTE, photometric=Photometric(**RANGES), blends=BLENDS)
    other, own, seen = trained(data, tmp_path, bank, iterations=2, workers=2)
    assert seen == entered
    assert own.terse.metrics() == hook.terse.metrics()
    assert same(runner.model, other.model)
    assert {f"std_ratio/{name}" for name in (*PHOTOMETRIC, "blend")} <= hook.terse.metrics().keys()
    assert trained(data, tmp_path, bank, iterations=1, paste={})[2][0][1] != entered[0][1]


def test_the_thread_composes_as_the_loop_and_resumes(
    data: Path, bank: ForegroundBank, tmp_path: Path, composing_threads: set[str]
) -> None:
    saving = {"type": "CheckpointHook", "interval": 1, "by_epoch": False}
    _, hook, entered = trained(data, tmp_path, bank, CRITIC, iterations=3, hooks=[saving])
    assert composing_threads == {"terse_aug_0"}
    assert hook.terse.metrics()["updates"] == 3
    _, own, rest = trained(
        data, tmp_path, bank, CRITIC, iterations=3, load_from=str(tmp_path / "iter_2.pth"), resume=True
    )
    assert rest == entered[-len(rest) :]
    assert own.terse.metrics() == hook.terse.metrics()
    composing_threads.clear()
    _, _, in_loop = trained(data, tmp_path, bank, CRITIC, iterations=1, terse={"compose_ahead": False})
    assert composing_threads == {"MainThread"}
    assert in_loop == entered[: len(in_loop)]


def test_a_checkpoint_of_other_columns_is_refused(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    saving = {"type": "CheckpointHook", "interval": 1, "by_epoch": False}
    policy = {"type": "critic", "update_interval": 1}
    trained(data, tmp_path, bank, policy, iterations=1, hooks=[saving], paste={})
    resumed = {"load_from": str(tmp_path / "iter_1.pth"), "resume": True}
    with pytest.raises(ValueError, match=r"the policy's state was saved without brightness, .*, blend, but"):
        trained(data, tmp_path, bank, policy, iterations=2, **resumed)

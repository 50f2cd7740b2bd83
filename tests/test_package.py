"""The package as a whole: its public names, and what comes without torch."""

from __future__ import annotations

import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from bank_samples import write_bank

import terse_aug


def test_every_public_name_is_there_and_no_other() -> None:
    everything: dict[str, object] = {}
    exec("from terse_aug import *", everything)
    assert everything.keys() - {"__builtins__"} == set(terse_aug.__all__)
    assert set(terse_aug.__all__) <= set(dir(terse_aug))
    for name in terse_aug.__all__:
        home = getattr(everything[name], "__module__", "")
        assert not home or getattr(import_module(home), name) is everything[name]
    with pytest.raises(AttributeError, match="module 'terse_aug' has no attribute 'missing'"):
        terse_aug.missing  # noqa: B018


def test_the_package_runs_as_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bank(tmp_path / "a.bank")
    monkeypatch.setattr(sys, "argv", ["python -m terse_aug", "bank", "info", str(tmp_path / "a.bank")])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("terse_aug", run_name="__main__")
    assert end.value.code == 0
    assert "foregrounds" in capsys.readouterr().out


def test_a_bank_is_built_read_and_shown_without_torch(tmp_path: Path) -> None:
    write_bank(tmp_path / "a.bank")
    script = """if True:
        import sys
        import terse_aug
        from terse_aug.cli import main
        path = sys.argv[1]
        assert len(terse_aug.ForegroundBank.open(path)) == len(terse_aug.bank.ForegroundBank.open(path))
        assert main(["bank", "info", path]) == main(["bank", "report", path, "--out", path + ".html"]) == 0
        sys.exit("torch was imported" if "torch" in sys.modules else 0)
    """
    command = [sys.executable, "-c", script, str(tmp_path / "a.bank")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.bank.html").stat().st_size > 1000

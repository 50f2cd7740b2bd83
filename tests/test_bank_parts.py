"""Several folders of a source: what a resumed build depends on, and flags that are for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.parts import BuildPart, join_parts
from terse_aug.bank.build.report import BuildLog
from terse_aug.cli import main


def test_changed_names_in_a_part_are_another_build() -> None:
    nothing: Any = None  # is extracted, nor located

    def settings(names: dict[int, str]) -> Any:
        source = Source([], nothing, {}, BuildLog())
        every = {"a": {1: "cat", 2: "dog"}, "b": names}
        parts = {name: BuildPart(source, {}, own, (), nothing) for name, own in every.items()}
        return join_parts(parts, own_labels=True).source.settings

    assert settings({1: "cat", 2: "dog"}) != settings({2: "cat", 1: "dog"})


def test_a_path_that_is_for_all_folders_is_given_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["bank", "build", "yolo", "--images", str(tmp_path), "--out", str(tmp_path / "x.bank")]
    assert main([*flags, "--names", "a.yaml", "--names", "b.yaml"]) == 2
    assert "--names: expected once" in capsys.readouterr().err

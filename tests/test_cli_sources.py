"""The flags of `terse-aug bank build` follow from the builders."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from terse_aug.bank.readers import READERS
from terse_aug.cli import main
from terse_aug.cli.output import write_whole


@pytest.mark.parametrize("source", [*READERS, "detectron2", "mmdet"])
def test_every_flag_is_explained(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bank", "build", source, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--out FILE" in text
    assert "the bank to write" in text
    assert "`" not in text
    assert not re.search(r"\bfunction|\bNone\b|content of", text), "help is for the command line"
    assert ("--min-box-agreement" in text) == (source not in ("masks", "rgba", "products", "video"))
    assert ("--drop-truncated" in text) == (source != "rgba")


def test_a_page_is_on_disk_before_it_replaces_an_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    monkeypatch.setattr(os, "replace", lambda *paths: (synced.append(-1), replace(*paths)))
    write_whole(tmp_path / "a.html", b"page")
    assert synced == [4, -1]
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"page"]

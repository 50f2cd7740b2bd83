"""The flags of `terse-aug bank build` follow from the builders."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from terse_aug.bank import AnnotationOptions, ExtractionRules
from terse_aug.bank.readers import READERS
from terse_aug.cli import main
from terse_aug.cli.output import write_whole
from terse_aug.cli.source_flags import add_source


def test_a_builder_gets_its_arguments_and_documents_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[dict[str, Any]] = []

    class Report:
        def summary(self) -> str:
            return "built"

    def build(
        place: str | Path, out: Path, *, every: int = 3, names: Sequence[str] | None = None, **options: Any
    ) -> Any:
        """Build a bank.

        Args:
            place: where the files are,
                at any depth.
            out: the bank.
            every: use each n-th.
            names: of the classes.
        """
        calls.append({"place": place, "out": out, "every": every, "names": names} | options)
        return Report()

    parser = argparse.ArgumentParser()
    add_source(parser, build, AnnotationOptions)
    flags = "--place a --out b --every 5 --names c d --category e --max-side 0 --jobs 2"
    arguments = parser.parse_args(flags.split(" "))
    assert arguments.run(arguments) == 0
    assert capsys.readouterr().out == "built\n"
    own = {"place": Path("a"), "out": Path("b"), "every": 5, "names": ["c", "d"], "categories": ["e"], "jobs": 2}
    rest = {"rules": ExtractionRules(max_side=None), "boxes": None, "image_list": None, "rejected_sheet": None}
    assert calls[0].pop("progress") is not None
    assert calls == [own | rest | {"overwrite": False}]
    assert "where the files are, at any depth" in " ".join(parser.format_help().split())


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

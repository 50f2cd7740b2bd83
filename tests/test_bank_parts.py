"""Several folders of a source joined: their chunks, what a resumed build depends on, and flags for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.parts import BuildPart, join_parts
from terse_aug.bank.build.report import BuildLog
from terse_aug.cli import main
from terse_aug.structures.foreground import Foreground


class Unused:
    """An extractor of no objects."""

    def objects(self, item: Any, log: BuildLog) -> Iterator[Foreground]:
        yield from ()

    def files(self, item: Any) -> tuple[Path, ...]:
        return ()


def test_images_with_many_objects_are_in_chunks_of_their_own() -> None:
    counts = {"a": [1, 1, 60], "b": [60, 2, 2]}
    joined = join_parts(
        {
            name: BuildPart(Source(own, Unused(), {}, object_count=lambda item: item), {}, {1: "cat"}, (), Path)
            for name, own in counts.items()
        },
        own_labels=False,
    )
    assert [[item for _, item in chunk] for chunk in joined.source.chunks()] == [[1, 1, 60], [60, 2, 2]]


def test_changed_names_in_a_part_are_another_build() -> None:
    def settings(names: dict[int, str]) -> Any:
        source = Source([], Unused(), {})
        every = {"a": {1: "cat", 2: "dog"}, "b": names}
        parts = {name: BuildPart(source, {}, own, (), Path) for name, own in every.items()}
        return join_parts(parts, own_labels=True).source.settings

    assert settings({1: "cat", 2: "dog"}) != settings({2: "cat", 1: "dog"})


def test_a_path_that_is_for_all_folders_is_given_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["bank", "build", "yolo", "--images", str(tmp_path), "--out", str(tmp_path / "x.bank")]
    assert main([*flags, "--names", "a.yaml", "--names", "b.yaml"]) == 2
    assert "--names: expected once" in capsys.readouterr().err

"""``terse-aug compose``: what is checked before a run, when it goes on, and when it was finished before."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from export_samples import NAMES, Data, files_of

from terse_aug.cli import main

YOLO = ("--format", "yolo")


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path / "data")


@pytest.fixture
def unfinished(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Composes into a folder, and is stopped when all images are written."""

    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    def run(data: Data, out: Path, *more: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("terse_aug.export.folder.OutputFolder.finish", stop)
            assert main(data.arguments(out, *more)) == 130

    return run


def test_polygons_of_boxes_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if the first image has no objects, whose composites have masks."""
    data = Data(tmp_path / "boxes", masks=False)
    data.write([own for own in data.content["annotations"] if own["image_id"] == 3])
    out = tmp_path / "out"
    assert main(data.arguments(out, "--format", "yolo-seg")) == 2
    assert "format yolo-seg: expected labels with masks" in capsys.readouterr().err
    assert not out.exists()
    assert main(data.arguments(out, *YOLO)) == 0


@pytest.mark.parametrize("content", [None, b""])
def test_a_lost_label_file_is_written_again(data: Data, unfinished: Callable[..., None], content: bytes | None) -> None:
    whole, out = files_of(data.compose("whole", *YOLO)), data.folder / "out"
    unfinished(data, out, *YOLO)
    label = out / "labels" / "a_composite1.txt"
    assert label.read_bytes()
    label.unlink()
    if content is not None:
        label.write_bytes(content)
    assert main(data.arguments(out, *YOLO)) == 0
    assert files_of(out) == whole


def test_images_that_cannot_be_read_are_not_counted_as_written(
    data: Data, unfinished: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    (data.images / NAMES[0]).write_bytes(b"no image")
    out = data.folder / "out"
    unfinished(data, out)
    assert "4 of 5 images are written and kept" in capsys.readouterr().err
    assert main(data.arguments(out)) == 0
    printed = capsys.readouterr().out
    assert "resumed: 4 of 4" in printed
    assert "images per second" not in printed


@pytest.mark.parametrize("folder", ["", "new"])
def test_the_output_is_outside_of_the_folder_of_images_in_subfolders(
    data: Data, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    data.content["images"] = [own for own in data.content["images"] if own["file_name"].startswith("sub/")]
    known = {own["id"] for own in data.content["images"]}
    data.write([own for own in data.content["annotations"] if own["image_id"] in known])
    before = files_of(data.images)
    assert main(data.arguments(data.images / folder)) == 2
    assert "expected a folder outside of that of the images" in capsys.readouterr().err
    assert files_of(data.images) == before


@pytest.mark.parametrize("lost", ["images/a_composite1.jpg", "labels/a_composite1.txt", "data.yaml"])
def test_files_lost_from_a_finished_folder_are_noticed(
    data: Data, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    out = data.compose("out", *YOLO)
    capsys.readouterr()
    assert main(data.arguments(out, *YOLO)) == 0
    assert "finished before" in capsys.readouterr().out
    (out / lost).unlink()
    assert main(data.arguments(out, *YOLO)) == 2
    assert lost.removesuffix(".jpg").removesuffix(".txt") in capsys.readouterr().err


def test_a_run_interrupted_while_it_reads_leaves_its_folder_and_says_so(
    data: Data, unfinished: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    out = data.folder / "out"
    unfinished(data, out)
    before = files_of(out)
    capsys.readouterr()
    monkeypatch.setattr("terse_aug.cli.labels.open_coco", stop)
    for folder, expected in ((out, f"{out} is as it was"), (data.folder / "new", "nothing was written")):
        assert main(data.arguments(folder)) == 130
        assert expected in capsys.readouterr().err
    assert files_of(out) == before


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
@pytest.mark.parametrize("buffering", [1, -1])
def test_a_reader_of_the_output_that_stops_is_no_error(
    data: Data, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, buffering: int
) -> None:
    out = data.folder / "out"
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering) as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        assert main(data.arguments(out)) == 0
        assert main(["bank", "info", str(out)]) == 2, "another error is one"
    assert capsys.readouterr().err.count("error") == 1
    assert (out / "annotations.json").is_file()

"""Files of another format than that of the chosen source: the error names the source to use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from terse_aug.bank import (
    build_from_coco,
    build_from_cvat,
    build_from_label_studio,
    build_from_labelme,
    build_from_masks,
    build_from_object_masks,
    build_from_panoptic,
    build_from_sa1b,
    build_from_via,
    build_from_video,
    build_from_voc,
    build_from_yolo,
)
from terse_aug.bank.inputs.formats import recognize
from terse_aug.cli import main

COCO: dict[str, Any] = {"images": [], "categories": [{"id": 1, "name": "cat"}], "annotations": []}
REGION = {"shape_attributes": {"name": "rect"}, "region_attributes": {}}
FILES: dict[str, tuple[str, Any]] = {
    "COCO": ("a.json", COCO),
    "COCO panoptic": ("a.json", COCO | {"annotations": [{"image_id": 1, "segments_info": []}]}),
    "COCO results": ("a.json", [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}]),
    "LabelMe": ("a.json", {"shapes": [], "imagePath": "a.jpg"}),
    "VIA": ("a.json", {"a.jpg99": {"filename": "a.jpg", "size": 99, "regions": [REGION]}}),
    "VIA 3": ("a.json", {"project": {}, "file": {"1": {}}, "view": {}, "metadata": {}}),
    "Label Studio": ("a.json", [{"id": 1, "data": {"image": "a.jpg"}, "annotations": []}]),
    "CreateML": ("a.json", [{"image": "a.jpg", "annotations": []}]),
    "SA-1B": ("a.json", {"image": {"file_name": "a.jpg"}, "annotations": [{"segmentation": {}, "bbox": []}]}),
    "Pascal VOC": ("a.xml", '<?xml version="1.0"?>\n<!-- own -->\n<annotation><object/></annotation>'),
    "CVAT for images": ("a.xml", "<annotations><version>1.1</version></annotations>"),
    "YOLO": ("a.txt", "\n0 0.5 0.5 0.25 1e-1\n"),
}
Build = Callable[..., Any]


def written(folder: Path, name: str) -> Path:
    file, content = FILES[name]
    path = folder / "deep" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("name", FILES)
def test_formats_are_recognized_in_files_and_folders(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name)
    assert recognize(path) == recognize(tmp_path) == [(path, name)]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", "[1]", '{"images": []}', '{"a": 1}', "[" * 100_000, "\ud83d", "cat 1 2 3 4", "7"]
)
def test_other_files_are_not_recognized(tmp_path: Path, content: str) -> None:
    for suffix in ("json", "txt", "xml", "csv"):
        (tmp_path / f"a.{suffix}").write_text(content, encoding="utf-8", errors="surrogatepass")
    assert recognize(tmp_path) == recognize(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("build", "name", "source"),
    [
        (lambda path, out: build_from_coco(path, path.parent, out), "LabelMe", "labelme"),
        (lambda path, out: build_from_coco(path, path.parent, out), "VIA", "via"),
        (lambda path, out: build_from_via(path, path.parent, out), "COCO", "coco"),
        (lambda path, out: build_from_panoptic(path, path.parent, path.parent, out), "COCO", "coco"),
        (lambda path, out: build_from_coco(path, path.parent, out), "COCO panoptic", "panoptic"),
        (lambda path, out: build_from_labelme(path.parent, out), "COCO", "coco"),
        (lambda path, out: build_from_voc(path.parent, out), "COCO", "coco"),
        (lambda path, out: build_from_yolo(path.parent, out), "Pascal VOC", "voc"),
        (lambda path, out: build_from_masks(path.parent, path.parent, out), "YOLO", "yolo"),
        (lambda path, out: build_from_cvat(path, path.parent, out), "Pascal VOC", "voc"),
        (lambda path, out: build_from_label_studio(path, path.parent, out), "LabelMe", "labelme"),
        (lambda path, out: build_from_sa1b(path.parent, out), "LabelMe", "labelme"),
        (lambda path, out: build_from_sa1b(path.parent, out), "Pascal VOC", "voc"),
        (lambda path, out: build_from_object_masks(path.parent, out), "COCO", "coco"),
        (lambda path, out: build_from_video(path.parent, out), "COCO", "coco"),
        (lambda path, out: build_from_coco(path, path.parent, out), "COCO results", None),
    ],
)
def test_the_source_to_use_is_named(tmp_path: Path, build: Build, name: str, source: str | None) -> None:
    path = written(tmp_path, name)
    Image.new("RGB", (20, 20)).save(path.parent / "a.png")
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        build(path, tmp_path / "a.bank")
    assert f"{path} has the format {name}" in str(caught.value)
    assert (f"use source {source} (" if source else "export it as a COCO JSON") in str(caught.value)


def test_errors_in_files_of_the_right_format_name_no_other(tmp_path: Path) -> None:
    """Also if files of another format lie among the images."""
    path = written(tmp_path, "COCO")
    written(tmp_path, "YOLO")
    with pytest.raises(ValueError, match="no such categories") as caught:
        build_from_coco(path, path.parent, tmp_path / "a.bank", categories=["dog"])
    assert "has the format" not in str(caught.value)


def test_only_paths_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "LabelMe")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no annotated object") as caught:
        build_from_masks("empty", "empty", "a.bank", category="deep")
    assert "has the format" not in str(caught.value)


@pytest.mark.parametrize("missing", ["images", "image_list"])
def test_an_error_about_a_missing_file_names_no_format(tmp_path: Path, missing: str) -> None:
    path = written(tmp_path, "LabelMe")
    arguments: dict[str, Any] = {"images": path.parent, missing: tmp_path / "missing"}
    with pytest.raises(FileNotFoundError, match="missing, found none") as caught:
        build_from_label_studio(path, out=tmp_path / "a.bank", **arguments)
    assert "has the format" not in str(caught.value)


def test_the_command_line_keeps_the_flags_and_help_of_the_readers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bank", "build", "coco", "--help"]) == 0
    assert "--annotations" in capsys.readouterr().out
    path = written(tmp_path, "LabelMe")
    arguments = ["--annotations", str(path), "--images", str(tmp_path), "--out", str(tmp_path / "a.bank")]
    assert main(["bank", "build", "coco", *arguments]) == 2
    assert "terse-aug bank build labelme" in capsys.readouterr().err

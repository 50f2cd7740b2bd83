"""Builds that find nothing, and objects that are marked to be ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from annotated_samples import as_labelme, as_yolo, make_sample
from bank_samples import CocoSample

from terse_aug.bank import build_from_coco, build_from_labelme, build_from_masks, build_from_yolo
from terse_aug.preview.readers import open_coco


@pytest.mark.parametrize("sheet", ["sheet.png", "sheets"])
def test_a_build_without_any_annotation_says_so(tmp_path: Path, sheet: str) -> None:
    sample = CocoSample(tmp_path)
    sample.content["annotations"] = []
    sample.write()
    with pytest.raises(ValueError, match="there is no annotated object"):
        build_from_coco(sample.json, sample.images, tmp_path / "out.bank", rejected_sheet=tmp_path / sheet)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is no annotated object"):
        build_from_masks(tmp_path / "empty", tmp_path / "empty", tmp_path / "out.bank", rejected_sheet=tmp_path / sheet)
    assert not (tmp_path / sheet).exists()


def test_formats_by_file_say_whether_files_or_their_objects_are_missing(tmp_path: Path) -> None:
    sample = make_sample(tmp_path)
    as_yolo(sample)
    (sample.root / "labels" / "scene.txt").write_text("")
    folder = as_labelme(sample, [])
    (tmp_path / "empty").mkdir()
    for build, arguments, empty in (
        (build_from_yolo, (sample.images,), {"names": ["cat"]}),
        (build_from_labelme, (folder,), {}),
    ):
        with pytest.raises(ValueError, match="annotations of 1 images are empty"):
            build(*arguments, tmp_path / "out.bank")
        with pytest.raises(ValueError, match="there is none in any file"):
            build(tmp_path / "empty", tmp_path / "out.bank", **empty)


def test_ignored_objects_are_left_out_of_banks_and_previews(tmp_path: Path) -> None:
    sample = CocoSample(tmp_path)
    sample.add(ignore=1)
    sample.add(ignore="1")
    sample.add(ignore=0)
    sample.write()
    report = build_from_coco(sample.json, sample.images, tmp_path / "out.bank")
    assert (report.kept, sum(report.rejected.values())) == ({"car": 2}, 2)
    images = open_coco(sample.json, sample.images)
    assert len(images.read(0).target["boxes"]) == 2
    assert sum(images.dropped.counts.values()) == 2

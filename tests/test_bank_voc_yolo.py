"""Pascal VOC's splits, names and sizes; YOLO's class names and label files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from annotated_samples import (
    BOTH,
    BOX,
    HEIGHT,
    WIDTH,
    AnnotatedImage,
    as_voc,
    as_yolo,
    build_voc,
    build_voc_boxes,
    build_yolo,
    by_name,
    make_sample,
)
from PIL import Image

from terse_aug.bank import (
    build_from_voc,
    build_from_yolo,
)
from terse_aug.bank.readers.annotation_collector import SHARED_IMAGE


@pytest.fixture
def sample(tmp_path: Path) -> AnnotatedImage:
    return make_sample(tmp_path)


# --- Pascal VOC -----------------------------------------------------------------------------------------------------


def test_boxes_of_voc_count_from_one_and_include_their_last_pixel(sample: AnnotatedImage, tmp_path: Path) -> None:
    found = by_name(build_voc_boxes(sample, tmp_path / "out.bank", boxes="box"))
    # The softest pixels of the rim, at one px of many, are still there.
    assert {name: own.size for name, own in found.items()} == {"cat": (50, 50), "dog": BOX[2:]}
    middle = {name: own.rgba[20, 15, :3].tolist() for name, own in found.items()}
    assert middle == {"cat": [220, 40, 40], "dog": [40, 220, 40]}


@pytest.mark.parametrize(
    "changes",
    [
        {"<xmin>81<": "<xmin> 81.0 <"},
        {"<width>128<": "<width>0<"},
        {"<filename>scene.png": "<filename>C:/old/photo.png"},
        {"<filename>scene.png": f"<filename>{'x' * 300}.png"},  # a name that no file can have
    ],
)
def test_oddities_of_voc_are_read(sample: AnnotatedImage, tmp_path: Path, changes: dict[str, str]) -> None:
    report = build_voc(sample, tmp_path / "out.bank", changes)
    assert (report.kept, report.rejected) == (BOTH, {})


def test_voc_uses_difficult_objects_on_demand_and_checks_sizes(sample: AnnotatedImage, tmp_path: Path) -> None:
    root = as_voc(sample, **{"<difficult>0": "<difficult>1"})
    assert build_from_voc(root, tmp_path / "out.bank", difficult=True).kept == BOTH
    file = root / "Annotations" / "scene.xml"
    file.write_text(file.read_text().replace("<height>96<", "<height>97<"))
    with pytest.raises(ValueError, match="image file has another size than annotated"):
        build_from_voc(root, tmp_path / "other.bank", difficult=True)


def test_voc_lists_of_splits_and_of_classes(sample: AnnotatedImage, tmp_path: Path) -> None:
    root = as_voc(sample)
    (root / "ImageSets" / "Segmentation").mkdir()
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("other\n")
    assert build_from_voc(root, tmp_path / "a.bank", split="train").kept == BOTH
    with pytest.raises(ValueError, match="image of the split has no XML file"):
        build_from_voc(root, tmp_path / "b.bank", split="Segmentation/train")
    (root / "ImageSets" / "Main" / "cat_train.txt").write_text("scene  1\nother -1\n")
    assert build_from_voc(root, tmp_path / "c.bank", split="cat_train").rejected == {}
    for part, suffix in (("Annotations", ".xml"), ("JPEGImages", ".png"), ("SegmentationObject", ".png")):
        (root / part / f"scene{suffix}").rename(root / part / f"my scene{suffix}")
    (root / "ImageSets" / "Main" / "train.txt").write_text("my scene\n")
    assert build_from_voc(root, tmp_path / "d.bank", split="train").kept == BOTH
    (root / "Annotations" / "my scene.xml").rename(root / "Annotations" / "scene -1.xml")
    (root / "ImageSets" / "Main" / "train.txt").write_text("scene -1\n")
    with pytest.raises(ValueError, match="image file"):  # the XML file is read; its image has another name
        build_from_voc(root, tmp_path / "e.bank", split="train", boxes="box")


def test_voc_prefers_the_image_of_its_xml_file_if_that_was_copied(sample: AnnotatedImage, tmp_path: Path) -> None:
    root = as_voc(sample)
    green = root / "JPEGImages" / "other.png"
    Image.new("RGB", (WIDTH, HEIGHT), "green").save(green)
    shutil.copy(root / "Annotations" / "scene.xml", root / "Annotations" / "other.xml")  # <filename> is scene.png
    report = build_from_voc(root, tmp_path / "out.bank", boxes="box")
    assert report.kept == {"cat": 2, "dog": 2}
    assert report.repaired == {"image has the name of its XML file and not that in it": 1}
    green.unlink()
    report = build_from_voc(root, tmp_path / "one.bank", boxes="box")
    assert (report.kept, report.rejected) == (BOTH, {SHARED_IMAGE: 2})
    (root / "Annotations" / "scene.xml").unlink()  # now scene.png has no XML file of its own
    Image.new("RGB", (WIDTH, HEIGHT), "green").save(green)
    report = build_from_voc(root, tmp_path / "own.bank", boxes="box")
    assert (report.kept, report.repaired) == (BOTH, {})
    assert all(own.source.startswith("scene.png") for own in by_name(report).values())


def test_a_modified_mask_file_is_read_anew(sample: AnnotatedImage, tmp_path: Path) -> None:
    root = as_voc(sample)
    build_from_voc(root, tmp_path / "out.bank")
    file = root / "SegmentationObject" / "scene.png"
    with Image.open(file) as image:
        numbers = np.asarray(image).copy()
    numbers[:, :30] = 0
    Image.fromarray(numbers).save(file)
    os.utime(file, ns=(1, 1))
    assert by_name(build_from_voc(root, tmp_path / "out.bank", overwrite=True))["cat"].size == (40, 50)


# --- YOLO -----------------------------------------------------------------------------------------------------------


def test_yolo_names_come_from_anywhere(sample: AnnotatedImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_yolo(sample)
    monkeypatch.chdir(sample.images)
    assert build_from_yolo(".", tmp_path / "within.bank", image_list=iter(["scene.png"])).kept == {"cat": 1}
    (sample.root / "data.yaml").unlink()
    with pytest.raises(ValueError, match=r"give names, or put a data\.yaml or classes\.txt beside the images"):
        build_from_yolo(sample.images, tmp_path / "out.bank")
    classes = sample.images / "classes.txt"
    classes.write_text("cat\n\ndog\n")  # an empty line counts
    with pytest.raises(ValueError, match="each once"):
        build_from_yolo(sample.images, tmp_path / "out.bank")
    classes.write_text("cat\ndog\n")
    for names in (None, ["cat", "dog"], {0: "cat", 1: "dog"}, classes):
        assert (
            build_from_yolo(sample.images, tmp_path / "out.bank", names=names, boxes="box", overwrite=True).kept == BOTH
        )
    with pytest.raises(ValueError, match="each once"):
        build_from_yolo(sample.images, tmp_path / "twice.bank", names=["cat", "cat"])
    classes.rename(sample.root / "labels" / "classes.txt")  # as LabelImg writes it
    assert build_from_yolo(sample.images, tmp_path / "labels.bank", boxes="box").kept == BOTH


def test_yolo_keypoints_follow_the_box_if_the_data_set_declares_them(sample: AnnotatedImage, tmp_path: Path) -> None:
    line = "0 0.35 0.36 0.39 0.52 " + "0.2 0.2 0.6 0.2 0.6 0.6 0.2 0.6"
    assert build_yolo(sample, tmp_path / "polygon.bank", [line]).mask_sources == {"mask": 1}  # it looks like a polygon
    with (sample.root / "data.yaml").open("a") as file:
        file.write("kpt_shape: [4, 2]\n")
    assert build_from_yolo(sample.images, tmp_path / "box.bank", boxes="box").mask_sources == {"box": 1}


def test_yolo_uses_the_photograph_if_a_depth_map_has_its_name(sample: AnnotatedImage, tmp_path: Path) -> None:
    Image.new("L", (WIDTH, HEIGHT), 7).save(sample.images / "scene.bmp")
    report = build_yolo(sample, tmp_path / "out.bank")
    assert report.kept == {"cat": 1}
    assert report.rejected["label file belongs to several images"] == 1
    Image.new("RGB", (WIDTH, HEIGHT), "green").save(sample.images / "scene.jpg")
    with pytest.raises(ValueError, match=r"3 +label file belongs to several images"):
        build_from_yolo(sample.images, tmp_path / "none.bank")

"""Banks from Pascal VOC, YOLO, LabelMe, VIA and COCO's panoptic format."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_samples import (
    BOX,
    HEIGHT,
    POLYGON,
    WIDTH,
    AnnotatedImage,
    as_labelme,
    as_panoptic,
    as_via,
    as_voc,
    as_yolo,
    labelme_shapes,
    make_sample,
    png_in_base64,
    true_masks,
    via_regions,
)
from PIL import Image

from terse_aug import ForegroundBank
from terse_aug.bank import (
    BuildReport,
    build_from_labelme,
    build_from_panoptic,
    build_from_via,
    build_from_voc,
    build_from_yolo,
)
from terse_aug.bank.readers.annotation_collector import SHARED_IMAGE

BOTH = {"cat": 1, "dog": 1}


@pytest.fixture
def sample(tmp_path: Path) -> AnnotatedImage:
    return make_sample(tmp_path)


def voc(sample: AnnotatedImage, out: Path, changes: dict[str, str] | None = None, **more: Any) -> BuildReport:
    return build_from_voc(as_voc(sample, **(changes or {})), out, **more)


def voc_boxes(sample: AnnotatedImage, out: Path, **more: Any) -> BuildReport:
    return build_from_voc(as_voc(sample, masks=False), out, split="train", **more)


def yolo(sample: AnnotatedImage, out: Path, lines: list[str] | None = None, **more: Any) -> BuildReport:
    as_yolo(sample, lines)
    return build_from_yolo(sample.images, out, **more)


def labelme(sample: AnnotatedImage, out: Path, shapes: list[Any] | None = None, **more: Any) -> BuildReport:
    return build_from_labelme(as_labelme(sample, shapes), out, images=sample.images, **more)


def via(form: str) -> Callable[..., BuildReport]:
    return lambda sample, out, **more: build_from_via(as_via(sample, form), sample.images, out, **more)


def via_of(sample: AnnotatedImage, out: Path, regions: list[Any], **more: Any) -> BuildReport:
    return build_from_via(as_via(sample, regions=regions), sample.images, out, **more)


def panoptic(sample: AnnotatedImage, out: Path, **more: Any) -> BuildReport:
    return build_from_panoptic(*as_panoptic(sample), sample.images, out, **more)


WITH_BOXES: dict[str, Callable[..., BuildReport]] = {
    "yolo": yolo,
    "labelme": labelme,
    "via json": via("json"),
    "via json1": via("json1"),
    "via project": via("project"),
    "via csv": via("csv"),
}
ALL = {"voc": voc, "panoptic": panoptic} | WITH_BOXES


def by_name(report: BuildReport) -> dict[str, Any]:
    """Foregrounds by class; one of each."""
    with ForegroundBank.open(report.path) as bank:
        return {bank.categories[foreground.label]: foreground for foreground in bank}


@pytest.mark.parametrize("name", list(ALL))
def test_every_format_gives_the_same_foregrounds(name: str, sample: AnnotatedImage, tmp_path: Path) -> None:
    """The second object has a box only in some formats, whose mask is the whole box with a soft rim."""
    report = ALL[name](sample, tmp_path / "out.bank", boxes="box")
    assert report.kept == BOTH
    first, second = true_masks()
    for category, mask, (width, height) in (("cat", first, (50, 50)), ("dog", second, BOX[2:])):
        foreground = by_name(report)[category]
        # Polygons are rasterised to a pixel more or less at the border.
        assert np.abs(np.subtract(foreground.size, (width, height))).max() <= 1
        inner = foreground.rgba[4:-4, 4:-4]
        assert (inner[..., 3] == 255).all()
        assert (inner[..., :3] == sample.pixels[mask > 0][0]).all()
        assert foreground.source.startswith("scene.png#")
        assert foreground.relative_size == pytest.approx(max(width, height) / np.sqrt(HEIGHT * WIDTH), rel=0.03)
    assert report.mask_sources == ({"mask": 1, "box": 1} if name in WITH_BOXES else {"mask": 2})


@pytest.mark.parametrize("name", list(WITH_BOXES))
def test_boxes_are_rejected_by_default(name: str, sample: AnnotatedImage, tmp_path: Path) -> None:
    report = WITH_BOXES[name](sample, tmp_path / "out.bank")
    assert report.kept == {"cat": 1}
    assert [count for reason, count in report.rejected.items() if "box only" in reason] == [1]


def test_labels_are_the_formats_own_or_in_the_order_of_names(sample: AnnotatedImage, tmp_path: Path) -> None:
    assert {name: own.label for name, own in by_name(yolo(sample, tmp_path / "a.bank", boxes="box")).items()} == {
        "cat": 0,
        "dog": 1,
    }
    report = labelme(sample, tmp_path / "b.bank", boxes="box")
    assert {name: own.label for name, own in by_name(report).items()} == {"cat": 1, "dog": 2}
    root = as_voc(sample, **{"<name>cat</name><difficult>0": "<name>cat</name><difficult>1"})
    report = build_from_voc(root, tmp_path / "c.bank", names=["bird", "cat", "dog"])
    assert by_name(report)["dog"].label == 3
    report = build_from_labelme(tmp_path / "labelme", tmp_path / "d.bank", images=sample.images, names=["cat"])
    assert report.rejected == {"class is not in `names`": 1}
    with pytest.raises(ValueError, match="each once"):
        build_from_voc(root, tmp_path / "other.bank", names=["cat", "cat"])


# --- unusable objects are rejected with the reason ------------------------------------------------------------------


LINE = "1 0.7421875 0.52083333 0.234375 0.41666667 0.93"  # its sixth number is a confidence
NO_NUMBER, NO_NAME, NO_SEGMENT_ID = (
    "a coordinate is no number",
    "object without a class name",
    "segment without an id or a category",
)
MASK = {"label": "bird", "shape_type": "mask", "points": [[1, 2], [3, 4]]}
REJECTED: dict[str, list[tuple[Any, str]]] = {
    "voc": [
        ({"<xmin>81<": "<xmin>8l<"}, NO_NUMBER),
        ({"<xmin>81</xmin>": ""}, "object without a box"),
        ({"<name>dog</name>": "<name> </name>"}, NO_NAME),
        ({"<name>dog</name><difficult>0": "<name>dog</name><difficult>1"}, "marked as difficult"),
        ({"<xmin>81<": "<xmin>21<", "<ymin>31<": "<ymin>1<"}, "mask and box disagree"),
    ],
    "yolo": [
        ("1 0.5 0.5 x 0.2", NO_NUMBER),
        ("7 0.5 0.5 0.2 0.2", "class number has no name"),
        ("1.5 0.5 0.5 0.2 0.2", "class number has no name"),
        ("1 0.5 0.5 0.2", "line is neither class and box nor class and polygon"),
        ("1 nan 0.5 0.2 0.2", "a coordinate is not finite"),
        ("1 0.5 0.5 0 0.2", "box has no area"),
        ("1 1.5 0.5 0.2 0.2", "box lies outside the image"),
    ],
    "labelme": [
        ({"label": "bird", "shape_type": "line", "points": [[1, 2], [3, 4]]}, "shape is a line or a point"),
        ({"label": "bird", "points": [[1, 2], [3]]}, "a point is not x, y"),
        ({"label": "bird", "points": [[1, 2], [3, 4]]}, "polygon is degenerate"),
        ({"label": "bird", "shape_type": "rectangle", "points": [[1, 2]]}, "rectangle is not two points"),
        ({"label": "bird", "points": [["a", 2], [3, 4], [5, 6]]}, NO_NUMBER),
        ({"label": "bird", "points": "all"}, "points are no list"),
        ({"label": "\ud83d", "points": POLYGON}, "class name is damaged"),
        ({"label": None, "points": POLYGON}, NO_NAME),
        ("nothing", NO_NAME),
        (MASK | {"mask": "?"}, "mask is no PNG in base64"),
        (MASK | {"points": [[120, 2], [3, 4]], "mask": png_in_base64(np.ones((9, 9), "u1"))}, "within the image"),
    ],
    "via": [
        ({"shape_attributes": {"name": "point", "cx": 1, "cy": 1}}, "shape is a line or a point"),
        ({"shape_attributes": {"name": "rect", "x": 1, "y": "?", "width": 9, "height": 9}}, NO_NUMBER),
        ({"shape_attributes": {"name": "polygon", "all_points_x": [1], "all_points_y": []}}, "other numbers of x"),
        ({"shape_attributes": None}, "region without a shape"),
        ({"region_attributes": {"note": "y"}}, "region without the attribute of the class"),
        ({"region_attributes": {"kind": None}}, NO_NAME),
        ({"region_attributes": {"kind": {"cat": True, "dog": True}}}, "several options of the class"),
    ],
    "panoptic": [
        ({"category_id": 77}, "category is not in the JSON"),
        ({"category_id": [1]}, NO_SEGMENT_ID),
        ({"id": "3oo"}, NO_SEGMENT_ID),
        ({"bbox": 5}, "box is not x, y, width, height"),
        ({"bbox": [10**400, 0, 1, 1]}, "box is not x, y, width, height"),
        ("nothing", NO_SEGMENT_ID),
    ],
}


def with_segment(sample: AnnotatedImage, out: Path, change: Any) -> BuildReport:
    """Panoptic annotations with one thing changed, without the stuff."""
    annotations, masks = as_panoptic(sample)
    content = json.loads(annotations.read_text())
    segments = content["annotations"][0]["segments_info"]
    segments[1:] = [segments[1] | change if isinstance(change, dict) else change]
    annotations.write_text(json.dumps(content))
    return build_from_panoptic(annotations, masks, sample.images, out)


ADD: dict[str, Callable[[AnnotatedImage, Path, Any], BuildReport]] = {
    "voc": voc,
    "yolo": lambda sample, out, line: yolo(sample, out, [LINE, "", line], boxes="ellipse"),
    "labelme": lambda sample, out, shape: labelme(sample, out, [*labelme_shapes()[:1], shape]),
    "via": lambda sample, out, change: via_of(
        sample, out, [via_regions()[0], via_regions()[1] | change], boxes="box", attribute="kind"
    ),
    "panoptic": with_segment,
}


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [(kind, change, reason) for kind, cases in REJECTED.items() for change, reason in cases],
)
def test_unusable_objects_are_rejected_with_the_reason(
    sample: AnnotatedImage, tmp_path: Path, kind: str, change: Any, reason: str
) -> None:
    report = ADD[kind](sample, tmp_path / "out.bank", change)
    assert report.kept == {"dog" if kind == "yolo" else "cat": 1}
    ((given, count),) = report.rejected.items()
    assert (reason in given, count) == (True, 1)
    assert "scene" in report.examples[given][0]


def test_unreadable_files_and_entries_are_counted(sample: AnnotatedImage, tmp_path: Path) -> None:
    root = as_voc(sample)
    (root / "Annotations" / "broken.xml").write_text("<annotation><object>")
    assert build_from_voc(root, tmp_path / "voc.bank").rejected == {"XML file cannot be read": 1}
    folder = as_labelme(sample, labelme_shapes()[:1])
    (folder / "other.json").write_text("{}")
    (folder / "broken.json").write_text("{")
    report = build_from_labelme(folder, tmp_path / "labelme.bank", images=sample.images)
    assert report.rejected == {"JSON file cannot be read": 1, "not a LabelMe file": 1}
    annotations, masks = as_panoptic(sample)
    content = json.loads(annotations.read_text())
    content["annotations"].append({"image_id": 4, "segments_info": [], "file_name": None})
    annotations.write_text(json.dumps(content))
    report = build_from_panoptic(annotations, masks, sample.images, tmp_path / "panoptic.bank")
    assert report.rejected == {"image without segments or mask file": 1, "stuff, not an object": 1}
    with ForegroundBank.open(report.path) as bank:
        assert bank.categories == {1: "cat", 2: "dog"}
    file = as_via(sample)
    content = json.loads(file.read_text())
    odd = [{"filename": "odd.png"}, {"filename": "odd.png", "regions": None}, {"filename": "odd.png", "regions": 7}]
    file.write_text(json.dumps(content | {f"odd{row}": entry for row, entry in enumerate(odd)}))
    report = build_from_via(file, sample.images, tmp_path / "via.bank")
    assert (report.kept, report.rejected["entry without a file name or regions"]) == ({"cat": 1}, 3)
    file = as_via(sample, "csv")
    file.write_text(file.read_text() + 'scene.png,1,{},2,5,"{""name"": ","{}"\n')
    report = build_from_via(file, sample.images, tmp_path / "csv.bank")
    assert (report.kept, report.rejected["row with damaged attributes"]) == ({"cat": 1}, 1)


def test_wrong_calls_are_refused_before_anything_is_read(sample: AnnotatedImage, tmp_path: Path) -> None:
    out, nowhere = tmp_path / "out.bank", tmp_path / "nowhere"
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("metadata_id,file_list\n1,a.png\n")
    (tmp_path / "list.json").write_text('{"a": [1]}')
    (tmp_path / "existing.bank").write_bytes(b"")
    calls: list[tuple[type[Exception], str, Callable[[], BuildReport]]] = [
        (FileExistsError, "overwrite", lambda: build_from_labelme(nowhere, tmp_path / "existing.bank")),
        (ValueError, "expected one of grabcut", lambda: build_from_labelme(nowhere, out, boxes="magic")),
        (TypeError, "boxs", lambda: build_from_labelme(nowhere, out, boxs="box")),
        (ValueError, "found none that can be read: there is none", lambda: build_from_labelme(tmp_path / "empty", out)),
        (FileNotFoundError, "expected a folder", lambda: build_from_labelme(nowhere, out)),
        (FileNotFoundError, "expected an export of VIA", lambda: build_from_via(nowhere, sample.images, out)),
        (ValueError, "export of VIA", lambda: build_from_via(tmp_path / "list.csv", sample.images, out)),
        (ValueError, "export of VIA", lambda: build_from_via(tmp_path / "list.json", sample.images, out)),
        (FileNotFoundError, "has no Annotations", lambda: build_from_voc(sample.root, out)),
        (FileNotFoundError, r"val\.txt", lambda: build_from_voc(as_voc(sample), out, split="val")),
    ]
    for error, message, call in calls:
        with pytest.raises(error, match=message):
            call()
    assert not out.exists()


# --- Pascal VOC -----------------------------------------------------------------------------------------------------


def test_boxes_of_voc_count_from_one_and_include_their_last_pixel(sample: AnnotatedImage, tmp_path: Path) -> None:
    found = by_name(voc_boxes(sample, tmp_path / "out.bank", boxes="box"))
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
    report = voc(sample, tmp_path / "out.bank", changes)
    assert (report.kept, report.rejected) == (BOTH, {})


def test_voc_uses_difficult_objects_on_demand_and_checks_sizes(sample: AnnotatedImage, tmp_path: Path) -> None:
    root = as_voc(sample, **{"<difficult>0": "<difficult>1"})
    assert build_from_voc(root, tmp_path / "out.bank", difficult=True).kept == BOTH
    file = root / "Annotations" / "scene.xml"
    file.write_text(file.read_text().replace("<height>96<", "<height>97<"))
    with pytest.raises(ValueError, match="image file has another size than the annotations say"):
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
    with pytest.raises(ValueError, match="image file"):  # it is looked for; its image has another name
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


def test_yolo_keypoints_follow_the_box_if_the_data_set_says_so(sample: AnnotatedImage, tmp_path: Path) -> None:
    line = "0 0.35 0.36 0.39 0.52 " + "0.2 0.2 0.6 0.2 0.6 0.6 0.2 0.6"
    assert yolo(sample, tmp_path / "polygon.bank", [line]).mask_sources == {"mask": 1}  # it looks like a polygon
    with (sample.root / "data.yaml").open("a") as file:
        file.write("kpt_shape: [4, 2]\n")
    assert build_from_yolo(sample.images, tmp_path / "box.bank", boxes="box").mask_sources == {"box": 1}


def test_yolo_uses_the_photograph_if_a_depth_map_has_its_name(sample: AnnotatedImage, tmp_path: Path) -> None:
    Image.new("L", (WIDTH, HEIGHT), 7).save(sample.images / "scene.bmp")
    report = yolo(sample, tmp_path / "out.bank")
    assert report.kept == {"cat": 1}
    assert report.rejected["label file belongs to several images"] == 1
    Image.new("RGB", (WIDTH, HEIGHT), "green").save(sample.images / "scene.jpg")
    with pytest.raises(ValueError, match=r"3 +label file belongs to several images"):
        build_from_yolo(sample.images, tmp_path / "none.bank")


# --- LabelMe --------------------------------------------------------------------------------------------------------


def test_labelme_masks_circles_groups_and_rectangles_of_four_corners(sample: AnnotatedImage, tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:, :] = 255
    x, y, width, height = BOX
    parts = [[[5, 5], [25, 5], [25, 25], [5, 25]], [[45, 5], [65, 5], [65, 25], [45, 25]]]
    corners = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
    shapes = [
        {"label": "m", "shape_type": "mask", "points": [[50, 40], [79, 59]], "mask": png_in_base64(mask)},
        {"label": "c", "shape_type": "circle", "points": [[60, 50], [60, 70]]},
        *({"label": "g", "points": points, "group_id": 1} for points in parts),
        *({"label": 0, "points": points, "group_id": ""} for points in parts),  # labels may be numbers
        {"label": "dog", "shape_type": "rectangle", "points": corners},
    ]
    report = labelme(sample, tmp_path / "out.bank", shapes, boxes="box")
    assert report.kept == {"0": 2, "c": 1, "dog": 1, "g": 1, "m": 1}
    found = by_name(report)
    opaque = {name: int((own.rgba[..., 3] > 0).sum()) for name, own in found.items()}
    assert found["m"].size == (30, 15)
    assert np.abs(np.subtract(found["c"].size, (40, 40))).max() <= 1
    assert opaque["c"] == pytest.approx(np.pi * 20**2, rel=0.05)
    assert np.abs(np.subtract(found["g"].size, (60, 20))).max() <= 1
    assert opaque["g"] == pytest.approx(800, rel=0.1)


@pytest.mark.parametrize(
    "change",
    [
        {"imagePath": "x" * 300 + ".png"},
        {"shapes": [*labelme_shapes()[:1], labelme_shapes()[0] | {"group_id": [1]}]},
        {"imageHeight": -5},
        {"imageWidth": 10**400},
    ],
)
def test_odd_files_of_labelme_do_not_end_a_build(
    sample: AnnotatedImage, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = as_labelme(sample)
    content = json.loads((folder / "scene.json").read_text())
    mask = {
        "label": "cat",
        "shape_type": "mask",
        "points": [[0, 0], [9, 9]],
        "mask": png_in_base64(np.ones((9, 9), "u1")),
    }
    (folder / "odd.json").write_text(json.dumps(content | {"shapes": [*labelme_shapes()[:1], mask]} | change))
    assert build_from_labelme(folder, tmp_path / "out.bank", images=sample.images).kept["cat"] >= 1


def test_labelme_finds_images(sample: AnnotatedImage, tmp_path: Path) -> None:
    folder = as_labelme(sample)
    image, outs = sample.images / "scene.png", (tmp_path / f"{number}.bank" for number in range(9))
    assert build_from_labelme(folder, next(outs)).kept == {"cat": 1}  # where the JSON says
    image.rename(folder / "scene.png")
    assert build_from_labelme(folder, next(outs)).kept == {"cat": 1}  # beside the JSON
    (folder / "scene.png").rename(tmp_path / "blob")
    image.symlink_to(tmp_path / "blob")  # a link has its own name
    report = build_from_labelme(folder, next(outs), images=sample.images, image_list=["scene.png"])
    assert report.kept == {"cat": 1}
    for place in (folder, sample.images):
        (place / "sub").mkdir()
    (folder / "scene.json").rename(folder / "sub" / "scene.json")
    image.rename(sample.images / "sub" / "scene.png")  # in the same subfolder
    assert build_from_labelme(folder, next(outs), images=sample.images).kept == {"cat": 1}


def test_labelme_files_of_several_folders_do_not_share_an_image(sample: AnnotatedImage, tmp_path: Path) -> None:
    text = (as_labelme(sample) / "scene.json").read_text()
    parts = [tmp_path / "parts" / part for part in ("north", "south")]

    def build(*texts: str) -> BuildReport:
        for part, own in zip(parts, texts, strict=True):
            part.mkdir(parents=True, exist_ok=True)
            (part / "scene.json").write_text(own)
        return build_from_labelme(tmp_path / "parts", tmp_path / "out.bank", images=sample.images, overwrite=True)

    (tmp_path / "labelme" / "again.json").write_text(text)  # tools that write a file for each class
    assert build_from_labelme(tmp_path / "labelme", tmp_path / "own.bank", images=sample.images).kept == {"cat": 2}
    with pytest.raises(ValueError, match=f"4 +{SHARED_IMAGE}"):  # of two images one is lost
        build(text, text)
    assert build(json.dumps(json.loads(text) | {"shapes": []}), text).kept == {"cat": 1}
    absolute = json.dumps(json.loads(text) | {"imagePath": str(sample.images / "scene.png")})
    assert build(absolute, absolute).kept == {"cat": 2}
    for part in parts:
        (sample.images / part.name).mkdir()
        shutil.copy(sample.images / "scene.png", sample.images / part.name)
    assert build(text, text).kept == {"cat": 2}


# --- VIA and panoptic -----------------------------------------------------------------------------------------------


def test_via_circles_ellipses_and_checkboxes(sample: AnnotatedImage, tmp_path: Path) -> None:
    circle = {"name": "circle", "cx": 40, "cy": 40, "r": 20}
    ellipse = {"name": "ellipse", "cx": 60, "cy": 50, "rx": 30, "ry": 10, "theta": np.pi / 2}
    regions = [
        {"shape_attributes": circle, "region_attributes": {"kind": {"a": True, "b": False}}},
        {"shape_attributes": ellipse, "region_attributes": {"kind": "b"}},
    ]
    found = by_name(via_of(sample, tmp_path / "out.bank", regions))
    assert np.abs(np.subtract(found["a"].size, (40, 40))).max() <= 1
    assert np.abs(np.subtract(found["b"].size, (20, 60))).max() <= 1  # rotated by a right angle


def test_via_does_not_guess_which_of_two_attributes_is_the_class(sample: AnnotatedImage, tmp_path: Path) -> None:
    regions = [region | {"region_attributes": {"quality": "good", "kind": "cat"}} for region in via_regions()]
    with pytest.raises(ValueError, match=r"which of the regions' attributes is the class\? There are kind, quality"):
        via_of(sample, tmp_path / "out.bank", regions)
    report = via_of(sample, tmp_path / "out.bank", regions, attribute="quality")
    assert report.kept == {"good": 1}
    with ForegroundBank.open(report.path) as bank:
        assert "(quality)" in bank.info()["built"]["annotations"]
    with pytest.raises(ValueError, match=r"no region has the attribute 'colour'; there are kind, quality"):
        via_of(sample, tmp_path / "other.bank", regions, attribute="colour")


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("missing", "mask file is missing"),
        ("broken", "mask file cannot be read"),
        ("size", "mask file and image differ in size"),
        ("grey", "mask file cannot be read"),
    ],
)
def test_unusable_panoptic_masks_are_counted(sample: AnnotatedImage, tmp_path: Path, trouble: str, reason: str) -> None:
    annotations, masks = as_panoptic(sample)
    file = masks / "scene.png"
    if trouble == "missing":
        file.unlink()
    elif trouble == "broken":
        file.write_bytes(file.read_bytes()[:60])
    else:
        with Image.open(file) as image:
            changed = image.convert("L") if trouble == "grey" else image.crop((0, 0, 20, 20))
        changed.save(file)
    with pytest.raises(ValueError, match=reason):
        build_from_panoptic(annotations, masks, sample.images, tmp_path / "out.bank")


# --- repaired oddities ----------------------------------------------------------------------------------------------


def as_text(value: Any) -> Any:
    return [as_text(part) for part in value] if isinstance(value, list) else f" {value} "


def labelme_as_text(sample: AnnotatedImage, out: Path) -> BuildReport:
    own = labelme_shapes()
    shapes = [shape | {"label": f" {shape['label']} ", "points": as_text(shape["points"])} for shape in own]
    return labelme(sample, out, shapes, boxes="box")


def via_as_text(sample: AnnotatedImage, out: Path) -> BuildReport:
    regions = via_regions()
    for region in regions:
        shape = region["shape_attributes"]
        shape.update({key: as_text(value) for key, value in shape.items() if key != "name"})
    return via_of(sample, out, regions, boxes="box")


def voc_swapped(sample: AnnotatedImage, out: Path) -> BuildReport:
    dirt = {"<xmin>81<": "<xmin>110<", "<xmax>110<": "<xmax>81<", ">scene.png": ">C:/a.png", "<name>cat": "<name> cat"}
    return voc(sample, out, dirt)


def yolo_respelled(sample: AnnotatedImage, out: Path) -> BuildReport:
    as_yolo(sample)
    (sample.root / "labels" / "scene.txt").rename(sample.root / "labels" / "SCENE.txt")
    return build_from_yolo(sample.images, out, boxes="box", names=["cat ", "dog"])


def panoptic_as_text(sample: AnnotatedImage, out: Path) -> BuildReport:
    annotations, masks = as_panoptic(sample)
    content = json.loads(annotations.read_text())
    for segment in content["annotations"][0]["segments_info"]:
        segment.update(id=str(segment["id"]), category_id=str(segment["category_id"]))
    content["annotations"][0].update(image_id="3", file_name="SCENE.png")
    annotations.write_text(json.dumps(content))
    return build_from_panoptic(annotations, masks, sample.images, out)


N_TEXT, SPACED = "number written as text", "class name with space around it"


@pytest.mark.parametrize(
    ("clean", "dirty", "repaired"),
    [
        (labelme, labelme_as_text, {N_TEXT: 2, SPACED: 2}),
        (via("json"), via_as_text, {N_TEXT: 2}),
        (
            voc,
            voc_swapped,
            {
                "box with its corners swapped": 1,
                SPACED: 1,
                "image has the name of its XML file and not that in it": 1,
            },
        ),
        (yolo, yolo_respelled, {"label file name in other capitals": 1, SPACED: 1}),
        # The ids of both things, then of the image of each.
        (panoptic, panoptic_as_text, {N_TEXT: 2, "id written as text": 4, "mask: file name in other capitals": 1}),
    ],
)
def test_oddities_are_repaired_and_give_the_bank_of_clean_data(
    tmp_path: Path, clean: Callable[..., BuildReport], dirty: Callable[..., BuildReport], repaired: dict[str, int]
) -> None:
    expected = clean(make_sample(tmp_path / "clean"), tmp_path / "clean.bank", boxes="box")
    report = dirty(make_sample(tmp_path / "dirty"), tmp_path / "dirty.bank")
    with ForegroundBank.open(report.path) as bank, ForegroundBank.open(expected.path) as clean_bank:
        assert bank.fingerprint == clean_bank.fingerprint
    assert (expected.repaired, report.repaired) == ({}, repaired)
    assert report.rejected == expected.rejected

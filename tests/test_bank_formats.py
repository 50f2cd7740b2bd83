"""Banks from Pascal VOC, YOLO, LabelMe, VIA and COCO's panoptic format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_samples import (
    BOTH,
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
    build_labelme,
    build_panoptic,
    build_via,
    build_via_regions,
    build_voc,
    build_yolo,
    by_name,
    labelme_shapes,
    make_sample,
    png_in_base64,
    true_masks,
    via_regions,
)

from terse_aug import ForegroundBank
from terse_aug.bank import (
    BuildReport,
    build_from_coco,
    build_from_labelme,
    build_from_panoptic,
    build_from_via,
    build_from_voc,
    build_from_yolo,
)


@pytest.fixture
def sample(tmp_path: Path) -> AnnotatedImage:
    return make_sample(tmp_path)


WITH_BOXES: dict[str, Callable[..., BuildReport]] = {
    "yolo": build_yolo,
    "labelme": build_labelme,
    "via json": build_via("json"),
    "via json1": build_via("json1"),
    "via project": build_via("project"),
    "via csv": build_via("csv"),
}
ALL = {"voc": build_voc, "panoptic": build_panoptic} | WITH_BOXES


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


def test_labels_are_the_formats_own_or_in_the_order_of_names(sample: AnnotatedImage, tmp_path: Path) -> None:
    assert {name: own.label for name, own in by_name(build_yolo(sample, tmp_path / "a.bank", boxes="box")).items()} == {
        "cat": 0,
        "dog": 1,
    }
    report = build_labelme(sample, tmp_path / "b.bank", boxes="box")
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
    "voc": build_voc,
    "yolo": lambda sample, out, line: build_yolo(sample, out, [LINE, "", line], boxes="ellipse"),
    "labelme": lambda sample, out, shape: build_labelme(sample, out, [*labelme_shapes()[:1], shape]),
    "via": lambda sample, out, change: build_via_regions(
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
        (FileNotFoundError, "COCO JSON file at", lambda: build_from_coco(nowhere, sample.images, out)),
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


# --- repaired oddities ----------------------------------------------------------------------------------------------


def as_text(value: Any) -> Any:
    return [as_text(part) for part in value] if isinstance(value, list) else f" {value} "


def labelme_as_text(sample: AnnotatedImage, out: Path) -> BuildReport:
    own = labelme_shapes()
    shapes = [shape | {"label": f" {shape['label']} ", "points": as_text(shape["points"])} for shape in own]
    return build_labelme(sample, out, shapes, boxes="box")


def via_as_text(sample: AnnotatedImage, out: Path) -> BuildReport:
    regions = via_regions()
    for region in regions:
        shape = region["shape_attributes"]
        shape.update({key: as_text(value) for key, value in shape.items() if key != "name"})
    return build_via_regions(sample, out, regions, boxes="box")


def voc_swapped(sample: AnnotatedImage, out: Path) -> BuildReport:
    dirt = {"<xmin>81<": "<xmin>110<", "<xmax>110<": "<xmax>81<", ">scene.png": ">C:/a.png", "<name>cat": "<name> cat"}
    return build_voc(sample, out, dirt)


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
        (build_labelme, labelme_as_text, {N_TEXT: 2, SPACED: 2}),
        (build_via("json"), via_as_text, {N_TEXT: 2}),
        (
            build_voc,
            voc_swapped,
            {
                "box with its corners swapped": 1,
                SPACED: 1,
                "image has the name of its XML file and not that in it": 1,
            },
        ),
        (build_yolo, yolo_respelled, {"label file name in other capitals": 1, SPACED: 1}),
        # The ids of both things, then of the image of each.
        (
            build_panoptic,
            panoptic_as_text,
            {N_TEXT: 2, "id written as text": 4, "mask: file name in other capitals": 1},
        ),
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

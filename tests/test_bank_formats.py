"""Banks from Pascal VOC, YOLO, LabelMe, VIA and COCO's panoptic format."""

from __future__ import annotations

import json
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
    Scene,
    as_labelme,
    as_panoptic,
    as_via,
    as_voc,
    as_yolo,
    labelme_shapes,
    make_scene,
    png_in_base64,
    true_masks,
    via_regions,
)

from terse_aug import ForegroundBank
from terse_aug.bank import (
    BuildReport,
    build_from_labelme,
    build_from_panoptic,
    build_from_via,
    build_from_voc,
    build_from_yolo,
)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path)


def voc(scene: Scene, out: Path, **more: Any) -> BuildReport:
    return build_from_voc(as_voc(scene), out, **more)


def voc_boxes(scene: Scene, out: Path, **more: Any) -> BuildReport:
    return build_from_voc(as_voc(scene, masks=False), out, split="train", **more)


def yolo(scene: Scene, out: Path, **more: Any) -> BuildReport:
    as_yolo(scene)
    return build_from_yolo(scene.images, out, **more)


def labelme(scene: Scene, out: Path, **more: Any) -> BuildReport:
    return build_from_labelme(as_labelme(scene), out, images=scene.images, **more)


def via(form: str) -> Callable[..., BuildReport]:
    return lambda scene, out, **more: build_from_via(as_via(scene, form), scene.images, out, **more)


def panoptic(scene: Scene, out: Path, **more: Any) -> BuildReport:
    return build_from_panoptic(*as_panoptic(scene), scene.images, out, **more)


WITH_BOXES: dict[str, Callable[..., BuildReport]] = {
    "yolo": yolo,
    "labelme": labelme,
    "via json": via("json"),
    "via json1": via("json1"),
    "via project": via("project"),
    "via csv": via("csv"),
}
ALL = {"voc": voc, "panoptic": panoptic} | WITH_BOXES


@pytest.mark.parametrize("name", list(ALL))
def test_every_format_gives_the_same_cut_outs(name: str, scene: Scene, tmp_path: Path) -> None:
    """The second object has a box only in some formats; it is taken for the whole of its box, whose rim is soft."""
    report = ALL[name](scene, tmp_path / "out.bank", boxes="box")
    assert report.kept == {"cat": 1, "dog": 1}
    bank = ForegroundBank.open(report.path)
    by_name = {bank.categories[bank[row].label]: bank[row] for row in range(2)}
    first, second = true_masks()
    for category, mask, (width, height) in (("cat", first, (50, 50)), ("dog", second, BOX[2:])):
        foreground = by_name[category]
        # Polygons are rasterised to a pixel more or less at the border.
        assert np.abs(np.subtract(foreground.size, (width, height))).max() <= 1
        inner = foreground.rgba[4:-4, 4:-4]
        assert (inner[..., 3] == 255).all()
        expected = scene.pixels[mask > 0][0]
        assert (inner[..., :3] == expected).all()
        assert foreground.source.startswith("scene.png#")
        assert foreground.extent == pytest.approx(max(width, height) / np.sqrt(HEIGHT * WIDTH), rel=0.03)
    expected_ways = {"mask": 1, "box": 1} if name in WITH_BOXES else {"mask": 2}
    assert report.cut_by == expected_ways
    assert ("cut out by" in report.summary()) is (name in WITH_BOXES)
    bank.close()


@pytest.mark.parametrize("name", [*WITH_BOXES, "voc"])
def test_boxes_are_left_out_and_counted_unless_a_way_is_given(name: str, scene: Scene, tmp_path: Path) -> None:
    if name == "voc":
        with pytest.raises(ValueError, match="a box cannot be cut out; masks are missing"):
            voc_boxes(scene, tmp_path / "out.bank")
        return
    report = WITH_BOXES[name](scene, tmp_path / "out.bank")
    assert report.kept == {"cat": 1}
    assert [count for reason, count in report.dropped.items() if "box cannot be cut out" in reason] == [1]


def test_labels_are_the_formats_own_or_in_the_order_of_names(scene: Scene, tmp_path: Path) -> None:
    yolo(scene, tmp_path / "yolo.bank", boxes="box")
    labelme(scene, tmp_path / "labelme.bank", boxes="box")
    with ForegroundBank.open(tmp_path / "yolo.bank") as bank:
        assert bank.categories == {0: "cat", 1: "dog"}
    with ForegroundBank.open(tmp_path / "labelme.bank") as bank:
        assert bank.categories == {1: "cat", 2: "dog"}


@pytest.mark.parametrize(
    ("changes", "reason", "left"),
    [
        ({"<xmin>81<": "<xmin>8l<"}, "a coordinate is no number", {"cat": 1}),
        ({"<xmin>81<": "<xmin> 81.0 <"}, "", {"cat": 1, "dog": 1}),
        ({"<xmin>81</xmin>": ""}, "object without a box", {"cat": 1}),
        ({"<name>dog</name>": "<name> </name>"}, "object without a class name", {"cat": 1}),
        ({"<name>dog</name><difficult>0": "<name>dog</name><difficult>1"}, "marked as difficult", {"cat": 1}),
        ({"<xmin>81<": "<xmin>21<", "<ymin>31<": "<ymin>1<"}, "mask and box disagree", {"cat": 1}),
        ({"<width>128<": "<width>0<"}, "", {"cat": 1, "dog": 1}),
        ({"<filename>scene.png": "<filename>C:/old/photo.png"}, "", {"cat": 1, "dog": 1}),
        ({"<height>96<": "<height>97<"}, "image file has another size than the JSON says", None),
    ],
)
def test_voc_is_mended_or_dropped_with_the_reason(
    scene: Scene, tmp_path: Path, changes: dict[str, str], reason: str, left: dict[str, int] | None
) -> None:
    root = as_voc(scene, **changes)
    (root / "Annotations" / "broken.xml").write_text("<annotation><object>")
    if left is None:
        with pytest.raises(ValueError, match=reason):
            build_from_voc(root, tmp_path / "out.bank")
        return
    report = build_from_voc(root, tmp_path / "out.bank")
    assert report.kept == left
    expected = {"XML file cannot be read"} | ({reason} if reason else set())
    assert {known for known in expected if any(known in given for given in report.dropped)} == expected
    assert len(report.dropped) == len(expected)


def test_voc_takes_difficult_objects_where_told(scene: Scene, tmp_path: Path) -> None:
    root = as_voc(scene, **{"<name>dog</name><difficult>0": "<name>dog</name><difficult>1"})
    assert build_from_voc(root, tmp_path / "out.bank", difficult=True).kept == {"cat": 1, "dog": 1}


def test_voc_without_its_folders_or_list_is_refused(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no Annotations"):
        build_from_voc(scene.root, tmp_path / "out.bank")
    with pytest.raises(FileNotFoundError, match=r"val\.txt"):
        build_from_voc(as_voc(scene), tmp_path / "out.bank", split="val")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1 0.5 0.5 x 0.2", "a coordinate is no number"),
        ("7 0.5 0.5 0.2 0.2", "class number has no name"),
        ("1.5 0.5 0.5 0.2 0.2", "class number has no name"),
        ("1 0.5 0.5 0.2", "line is neither class and box nor class and polygon"),
        ("1 nan 0.5 0.2 0.2", "a coordinate is not finite"),
        ("1 0.5 0.5 0 0.2", "box has no area"),
        ("1 1.5 0.5 0.2 0.2", "box lies outside the image"),
    ],
)
def test_yolo_lines_that_say_nothing_are_dropped_with_the_reason(
    scene: Scene, tmp_path: Path, line: str, reason: str
) -> None:
    as_yolo(scene, ["1 0.7421875 0.52083333 0.234375 0.41666667 0.93", "", line])
    report = build_from_yolo(scene.images, tmp_path / "out.bank", boxes="ellipse")
    assert report.kept == {"dog": 1}  # its sixth number is a confidence
    assert report.dropped == {reason: 1}
    assert "scene" in report.examples[reason][0]


def test_yolo_names_come_from_anywhere(scene: Scene, tmp_path: Path) -> None:
    as_yolo(scene)
    (scene.root / "data.yaml").unlink()
    with pytest.raises(ValueError, match=r"give names, or put a data\.yaml or classes\.txt beside the images"):
        build_from_yolo(scene.images, tmp_path / "out.bank")
    (scene.images / "classes.txt").write_text("cat\ndog\n")
    for number, names in enumerate((None, ["cat", "dog"], {0: "cat", 1: "dog"}, scene.images / "classes.txt")):
        report = build_from_yolo(scene.images, tmp_path / f"{number}.bank", names=names, boxes="box")
        assert report.kept == {"cat": 1, "dog": 1}
    with pytest.raises(ValueError, match="each once"):
        build_from_yolo(scene.images, tmp_path / "twice.bank", names=["cat", "cat"])


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"label": "bird", "shape_type": "line", "points": [[1, 2], [3, 4]]}, "shape is a line or a point"),
        ({"label": "bird", "shape_type": "polygon", "points": [[1, 2], [3]]}, "a point is not x, y"),
        ({"label": "bird", "shape_type": "polygon", "points": [[1, 2], [3, 4]]}, "polygon is degenerate"),
        ({"label": "bird", "shape_type": "rectangle", "points": [[1, 2]]}, "rectangle is not two points"),
        ({"label": "bird", "points": [["a", 2], [3, 4], [5, 6]]}, "a coordinate is no number"),
        ({"label": "bird", "points": "all"}, "points are no list"),
        ({"label": "", "points": POLYGON}, "shape without a label"),
        ("nothing", "shape without a label"),
        ({"label": "bird", "shape_type": "mask", "points": [[1, 2], [3, 4]], "mask": "?"}, "mask is no PNG in base64"),
    ],
)
def test_labelme_shapes_that_show_nothing_are_dropped_with_the_reason(
    scene: Scene, tmp_path: Path, shape: Any, reason: str
) -> None:
    folder = as_labelme(scene, [*labelme_shapes()[:1], shape])
    (folder / "other.json").write_text("{}")
    (folder / "broken.json").write_text("{")
    report = build_from_labelme(folder, tmp_path / "out.bank", images=scene.images)
    assert report.kept == {"cat": 1}
    reasons = ("JSON file cannot be read", "not a file of LabelMe's", reason)
    assert all(any(known in given for given in report.dropped) for known in reasons)
    assert len(report.dropped) == 3


def test_labelme_masks_circles_and_groups(scene: Scene, tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:, :] = 255
    shapes = [
        {"label": "m", "shape_type": "mask", "points": [[50, 40], [79, 59]], "mask": png_in_base64(mask)},
        {"label": "c", "shape_type": "circle", "points": [[60, 50], [60, 70]]},
        {"label": "g", "points": [[5, 5], [25, 5], [25, 25], [5, 25]], "group_id": 1},
        {"label": "g", "points": [[45, 5], [65, 5], [65, 25], [45, 25]], "group_id": 1},
    ]
    labelme_folder = as_labelme(scene, shapes)
    report = build_from_labelme(labelme_folder, tmp_path / "out.bank", images=scene.images)
    assert report.kept == {"c": 1, "g": 1, "m": 1}
    with ForegroundBank.open(report.path) as bank:
        sizes = {bank.categories[bank[row].label]: bank[row].size for row in range(3)}
        opaque = {bank.categories[bank[row].label]: int((bank[row].rgba[..., 3] > 0).sum()) for row in range(3)}
    assert sizes["m"] == (30, 15)
    assert np.abs(np.subtract(sizes["c"], (40, 40))).max() <= 1
    assert opaque["c"] == pytest.approx(np.pi * 20**2, rel=0.05)
    assert np.abs(np.subtract(sizes["g"], (60, 20))).max() <= 1
    assert opaque["g"] == pytest.approx(800, rel=0.1)


def test_labelme_finds_the_image_where_its_file_says_or_beside_it(scene: Scene, tmp_path: Path) -> None:
    folder = as_labelme(scene)
    assert build_from_labelme(folder, tmp_path / "said.bank").kept == {"cat": 1}
    (scene.images / "scene.png").rename(folder / "scene.png")
    assert build_from_labelme(folder, tmp_path / "beside.bank").kept == {"cat": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shape_attributes": {"name": "point", "cx": 1, "cy": 1}}, "shape is a line or a point"),
        (
            {"shape_attributes": {"name": "rect", "x": 1, "y": "?", "width": 9, "height": 9}},
            "a coordinate is no number",
        ),
        ({"shape_attributes": {"name": "polygon", "all_points_x": [1], "all_points_y": []}}, "other numbers of x"),
        ({"shape_attributes": None}, "region without a shape"),
        ({"region_attributes": {"note": "y"}}, "region without the attribute of the class"),
        ({"region_attributes": {"kind": " "}}, "region without a class name"),
        ({"region_attributes": {"kind": {"cat": True, "dog": True}}}, "several options of the class"),
    ],
)
def test_via_regions_that_show_nothing_are_dropped_with_the_reason(
    scene: Scene, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    regions = [*via_regions(), via_regions()[1] | change]
    report = build_from_via(as_via(scene, regions=regions), scene.images, tmp_path / "out.bank", boxes="box")
    assert report.kept == {"cat": 1, "dog": 1}
    assert len(report.dropped) == 1
    assert reason in next(iter(report.dropped))


def test_via_circles_ellipses_and_checkboxes(scene: Scene, tmp_path: Path) -> None:
    regions = [
        {
            "shape_attributes": {"name": "circle", "cx": 40, "cy": 40, "r": 20},
            "region_attributes": {"kind": {"a": True, "b": False}},
        },
        {
            "shape_attributes": {"name": "ellipse", "cx": 60, "cy": 50, "rx": 30, "ry": 10, "theta": np.pi / 2},
            "region_attributes": {"kind": "b"},
        },
    ]
    report = build_from_via(as_via(scene, regions=regions), scene.images, tmp_path / "out.bank")
    with ForegroundBank.open(report.path) as bank:
        sizes = {bank.categories[bank[row].label]: bank[row].size for row in range(2)}
    assert np.abs(np.subtract(sizes["a"], (40, 40))).max() <= 1
    assert np.abs(np.subtract(sizes["b"], (20, 60))).max() <= 1  # turned by a right angle


def test_via_chooses_the_attribute_that_is_asked_for(scene: Scene, tmp_path: Path) -> None:
    file = as_via(scene)
    report = build_from_via(file, scene.images, tmp_path / "out.bank", attribute="note", boxes="box")
    assert report.kept == {"x": 1}
    with pytest.raises(ValueError, match=r"no region has the attribute 'colour'; there are kind, note"):
        build_from_via(file, scene.images, tmp_path / "other.bank", attribute="colour")
    file.write_text(json.dumps({"a": [1]}))
    with pytest.raises(ValueError, match="expected an export of VIA"):
        build_from_via(file, scene.images, tmp_path / "other.bank")


def test_panoptic_takes_things_and_says_what_is_stuff(scene: Scene, tmp_path: Path) -> None:
    report = panoptic(scene, tmp_path / "out.bank")
    assert report.dropped == {"stuff, not an object": 1}
    with ForegroundBank.open(report.path) as bank:
        assert bank.categories == {1: "cat", 2: "dog"}


@pytest.mark.parametrize("trouble", ["missing", "broken", "size", "grey"])
def test_panoptic_masks_that_do_not_fit_are_counted(scene: Scene, tmp_path: Path, trouble: str) -> None:
    annotations, masks = as_panoptic(scene)
    file = masks / "scene.png"
    if trouble == "missing":
        file.unlink()
    elif trouble == "broken":
        file.write_bytes(file.read_bytes()[:60])
    else:
        from PIL import Image

        with Image.open(file) as image:
            changed = image.convert("L") if trouble == "grey" else image.crop((0, 0, 20, 20))
        changed.save(file)
    reason = {"missing": "mask file is missing", "size": "mask file and image differ in size"}
    with pytest.raises(ValueError, match=reason.get(trouble, "mask file cannot be read")):
        build_from_panoptic(annotations, masks, scene.images, tmp_path / "out.bank")


def test_nothing_to_read_is_refused(scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(ValueError, match="expected annotated objects, found none that can be read: there is none"):
        build_from_labelme(folder, tmp_path / "out.bank")
    with pytest.raises(FileNotFoundError, match="expected a folder"):
        build_from_labelme(tmp_path / "nowhere", tmp_path / "out.bank")
    with pytest.raises(FileNotFoundError, match="expected an export of VIA"):
        build_from_via(tmp_path / "nowhere.json", scene.images, tmp_path / "out.bank")
    assert not (tmp_path / "out.bank").exists()

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
    PolicyContext,
    as_labelme,
    as_panoptic,
    as_via,
    as_voc,
    as_yolo,
    labelme_shapes,
    make_context,
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
from terse_aug.bank.readers.annotation_collector import CLAIMED


@pytest.fixture
def scene(tmp_path: Path) -> PolicyContext:
    return make_context(tmp_path)


def voc(scene: PolicyContext, out: Path, **more: Any) -> BuildReport:
    return build_from_voc(as_voc(scene), out, **more)


def voc_boxes(scene: PolicyContext, out: Path, **more: Any) -> BuildReport:
    return build_from_voc(as_voc(scene, masks=False), out, split="train", **more)


def yolo(scene: PolicyContext, out: Path, **more: Any) -> BuildReport:
    as_yolo(scene)
    return build_from_yolo(scene.images, out, **more)


def labelme(scene: PolicyContext, out: Path, **more: Any) -> BuildReport:
    return build_from_labelme(as_labelme(scene), out, images=scene.images, **more)


def via(form: str) -> Callable[..., BuildReport]:
    return lambda scene, out, **more: build_from_via(as_via(scene, form), scene.images, out, **more)


def panoptic(scene: PolicyContext, out: Path, **more: Any) -> BuildReport:
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
def test_every_format_gives_the_same_cut_outs(name: str, scene: PolicyContext, tmp_path: Path) -> None:
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
        assert foreground.relative_size == pytest.approx(max(width, height) / np.sqrt(HEIGHT * WIDTH), rel=0.03)
    expected_ways = {"mask": 1, "box": 1} if name in WITH_BOXES else {"mask": 2}
    assert report.mask_sources == expected_ways
    assert ("masks from" in report.summary()) is (name in WITH_BOXES)
    bank.close()


@pytest.mark.parametrize("name", [*WITH_BOXES, "voc"])
def test_boxes_are_left_out_and_counted_unless_a_way_is_given(name: str, scene: PolicyContext, tmp_path: Path) -> None:
    if name == "voc":
        with pytest.raises(ValueError, match="a box cannot be cut out; masks are missing"):
            voc_boxes(scene, tmp_path / "out.bank")
        return
    report = WITH_BOXES[name](scene, tmp_path / "out.bank")
    assert report.kept == {"cat": 1}
    assert [count for reason, count in report.rejected.items() if "box cannot be cut out" in reason] == [1]


def test_boxes_of_voc_count_from_one_and_include_their_last_pixel(scene: PolicyContext, tmp_path: Path) -> None:
    report = voc_boxes(scene, tmp_path / "out.bank", boxes="box")
    with ForegroundBank.open(report.path) as bank:
        middle = {bank.categories[bank[row].label]: bank[row].rgba[20, 15, :3].tolist() for row in range(2)}
        # The softest pixels of the rim, at one px of many, are still there.
        assert {bank.categories[bank[row].label]: bank[row].size for row in range(2)} == {
            "cat": (50, 50),
            "dog": BOX[2:],
        }
    assert middle == {"cat": [220, 40, 40], "dog": [40, 220, 40]}


def test_labels_are_the_formats_own_or_in_the_order_of_names(scene: PolicyContext, tmp_path: Path) -> None:
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
    scene: PolicyContext, tmp_path: Path, changes: dict[str, str], reason: str, left: dict[str, int] | None
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
    assert {known for known in expected if any(known in given for given in report.rejected)} == expected
    assert len(report.rejected) == len(expected)


def test_voc_takes_difficult_objects_where_told(scene: PolicyContext, tmp_path: Path) -> None:
    root = as_voc(scene, **{"<name>dog</name><difficult>0": "<name>dog</name><difficult>1"})
    assert build_from_voc(root, tmp_path / "out.bank", difficult=True).kept == {"cat": 1, "dog": 1}


def test_voc_without_its_folders_or_list_is_refused(scene: PolicyContext, tmp_path: Path) -> None:
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
    scene: PolicyContext, tmp_path: Path, line: str, reason: str
) -> None:
    as_yolo(scene, ["1 0.7421875 0.52083333 0.234375 0.41666667 0.93", "", line])
    report = build_from_yolo(scene.images, tmp_path / "out.bank", boxes="ellipse")
    assert report.kept == {"dog": 1}  # its sixth number is a confidence
    assert report.rejected == {reason: 1}
    assert "scene" in report.examples[reason][0]


def test_yolo_names_come_from_anywhere(scene: PolicyContext, tmp_path: Path) -> None:
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
    (scene.images / "classes.txt").rename(scene.root / "labels" / "classes.txt")  # as LabelImg writes it
    assert build_from_yolo(scene.images, tmp_path / "labels.bank", boxes="box").kept == {"cat": 1, "dog": 1}


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"label": "bird", "shape_type": "line", "points": [[1, 2], [3, 4]]}, "shape is a line or a point"),
        ({"label": "bird", "shape_type": "polygon", "points": [[1, 2], [3]]}, "a point is not x, y"),
        ({"label": "bird", "shape_type": "polygon", "points": [[1, 2], [3, 4]]}, "polygon is degenerate"),
        ({"label": "bird", "shape_type": "rectangle", "points": [[1, 2]]}, "rectangle is not two points"),
        ({"label": "bird", "points": [["a", 2], [3, 4], [5, 6]]}, "a coordinate is no number"),
        ({"label": "bird", "points": "all"}, "points are no list"),
        ({"label": "\ud83d", "points": POLYGON}, "class name is damaged"),
        ({"label": None, "points": POLYGON}, "object without a class name"),
        ({"label": "", "points": POLYGON}, "object without a class name"),
        ("nothing", "object without a class name"),
        ({"label": "bird", "shape_type": "mask", "points": [[1, 2], [3, 4]], "mask": "?"}, "mask is no PNG in base64"),
    ],
)
def test_labelme_shapes_that_show_nothing_are_dropped_with_the_reason(
    scene: PolicyContext, tmp_path: Path, shape: Any, reason: str
) -> None:
    folder = as_labelme(scene, [*labelme_shapes()[:1], shape])
    (folder / "other.json").write_text("{}")
    (folder / "broken.json").write_text("{")
    report = build_from_labelme(folder, tmp_path / "out.bank", images=scene.images)
    assert report.kept == {"cat": 1}
    reasons = ("JSON file cannot be read", "not a file of LabelMe's", reason)
    assert all(any(known in given for given in report.rejected) for known in reasons)
    assert len(report.rejected) == 3


def test_labelme_masks_circles_and_groups(scene: PolicyContext, tmp_path: Path) -> None:
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


def test_labelme_finds_the_image_where_its_file_says_or_beside_it(scene: PolicyContext, tmp_path: Path) -> None:
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
        ({"region_attributes": {"kind": " "}}, "object without a class name"),
        ({"region_attributes": {"kind": None}}, "object without a class name"),
        ({"region_attributes": {"kind": {"cat": True, "dog": True}}}, "several options of the class"),
    ],
)
def test_via_regions_that_show_nothing_are_dropped_with_the_reason(
    scene: PolicyContext, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    regions = [*via_regions(), via_regions()[1] | change]
    file = as_via(scene, regions=regions)
    report = build_from_via(file, scene.images, tmp_path / "out.bank", boxes="box", attribute="kind")
    assert report.kept == {"cat": 1, "dog": 1}
    assert len(report.rejected) == 1
    assert reason in next(iter(report.rejected))


def test_via_circles_ellipses_and_checkboxes(scene: PolicyContext, tmp_path: Path) -> None:
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


def test_via_chooses_the_attribute_that_is_asked_for(scene: PolicyContext, tmp_path: Path) -> None:
    file = as_via(scene)
    report = build_from_via(file, scene.images, tmp_path / "out.bank", attribute="note", boxes="box")
    assert report.kept == {"x": 1}
    with pytest.raises(ValueError, match=r"no region has the attribute 'colour'; there are kind, note"):
        build_from_via(file, scene.images, tmp_path / "other.bank", attribute="colour")
    file.write_text(json.dumps({"a": [1]}))
    with pytest.raises(ValueError, match="expected an export of VIA"):
        build_from_via(file, scene.images, tmp_path / "other.bank")


def test_panoptic_takes_things_and_says_what_is_stuff(scene: PolicyContext, tmp_path: Path) -> None:
    report = panoptic(scene, tmp_path / "out.bank")
    assert report.rejected == {"stuff, not an object": 1}
    with ForegroundBank.open(report.path) as bank:
        assert bank.categories == {1: "cat", 2: "dog"}


@pytest.mark.parametrize("trouble", ["missing", "broken", "size", "grey"])
def test_panoptic_masks_that_do_not_fit_are_counted(scene: PolicyContext, tmp_path: Path, trouble: str) -> None:
    annotations, masks = as_panoptic(scene)
    file = masks / "scene.png"
    if trouble == "missing":
        file.unlink()
    elif trouble == "broken":
        file.write_bytes(file.read_bytes()[:60])
    else:
        with Image.open(file) as image:
            changed = image.convert("L") if trouble == "grey" else image.crop((0, 0, 20, 20))
        changed.save(file)
    reason = {"missing": "mask file is missing", "size": "mask file and image differ in size"}
    with pytest.raises(ValueError, match=reason.get(trouble, "mask file cannot be read")):
        build_from_panoptic(annotations, masks, scene.images, tmp_path / "out.bank")


def test_nothing_to_read_is_refused(scene: PolicyContext, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(ValueError, match="expected annotated objects, found none that can be read: there is none"):
        build_from_labelme(folder, tmp_path / "out.bank")
    with pytest.raises(FileNotFoundError, match="expected a folder"):
        build_from_labelme(tmp_path / "nowhere", tmp_path / "out.bank")
    with pytest.raises(FileNotFoundError, match="expected an export of VIA"):
        build_from_via(tmp_path / "nowhere.json", scene.images, tmp_path / "out.bank")
    assert not (tmp_path / "out.bank").exists()


# --- what a data set of 100,000 images has somewhere ----------------------------------------------------------------

LONG = "x" * 300 + ".png"


def test_voc_names_that_no_file_can_have(scene: PolicyContext, tmp_path: Path) -> None:
    root = as_voc(scene, **{"<filename>scene.png": f"<filename>{LONG}"})
    assert build_from_voc(root, tmp_path / "out.bank").kept == {"cat": 1, "dog": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"imagePath": LONG},
        {"shapes": [*labelme_shapes()[:1], labelme_shapes()[0] | {"group_id": [1]}]},
        {"imageHeight": -5},
        {"imageWidth": 10**12},
        {"imageWidth": 10**400},
    ],
)
def test_odd_files_of_labelme_do_not_end_a_build(scene: PolicyContext, tmp_path: Path, change: dict[str, Any]) -> None:
    folder = as_labelme(scene)
    content = json.loads((folder / "scene.json").read_text())
    mask = {
        "label": "cat",
        "shape_type": "mask",
        "points": [[0, 0], [9, 9]],
        "mask": png_in_base64(np.ones((9, 9), "u1")),
    }
    (folder / "odd.json").write_text(json.dumps(content | {"shapes": [*labelme_shapes()[:1], mask]} | change))
    report = build_from_labelme(folder, tmp_path / "out.bank", images=scene.images)
    assert report.kept["cat"] >= 1


def test_labelme_keeps_the_names_of_links_and_finds_subfolders(scene: PolicyContext, tmp_path: Path) -> None:
    folder = as_labelme(scene)
    store = tmp_path / "store"
    store.mkdir()
    (scene.images / "scene.png").rename(store / "blob")
    (scene.images / "scene.png").symlink_to(store / "blob")
    assert build_from_labelme(folder, tmp_path / "a.bank", images=scene.images, image_list=["scene.png"]).kept == {
        "cat": 1
    }
    (folder / "sub").mkdir()
    (folder / "scene.json").rename(folder / "sub" / "scene.json")
    (scene.images / "sub").mkdir()
    (scene.images / "scene.png").rename(scene.images / "sub" / "scene.png")
    assert build_from_labelme(folder, tmp_path / "b.bank", images=scene.images).kept == {"cat": 1}


def test_labelme_groups_rectangles_of_four_corners_and_labels_that_are_numbers(
    scene: PolicyContext, tmp_path: Path
) -> None:
    x, y, width, height = BOX
    corners = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
    shapes = [
        {"label": 0, "points": [[5, 5], [25, 5], [25, 25], [5, 25]], "group_id": ""},
        {"label": 0, "points": [[45, 5], [65, 5], [65, 25], [45, 25]], "group_id": ""},
        {"label": "dog", "shape_type": "rectangle", "points": corners},
    ]
    report = build_from_labelme(as_labelme(scene, shapes), tmp_path / "out.bank", images=scene.images, boxes="box")
    assert report.kept == {"0": 2, "dog": 1}


@pytest.mark.parametrize("regions", [None, "absent", 7])
def test_odd_entries_of_via_are_counted(scene: PolicyContext, tmp_path: Path, regions: Any) -> None:
    file = as_via(scene)
    content = json.loads(file.read_text())
    content["odd"] = {"filename": "odd.png"} | ({} if regions == "absent" else {"regions": regions})
    file.write_text(json.dumps(content))
    report = build_from_via(file, scene.images, tmp_path / "out.bank")
    assert report.kept == {"cat": 1}
    assert report.rejected["entry without a file name or regions"] == 1


def test_odd_rows_of_via_are_counted_and_another_csv_is_refused(scene: PolicyContext, tmp_path: Path) -> None:
    file = as_via(scene, "csv")
    text = file.read_text()
    file.write_text(text + 'scene.png,1,{},2,5,"{""name"": ","{}"\n')
    report = build_from_via(file, scene.images, tmp_path / "out.bank")
    assert (report.kept, report.rejected["row with damaged attributes"]) == ({"cat": 1}, 1)
    file.write_text("metadata_id,file_list\n1,a.png\n")
    with pytest.raises(ValueError, match="expected an export of VIA"):
        build_from_via(file, scene.images, tmp_path / "other.bank")


def test_via_does_not_guess_which_of_two_attributes_is_the_class(scene: PolicyContext, tmp_path: Path) -> None:
    regions = [region | {"region_attributes": {"quality": "good", "kind": "cat"}} for region in via_regions()]
    file = as_via(scene, regions=regions)
    with pytest.raises(ValueError, match=r"which of the regions' attributes is the class\? There are kind, quality"):
        build_from_via(file, scene.images, tmp_path / "out.bank")
    build_from_via(file, scene.images, tmp_path / "out.bank", attribute="kind")
    with ForegroundBank.open(tmp_path / "out.bank") as bank:
        assert "(kind)" in bank.info()["built"]["annotations"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"category_id": 77}, "category is not in the JSON"),
        ({"category_id": None}, "segment without an id or a category"),
        ({"category_id": [1]}, "segment without an id or a category"),
        ({"id": "3oo"}, "segment without an id or a category"),
        ({"bbox": 5}, "box is not x, y, width, height"),
        ({"bbox": [10**400, 0, 1, 1]}, "box is not x, y, width, height"),
        ("nothing", "segment without an id or a category"),
    ],
)
def test_odd_segments_are_counted(scene: PolicyContext, tmp_path: Path, change: Any, reason: str) -> None:
    annotations, masks = as_panoptic(scene)
    content = json.loads(annotations.read_text())
    first = content["annotations"][0]["segments_info"][0]
    content["annotations"][0]["segments_info"][0] = first | change if isinstance(change, dict) else change
    content["annotations"].append({"image_id": 4, "segments_info": [], "file_name": None})
    annotations.write_text(json.dumps(content))
    report = build_from_panoptic(annotations, masks, scene.images, tmp_path / "out.bank")
    assert report.kept == {"dog": 1}
    assert report.rejected == {reason: 1, "image without segments or mask file": 1, "stuff, not an object": 1}


def test_a_mask_file_that_was_corrected_is_read_anew(scene: PolicyContext, tmp_path: Path) -> None:
    root = as_voc(scene)
    build_from_voc(root, tmp_path / "out.bank")
    file = root / "SegmentationObject" / "scene.png"
    with Image.open(file) as image:
        numbers = np.asarray(image).copy()
    numbers[:, :30] = 0
    Image.fromarray(numbers).save(file)
    os.utime(file, ns=(1, 1))
    report = build_from_voc(root, tmp_path / "out.bank", overwrite=True)
    with ForegroundBank.open(report.path) as bank:
        assert {bank[row].size for row in range(2)} == {(40, 50), BOX[2:]}


def test_yolo_keypoints_follow_the_box_where_the_data_set_says_so(scene: PolicyContext, tmp_path: Path) -> None:
    line = "0 0.35 0.36 0.39 0.52 " + "0.2 0.2 0.6 0.2 0.6 0.6 0.2 0.6"
    as_yolo(scene, [line])
    report = build_from_yolo(scene.images, tmp_path / "polygon.bank")
    assert report.mask_sources == {"mask": 1}  # nothing tells it from a polygon
    with (scene.root / "data.yaml").open("a") as file:
        file.write("kpt_shape: [4, 2]\n")
    report = build_from_yolo(scene.images, tmp_path / "box.bank", boxes="box")
    assert report.mask_sources == {"box": 1}


def test_yolo_counts_empty_lines_of_a_list_of_names(scene: PolicyContext, tmp_path: Path) -> None:
    as_yolo(scene)
    (scene.root / "data.yaml").unlink()
    (scene.images / "classes.txt").write_text("cat\n\ndog\n")
    with pytest.raises(ValueError, match="each once"):
        build_from_yolo(scene.images, tmp_path / "out.bank")


def test_yolo_from_within_the_folder(scene: PolicyContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_yolo(scene)
    monkeypatch.chdir(scene.images)
    assert build_from_yolo(".", tmp_path / "out.bank").kept == {"cat": 1}


def test_voc_lists_of_splits_and_of_classes(scene: PolicyContext, tmp_path: Path) -> None:
    root = as_voc(scene)
    (root / "ImageSets" / "Segmentation").mkdir()
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("other\n")
    assert build_from_voc(root, tmp_path / "a.bank", split="train").kept == {"cat": 1, "dog": 1}
    with pytest.raises(ValueError, match="image of the split has no XML file"):
        build_from_voc(root, tmp_path / "b.bank", split="Segmentation/train")
    (root / "ImageSets" / "Main" / "cat_train.txt").write_text("scene  1\nother -1\n")
    assert build_from_voc(root, tmp_path / "c.bank", split="cat_train").rejected == {}
    for part, suffix in (("Annotations", ".xml"), ("JPEGImages", ".png"), ("SegmentationObject", ".png")):
        (root / part / f"scene{suffix}").rename(root / part / f"my scene{suffix}")
    (root / "ImageSets" / "Main" / "train.txt").write_text("my scene\n")
    assert build_from_voc(root, tmp_path / "d.bank", split="train").kept == {"cat": 1, "dog": 1}
    for part, suffix in (("Annotations", ".xml"), ("SegmentationObject", ".png")):
        (root / part / f"my scene{suffix}").rename(root / part / f"scene -1{suffix}")
    (root / "ImageSets" / "Main" / "train.txt").write_text("scene -1\n")
    with pytest.raises(ValueError, match="image file"):  # it is looked for; its picture has another name
        build_from_voc(root, tmp_path / "e.bank", split="train")


def test_names_of_images_may_come_one_by_one(scene: PolicyContext, tmp_path: Path) -> None:
    as_yolo(scene)
    assert build_from_yolo(scene.images, tmp_path / "out.bank", image_list=iter(["scene.png"])).kept == {"cat": 1}


def test_labels_stay_the_same_where_the_names_are_given(scene: PolicyContext, tmp_path: Path) -> None:
    root = as_voc(scene, **{"<name>cat</name><difficult>0": "<name>cat</name><difficult>1"})
    names = ["bird", "cat", "dog"]
    report = build_from_voc(root, tmp_path / "out.bank", names=names)
    with ForegroundBank.open(report.path) as bank:
        assert bank.categories[3] == "dog"
        assert bank[0].label == 3
    labelme_report = build_from_labelme(as_labelme(scene), tmp_path / "l.bank", images=scene.images, names=["cat"])
    assert labelme_report.rejected == {"class is not in `names`": 1}
    with pytest.raises(ValueError, match="each once"):
        build_from_voc(root, tmp_path / "other.bank", names=["cat", "cat"])


def test_what_is_wrong_with_the_call_is_said_before_anything_is_read(scene: PolicyContext, tmp_path: Path) -> None:
    (tmp_path / "out.bank").write_bytes(b"")
    nowhere = tmp_path / "nowhere"
    with pytest.raises(FileExistsError, match="overwrite"):
        build_from_labelme(nowhere, tmp_path / "out.bank")
    with pytest.raises(ValueError, match="expected one of grabcut"):
        build_from_labelme(nowhere, tmp_path / "new.bank", boxes="magic")
    with pytest.raises(TypeError, match="boxs"):
        build_from_labelme(nowhere, tmp_path / "new.bank", boxs="box")


def test_files_of_several_folders_do_not_share_an_image_that_stands_in(scene: PolicyContext, tmp_path: Path) -> None:
    folder = as_labelme(scene)
    text = (folder / "scene.json").read_text()
    (folder / "scene_again.json").write_text(text)  # as of tools that write a file for each class
    assert build_from_labelme(folder, tmp_path / "own.bank", images=scene.images).kept == {"cat": 2}
    for part in ("north", "south"):  # of two images that lie in one folder now, one is lost
        (tmp_path / "parts" / part).mkdir(parents=True)
        (tmp_path / "parts" / part / "scene.json").write_text(text)
    with pytest.raises(ValueError, match=f"4 +{CLAIMED}"):
        build_from_labelme(tmp_path / "parts", tmp_path / "flat.bank", images=scene.images)
    empty = json.loads(text) | {"shapes": []}
    (tmp_path / "parts" / "north" / "scene.json").write_text(json.dumps(empty))
    assert build_from_labelme(tmp_path / "parts", tmp_path / "one.bank", images=scene.images).kept == {"cat": 1}
    said = json.dumps(json.loads(text) | {"imagePath": str(scene.images / "scene.png")})
    for part in ("north", "south"):
        (tmp_path / "parts" / part / "scene.json").write_text(said)
    assert build_from_labelme(tmp_path / "parts", tmp_path / "said.bank", images=scene.images).kept == {"cat": 2}
    for part in ("north", "south"):
        (tmp_path / "parts" / part / "scene.json").write_text(text)
    for part in ("north", "south"):
        (scene.images / part).mkdir()
        shutil.copy(scene.images / "scene.png", scene.images / part)
    assert build_from_labelme(tmp_path / "parts", tmp_path / "deep.bank", images=scene.images).kept == {"cat": 2}


def test_voc_takes_the_image_of_its_xml_file_where_that_was_copied(scene: PolicyContext, tmp_path: Path) -> None:
    root = as_voc(scene)
    green = Image.new("RGB", (WIDTH, HEIGHT), "green")
    green.save(root / "JPEGImages" / "other.png")
    text = (root / "Annotations" / "scene.xml").read_text()
    (root / "Annotations" / "other.xml").write_text(text)  # its <filename> is still scene.png
    report = build_from_voc(root, tmp_path / "out.bank", boxes="box")
    assert report.kept == {"cat": 2, "dog": 2}
    assert report.repaired == {"image has the name of its XML file and not that in it": 1}
    (root / "JPEGImages" / "other.png").unlink()
    report = build_from_voc(root, tmp_path / "one.bank", boxes="box")
    assert (report.kept, report.rejected) == ({"cat": 1, "dog": 1}, {CLAIMED: 2})


def test_voc_trusts_the_name_in_the_file_where_the_image_is_nobody_else_s(scene: PolicyContext, tmp_path: Path) -> None:
    root = as_voc(scene)
    (root / "Annotations" / "scene.xml").rename(root / "Annotations" / "1.xml")
    Image.new("RGB", (WIDTH, HEIGHT), "green").save(root / "JPEGImages" / "1.png")
    report = build_from_voc(root, tmp_path / "out.bank", boxes="box")
    assert (report.kept, report.repaired) == ({"cat": 1, "dog": 1}, {})
    with ForegroundBank.open(report.path) as bank:
        assert all(cut.source.startswith("scene.png") for cut in bank)


def test_yolo_takes_the_photograph_where_its_mask_has_its_name(scene: PolicyContext, tmp_path: Path) -> None:
    as_yolo(scene)
    depths = Image.new("L", (WIDTH, HEIGHT), 7)
    depths.save(scene.images / "scene.bmp")
    report = build_from_yolo(scene.images, tmp_path / "out.bank")
    assert report.kept == {"cat": 1}
    assert report.rejected["label file is that of several images"] == 1
    Image.new("RGB", (WIDTH, HEIGHT), "green").save(scene.images / "scene.jpg")
    with pytest.raises(ValueError, match=r"3 +label file is that of several images"):
        build_from_yolo(scene.images, tmp_path / "none.bank")

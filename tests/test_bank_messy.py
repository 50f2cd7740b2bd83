"""Messy data sets: what can mean one thing only is mended and counted, and gives the cut-outs of clean data."""

from __future__ import annotations

import copy
import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_samples import (
    PolicyContext,
    as_labelme,
    as_panoptic,
    as_via,
    as_voc,
    as_yolo,
    labelme_shapes,
    make_context,
    via_regions,
)
from bank_samples import gradient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from terse_aug.bank import (
    BuildReport,
    ForegroundBank,
    build_from_coco,
    build_from_labelme,
    build_from_masks,
    build_from_panoptic,
    build_from_via,
    build_from_voc,
    build_from_yolo,
)
from terse_aug.bank.inputs.file_names import match_names
from terse_aug.bank.inputs.repair import repair_annotation
from terse_aug.cli import main
from terse_aug.preview import open_coco

NAME = "züge/Käfer Ä.png"
OTHER = "b.png"
Content = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images; the name of one has all that names are damaged in."""
    for seed, name in enumerate((NAME, OTHER)):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(gradient(80, 120), 10 * seed, 0)).save(path)
    return tmp_path


def clean() -> Content:
    """Category ids with holes; polygons in two parts, an RLE and a crowd."""
    return {
        "images": [
            {"id": 7, "file_name": NAME, "height": 80, "width": 120},
            {"id": 9, "file_name": OTHER, "height": 80, "width": 120},
        ],
        "categories": [{"id": 3, "name": "car", "keypoints": ["a"]}, {"id": 90, "name": "toothbrush"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 3,
                "bbox": [30, 10, 40.5, 20],
                "segmentation": [[30, 10, 70.5, 10, 70.5, 30, 30, 30], [30, 12, 40, 12, 40, 20]],
                "keypoints": [31, 12, 2],
                "iscrowd": 0,
            },
            {
                "id": 2,
                "image_id": 9,
                "category_id": 90,
                "segmentation": runs(30),
                "bbox": [30, 0, 20, 80],
                "iscrowd": 0,
            },
            {"id": 3, "image_id": 9, "category_id": 90, "segmentation": runs(50), "iscrowd": 1},
        ],
    }


def runs(left: int) -> Content:
    """20 columns of an image of 80x120."""
    return {"size": [80, 120], "counts": [80 * left, 1600, 80 * (100 - left)]}


def build(folder: Path, content: Content, name: str = "out.bank", **more: Any) -> tuple[BuildReport, str]:
    report = build_from_coco(content, folder / "images", folder / name, **more)
    with ForegroundBank.open(report.path) as bank:
        return report, bank.fingerprint


def as_text(value: Any) -> Any:
    return [as_text(part) for part in value] if isinstance(value, list) else f" {value} "


def texts(content: Content, *places: tuple[str, str]) -> None:
    for kind, key in places:
        for entry in content[kind]:
            if key in entry and not isinstance(entry[key], dict):
                entry[key] = as_text(entry[key])


def first(content: Content) -> Content:
    entry: Content = content["annotations"][0]
    return entry


def renamed(name: str) -> Callable[[Content], None]:
    return lambda content: content["images"][0].update(file_name=name)


def damaged(codec: str) -> str:
    return NAME.encode().decode(codec)


def close_twice(content: Content) -> None:
    first(content)["segmentation"] = [polygon + 2 * polygon[:2] for polygon in first(content)["segmentation"]]


def double_points(content: Content) -> None:
    polygon = first(content)["segmentation"][0]
    first(content)["segmentation"][0] = [*polygon[:4], *polygon[2:4], *polygon[4:]]


def as_pairs(content: Content) -> None:
    first(content)["segmentation"] = [
        [polygon[at : at + 2] for at in range(0, len(polygon), 2)] for polygon in first(content)["segmentation"]
    ]


def text_ids(content: Content) -> None:
    texts(content, ("annotations", "image_id"), ("annotations", "category_id"))


def runs_as_text(content: Content) -> None:
    for entry in content["annotations"][1:]:
        entry["segmentation"] = {
            "size": ["80", "120.0"],
            "counts": [str(run) for run in entry["segmentation"]["counts"]],
        }


N_TEXT, N_ID = "number written as text", "id written as text"

DIRT: dict[str, tuple[Callable[[Content], Any], dict[str, int]]] = {
    "numbers": (lambda c: texts(c, ("annotations", "bbox"), ("annotations", "segmentation")), {N_TEXT: 2}),
    "keypoints": (lambda c: texts(c, ("annotations", "keypoints")), {N_TEXT: 1}),
    "crowds": (lambda c: texts(c, ("annotations", "iscrowd")), {N_TEXT: 3}),
    "sizes": (lambda c: texts(c, ("images", "height"), ("images", "width")), {N_TEXT: 2}),
    "runs": (runs_as_text, {N_TEXT: 1}),
    "ids of annotations": (text_ids, {N_ID: 3}),
    "ids of images": (lambda c: [image.update(id=str(image["id"])) for image in c["images"]], {N_ID: 3}),
    "ids of categories": (lambda c: texts(c, ("categories", "id")), {N_TEXT: 2}),
    "categories by name": (lambda c: first(c).update(category_id="car "), {"category given by its name": 1}),
    "spaces": (lambda c: c["categories"][0].update(name=" car\n"), {"class name with space around it": 1}),
    "whole lists": (
        lambda c: first(c).update({key: json.dumps(first(c)[key]) for key in ("bbox", "segmentation")}),
        {"list written as text": 1},
    ),
    "pairs": (as_pairs, {"polygon written as pairs of coordinates": 1}),
    "closed twice": (close_twice, {"polygon with repeated points, such as its first at its end": 1}),
    "doubled points": (double_points, {"polygon with repeated points, such as its first at its end": 1}),
    "a line": (
        lambda c: first(c)["segmentation"].insert(0, [1, 2, 30, 4, 1, 2]),
        {
            "polygon with repeated points, such as its first at its end": 1,
            "degenerate part of a polygon left out beside valid ones": 1,
        },
    ),
    "boxes": (
        lambda c: c["annotations"][1].update(bbox=[30, -20, 20, 300]),
        {"box reaches beyond its image and was clipped": 1},
    ),
    "odd sizes": (
        lambda c: c["images"][0].update(height="tall"),
        {"size of the image is no number: the file's size is used": 1},
    ),
    "listed twice": (lambda c: c["images"].append(dict(c["images"][0])), {"image listed twice": 1}),
    "decomposed": (renamed(unicodedata.normalize("NFD", NAME)), {"file name in another Unicode form": 1}),
    "backslashes": (
        renamed(".\\" + NAME.replace("/", "\\")),
        {"file name with other slashes or space around it": 1},
    ),
    "capitals": (renamed(NAME.upper()), {"file name in other capitals": 1}),
    "as cp1252": (renamed(damaged("cp1252").replace("/", "\\")), {"file name in another encoding": 1}),
    "as latin-1": (renamed(damaged("latin-1")), {"file name in another encoding": 1}),
    "as cp437": (renamed(damaged("cp437")), {"file name in another encoding": 1}),
    "percent": (renamed("z%C3%BCge/K%C3%A4fer%20%C3%84.png"), {"file name in percent codes": 1}),
    "extension": (renamed("züge/Käfer Ä.JPEG"), {"file name with another extension or none": 1}),
    "no extension": (renamed("züge/Käfer Ä"), {"file name with another extension or none": 1}),
    "no folder": (renamed("Käfer Ä.png"), {"file lies in another folder than its name says": 1}),
    "other machine": (renamed("C:\\data\\" + NAME), {"file lies in another folder than its name says": 1}),
}


@pytest.mark.parametrize("name", list(DIRT))
def test_dirt_is_mended_to_the_cut_outs_of_the_clean_data_and_counted(folder: Path, name: str) -> None:
    soil, repaired = DIRT[name]
    content = clean()
    soil(content)
    assert content != clean()
    expected, fingerprint = build(folder, clean(), "clean.bank")
    assert (expected.repaired, expected.rejected) == ({}, {"crowd region, not one object (iscrowd)": 1})
    assert expected.kept == {"car": 1, "toothbrush": 1}
    report, mended_fingerprint = build(folder, content)
    assert report.repaired == repaired
    assert report.rejected == expected.rejected
    assert mended_fingerprint == fingerprint
    told = report.summary()
    assert all(reason in told and report.examples[reason] for reason in repaired)


def test_what_was_mended_is_told_by_the_bank(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = clean()
    text_ids(content)
    report, _ = build(folder, content)
    with ForegroundBank.open(report.path) as bank:
        assert bank.info()["built"]["repaired"] == {N_ID: 3}
    assert main(["bank", "info", str(report.path)]) == 0
    assert "repaired when it was built\n       3  id written as text" in capsys.readouterr().out


@pytest.mark.parametrize("codec", ["cp1252", "cp437", "latin-1"])
def test_damaged_names_on_disk_are_found(folder: Path, codec: str) -> None:
    """The other way round: an archive was unpacked wrongly, as text or as bytes that are none."""
    images = folder / "images"
    for spelled in (os.fsencode(damaged(codec)), NAME.encode(codec)):
        broken = Path(os.fsdecode(os.fsencode(images) + b"/" + spelled))
        broken.parent.mkdir(exist_ok=True)
        (images / NAME).rename(broken)
        report, _ = build(folder, clean(), overwrite=True)
        assert report.kept == {"car": 1, "toothbrush": 1}
        assert report.repaired == {"file name in another encoding": 1}
        broken.rename(images / NAME)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ((), ("c.PNG", "C.png")),  # both are the same file
        (("d.png",), ("d.jpg", "d.png")),  # one has the file already
        (("e.png", "e.webp"), ("e.jpg", "b.png")),  # either may be meant
        (("f/x.png",), ("g/x.png", "b.png")),  # frames of another video
    ],
)
def test_what_may_mean_several_things_is_not_mended(
    folder: Path, files: tuple[str, ...], names: tuple[str, ...]
) -> None:
    for file in (*files, "c.png"):
        (folder / "images" / file).parent.mkdir(exist_ok=True)
        (folder / "images" / file).write_bytes((folder / "images" / OTHER).read_bytes())
    content = clean()
    content["images"] += [{"id": 20 + row, "file_name": name} for row, name in enumerate(names)]
    content["annotations"] += [
        {"id": 9, "image_id": 20 + row, "category_id": 90, "segmentation": runs(30)} for row in range(2)
    ]
    report, _ = build(folder, content)
    known = sum((folder / "images" / name).is_file() for name in names)
    missing = {reason: count for reason, count in report.rejected.items() if "image file is missing" in reason}
    assert report.repaired == {}
    assert sum(missing.values()) == 2 - known
    assert report.kept["toothbrush"] == 1 + known


@pytest.mark.parametrize(
    ("soil", "reason"),
    [
        (lambda c: c["images"].append({"id": 7, "file_name": OTHER}), "image id of several files"),
        (lambda c: c["images"].append({"file_name": OTHER}), "image without an id"),
        (lambda c: c["images"].append({"id": [7]}), "image without an id"),
        (lambda c: c["images"].append(None), "entry in images is no mapping"),
        (lambda c: c["annotations"].append("x"), "entry in annotations is no mapping"),
        (lambda c: c["categories"].append({"id": "x", "name": "y"}), "category without a name or an id"),
        (lambda c: c["categories"].append({"id": 5}), "category without a name or an id"),
        (lambda c: c["categories"].append({"id": 3, "name": "bus"}), "category id of several names"),
        (lambda c: first(c).update(segmentation=[[1, 2, 30, 4], [1, 1]]), "polygon is degenerate"),
        (lambda c: first(c).update(segmentation=[[1, 2, 1, 2, 1, 2, 1, 2]]), "polygon is degenerate"),
        (lambda c: first(c).update(segmentation=[["1_0", "2", "3", "4", "5", "6"]]), "no list of finite numbers"),
        (lambda c: first(c).update(segmentation="[[1, 2"), "neither polygons nor RLE"),
        (lambda c: first(c).update(segmentation=[["nan"] * 6]), "no list of finite numbers"),
        (lambda c: first(c).update(bbox="[1, 2]"), "box is not x, y, width, height"),
        (lambda c: first(c).update(bbox=["1e999"] * 4), "mask and box disagree"),
        (lambda c: first(c).update(keypoints=[1e300, 2, 2]), "keypoints are not finite"),
        (lambda c: first(c).update(keypoints=[10**400, 2, 2]), "keypoints are not x, y, visibility"),
        (lambda c: first(c).update(image_id="x"), "image is not in the JSON"),
        (lambda c: first(c).update(image_id={"id": 7}), "image is not in the JSON"),
        (lambda c: first(c).update(category_id="10" * 400), "category is not in the JSON"),
    ],
)
def test_what_cannot_be_mended_is_dropped_and_ends_nothing(
    folder: Path, soil: Callable[[Content], Any], reason: str
) -> None:
    content = clean()
    soil(content)
    report, _ = build(folder, content)
    assert any(reason in told for told in report.rejected)
    assert report.kept["toothbrush"] == 1


@pytest.mark.parametrize("names", [None, 5, []])
def test_keypoints_that_no_category_names_are_left_out_of_sound_objects(folder: Path, names: Any) -> None:
    content = clean()
    for category in content["categories"]:
        category["keypoints"] = names
    first(content)["keypoints"] = [31, 12, 2]
    report, _ = build(folder, content)
    assert report.kept == build(folder, clean(), "clean.bank")[0].kept
    assert any("keypoints of a category that names none" in told for told in report.repaired)


def test_numbers_and_arrays_of_numpy_are_read_as_from_a_file(folder: Path) -> None:
    plain = clean()
    expected = build(folder, plain)[1]
    content: Any = copy.deepcopy(plain)
    for entry in (*content["images"], *content["annotations"], *content["categories"]):
        for name, value in entry.items():
            if isinstance(value, int) and not isinstance(value, bool):
                entry[name] = np.int64(value)
            elif name == "bbox":
                entry[name] = np.asarray(value, np.float64)
            elif name == "segmentation" and isinstance(value, list):
                entry[name] = [np.asarray(polygon, np.float64) for polygon in value]
            elif name == "segmentation":
                entry[name] = {"size": tuple(value["size"]), "counts": value["counts"]}
    content["annotations"] = tuple(content["annotations"])
    assert build(folder, content, "in_memory.bank")[1] == expected


@pytest.mark.parametrize("kind", [bool, np.uint8])
def test_bitmaps_in_memory_are_masks(folder: Path, kind: type) -> None:
    bitmap = np.zeros((80, 120), kind)
    bitmap[10:30, 30:70] = 255
    content, drawn = clean(), clean()
    first(content).update(segmentation=[[30, 10, 70, 10, 70, 30, 30, 30]], bbox=None)
    first(drawn).update(segmentation=bitmap, bbox=None)
    assert build(folder, content)[1] == build(folder, drawn, "drawn.bank")[1]


def test_several_rles_are_one_object(folder: Path) -> None:
    def rle(columns: slice) -> Content:
        mask = np.zeros((80, 120), np.uint8, order="F")
        mask[10:30, columns] = 1
        return {"size": [80, 120], "counts": coco_mask.encode(mask)["counts"].decode()}

    whole, parts = clean(), clean()
    first(whole).update(segmentation=rle(slice(30, 70)), bbox=[30, 10, 40, 20])
    first(parts).update(segmentation=[rle(slice(30, 50)), rle(slice(50, 70))], bbox=[30, 10, 40, 20])
    assert build(folder, whole)[1] == build(folder, parts, "parts.bank")[1]


@pytest.mark.parametrize("name", [None, ""])
def test_an_image_that_names_no_file_ends_nothing_where_a_list_is_given(folder: Path, name: str | None) -> None:
    content = clean()
    content["images"].append({"id": 77, "width": 9, "height": 9} | ({} if name is None else {"file_name": name}))
    content["annotations"].append({"id": 78, "image_id": 77, "category_id": 90, "segmentation": [[1, 1, 8, 1, 8, 8]]})
    report, _ = build(folder, content, image_list=[NAME])
    assert report.kept["car"] == 1


def test_names_that_are_no_text_can_be_told(folder: Path) -> None:
    content = clean()
    renamed("half \ud83d.png")(content)
    content["categories"][0]["keypoints"] = ["half \ud83d"]
    report, _ = build(folder, content)
    assert "half \\ud83d.png" in report.summary().encode().decode()


def test_lvis_names_its_images_by_addresses(folder: Path) -> None:
    content = clean()
    del content["images"][1]["file_name"]
    content["images"][1]["coco_url"] = f"http://images.cocodataset.org/train2017/{OTHER}"
    assert build(folder, content)[1] == build(folder, clean(), "clean.bank")[1]


def test_boxes_are_clipped_to_what_is_seen(folder: Path) -> None:
    content = clean()
    content["annotations"][1] = {"id": 2, "image_id": 9, "category_id": 90, "bbox": [100, 60, 20, 20]}
    within = build(folder, content, boxes="ellipse")
    content["annotations"][1]["bbox"] = [100, 60, "40", 35.5]
    beyond = build(folder, content, "beyond.bank", boxes="ellipse")
    assert beyond[1] == within[1]
    assert beyond[0].repaired == {"box reaches beyond its image and was clipped": 1, N_TEXT: 1}


@pytest.mark.parametrize("name", ["numbers", "ids of annotations", "sizes", "closed twice", "capitals"])
def test_the_preview_reads_what_banks_are_built_from(folder: Path, name: str) -> None:
    content = clean()
    content["categories"][0].pop("keypoints")
    samples = []
    for soil in (lambda _: None, DIRT[name][0]):
        soil(content)
        (folder / "own.json").write_text(json.dumps(content))
        samples.append(open_coco(folder / "own.json", folder / "images").read(0))
    assert samples[1].target.keys() == samples[0].target.keys() == {"boxes", "labels", "ids", "masks"}
    for key, values in samples[0].target.items():
        assert values.equal(samples[1].target[key])


coordinates = st.integers(0, 60).map(float) | st.integers(0, 240).map(lambda quarter: quarter / 4)
points = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8, unique=True)


@given(points, st.data())
def test_polygons_survive_any_writing_of_theirs(polygon: list[tuple[float, float]], data: st.DataObject) -> None:
    flat = [value for point in polygon for value in point]
    repeats = data.draw(st.lists(st.integers(1, 3), min_size=len(polygon), max_size=len(polygon)))
    dirty: Any = [point for point, times in zip(polygon, repeats, strict=True) for _ in range(times)]
    dirty += [polygon[0]] * data.draw(st.integers(0, 2))
    writing = data.draw(st.sampled_from([str, lambda value: f" {value}\t", float]))
    dirty = [[writing(value) for value in point] for point in dirty]
    if data.draw(st.booleans()):
        dirty = [value for point in dirty for value in point]
    dirty = [dirty] if data.draw(st.booleans()) else dirty
    if data.draw(st.booleans()):
        dirty = json.dumps(dirty)
    entry = {"segmentation": dirty}
    before = copy.deepcopy(entry)
    assert repair_annotation(entry, set())["segmentation"] == [flat]
    assert entry == before


names = st.text("aAäÄéß1._ /\\", min_size=1, max_size=8)


@given(st.sets(names), st.sets(names))
def test_no_file_is_taken_for_two_names(wanted: set[str], there: set[str]) -> None:
    fits = match_names(wanted, there)
    taken = [fit.name for fit in fits.values() if fit.name is not None]
    assert len(taken) == len(set(taken))
    assert not set(taken) & wanted
    assert set(taken) <= there
    assert not set(fits) & there


# --- the other formats ----------------------------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path: Path) -> PolicyContext:
    return make_context(tmp_path)


def fingerprint_of(report: BuildReport) -> str:
    with ForegroundBank.open(report.path) as bank:
        return bank.fingerprint


def test_labelme_written_as_text(scene: PolicyContext, tmp_path: Path) -> None:
    out = tmp_path / "clean.bank"
    expected = build_from_labelme(as_labelme(scene), out, images=scene.images, boxes="box")
    shapes = [
        shape | {"label": f" {shape['label']} ", "points": as_text(shape["points"])} for shape in labelme_shapes()
    ]
    report = build_from_labelme(as_labelme(scene, shapes), tmp_path / "out.bank", images=scene.images, boxes="box")
    assert fingerprint_of(report) == fingerprint_of(expected)
    assert (expected.repaired, report.repaired) == ({}, {N_TEXT: 2, "class name with space around it": 2})


def test_via_written_as_text(scene: PolicyContext, tmp_path: Path) -> None:
    expected = build_from_via(as_via(scene), scene.images, tmp_path / "clean.bank", boxes="box")
    regions = copy.deepcopy(via_regions())
    for region in regions:
        shape = region["shape_attributes"]
        shape.update({key: as_text(value) for key, value in shape.items() if key != "name"})
    report = build_from_via(as_via(scene, regions=regions), scene.images, tmp_path / "out.bank", boxes="box")
    assert fingerprint_of(report) == fingerprint_of(expected)
    assert (expected.repaired, report.repaired) == ({}, {N_TEXT: 2})


def test_voc_with_swapped_corners_and_names_of_other_machines(scene: PolicyContext, tmp_path: Path) -> None:
    expected = build_from_voc(as_voc(scene), tmp_path / "clean.bank")
    other = make_context(tmp_path / "other")
    dirt = {"<xmin>81<": "<xmin>110<", "<xmax>110<": "<xmax>81<", ">scene.png": ">C:/a.png", "<name>cat": "<name> cat"}
    report = build_from_voc(as_voc(other, **dirt), tmp_path / "out.bank")
    assert fingerprint_of(report) == fingerprint_of(expected)
    assert report.repaired == {
        "box with its corners swapped": 1,
        "class name with space around it": 1,
        "image has the name of its XML file and not that in it": 1,
    }


def test_yolo_labels_of_another_spelling(scene: PolicyContext, tmp_path: Path) -> None:
    as_yolo(scene)
    expected = build_from_yolo(scene.images, tmp_path / "clean.bank", boxes="box")
    (scene.root / "labels" / "scene.txt").rename(scene.root / "labels" / "SCENE.txt")
    report = build_from_yolo(scene.images, tmp_path / "out.bank", boxes="box", names=["cat ", "dog"])
    assert fingerprint_of(report) == fingerprint_of(expected)
    assert report.repaired == {"label file name in other capitals": 1, "class name with space around it": 1}


def test_panoptic_written_as_text(scene: PolicyContext, tmp_path: Path) -> None:
    annotations, masks = as_panoptic(scene)
    expected = build_from_panoptic(annotations, masks, scene.images, tmp_path / "clean.bank")
    content = json.loads(annotations.read_text())
    for segment in content["annotations"][0]["segments_info"]:
        segment.update(id=str(segment["id"]), category_id=str(segment["category_id"]))
    content["annotations"][0].update(image_id="3", file_name="SCENE.png")
    annotations.write_text(json.dumps(content))
    report = build_from_panoptic(annotations, masks, scene.images, tmp_path / "out.bank")
    assert fingerprint_of(report) == fingerprint_of(expected)
    assert report.rejected == expected.rejected
    # The ids of both things, then of the image of each.
    assert report.repaired == {N_TEXT: 2, N_ID: 4, "mask: file name in other capitals": 1}


def test_masks_of_another_spelling(folder: Path) -> None:
    masks = folder / "masks"
    masks.mkdir()
    images = folder / "images"
    (images / NAME).rename(images / "Käfer.png")
    for name in ("Käfer_mask.png", "b_mask.png"):
        Image.fromarray(np.pad(np.ones((20, 30), np.uint8), ((10, 50), (40, 50)))).save(masks / name)
    expected = build_from_masks(images, masks, folder / "clean.bank")
    (masks / "Käfer_mask.png").rename(masks / unicodedata.normalize("NFD", "Käfer_mask.png"))
    report = build_from_masks(images, masks, folder / "out.bank")
    assert fingerprint_of(report) == fingerprint_of(expected)
    assert report.rejected == {}
    assert report.repaired == {"mask: file name in another Unicode form": 1}


def listed_as(folder: Path, *names: str) -> BuildReport:
    """A data set of these images, with an object in each, and another image of a name of its own."""
    content = clean()
    content["images"] += [{"id": 20 + row, "file_name": name} for row, name in enumerate(names)]
    content["annotations"] = [
        {"id": row, "image_id": image["id"], "category_id": 90, "segmentation": runs(30)}
        for row, image in enumerate(content["images"])
    ]
    return build(folder, content, overwrite=True)[0]


def test_a_file_that_a_path_leads_to_is_no_other_names(folder: Path) -> None:
    taken = str(Path(NAME).with_name(Path(NAME).name.upper()))
    for path in (str(folder / "images" / NAME), f"../images/{NAME}", f"./züge/../{NAME}", NAME):
        content = clean()
        content["images"][0]["file_name"] = path
        content["images"].append({"id": 10, "file_name": taken})
        content["annotations"].append(first(content) | {"id": 5, "image_id": 10})
        report, _ = build(folder, content, overwrite=True)
        assert (report.kept["car"], report.repaired) == (1, {})
        assert report.rejected["image file is missing"] == 1


@pytest.mark.parametrize(
    ("mode", "file", "name", "others", "kept"),
    [
        ("P", "c/a.png", "c/a.jpg", (), False),  # masks
        ("1", "c/a.png", "c/a.jpg", (), False),
        ("L", "c/a.png", "c/a.jpg", (), False),
        ("L", "c/a.png", "c/a", (), False),
        ("RGB", "c/a.png", "c/a.jpg", (), True),
        ("RGB", "c/a.png", "c/a", (), True),
        ("RGB", "c/a.png", "c/a.jpg", ("c/b.PNG",), False),  # PNG files are named as such
        ("RGB", "c/a.png", "c/a.jpg", ("d/b.png",), True),
        ("L", "c/a.jpg", "c/a.JPEG", ("c/b.jpg",), True),  # one format
        ("L", "c/a.tif", "c/a.tiff", ("c/b.tif",), True),
    ],
)
def test_another_format_is_trusted_of_photographs_only(
    folder: Path, mode: str, file: str, name: str, others: tuple[str, ...], kept: bool
) -> None:
    (folder / "images" / "c").mkdir()
    Image.fromarray(gradient(80, 120)).convert(mode).save(folder / "images" / file)
    report = listed_as(folder, name, *others)
    assert report.kept["toothbrush"] == 2 + kept
    assert report.repaired == ({"file name with another extension or none": 1} if kept else {})
    unclear = [count for reason, count in report.rejected.items() if "several may be meant" in reason]
    assert unclear == ([] if kept else [1])

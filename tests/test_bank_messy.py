"""Messy data sets: oddities that can mean one thing only are repaired and counted, and give the bank of clean data."""

from __future__ import annotations

import copy
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bank_samples import gradient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from terse_aug.bank import BuildReport, ForegroundBank, build_from_coco
from terse_aug.bank.inputs.repair import repair_annotation
from terse_aug.preview import open_coco

NAME = "züge/Käfer Ä.png"
OTHER = "b.png"
Content = dict[str, Any]


def write_images(root: Path) -> Path:
    """Two images; the name of one contains everything that is damaged in names."""
    for seed, name in enumerate((NAME, OTHER)):
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(gradient(80, 120), 10 * seed, 0)).save(path)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path)


def runs(left: int) -> Content:
    """RLE of 20 columns of an image of 80x120."""
    return {"size": [80, 120], "counts": [80 * left, 1600, 80 * (100 - left)]}


def clean() -> Content:
    """Category ids with holes; polygons in two parts, an RLE and a crowd."""
    car = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [30, 10, 40.5, 20], "keypoints": [31, 12, 2], "iscrowd": 0}
    car["segmentation"] = [[30, 10, 70.5, 10, 70.5, 30, 30, 30], [30, 12, 40, 12, 40, 20]]
    brush = {"image_id": 9, "category_id": 90}
    return {
        "images": [{"id": key, "file_name": name, "height": 80, "width": 120} for key, name in ((7, NAME), (9, OTHER))],
        "categories": [{"id": 3, "name": "car", "keypoints": ["a"]}, {"id": 90, "name": "toothbrush"}],
        "annotations": [
            car,
            brush | {"id": 2, "segmentation": runs(30), "bbox": [30, 0, 20, 80], "iscrowd": 0},
            brush | {"id": 3, "segmentation": runs(50), "iscrowd": 1},
        ],
    }


def build(folder: Path, content: Content, name: str = "out.bank", **more: Any) -> tuple[BuildReport, str]:
    report = build_from_coco(content, folder / "images", folder / name, **more)
    return report, fingerprint(report)


def fingerprint(report: BuildReport) -> str:
    with ForegroundBank.open(report.path) as bank:
        return bank.fingerprint


def as_text(value: Any) -> Any:
    return [as_text(part) for part in value] if isinstance(value, list) else f" {value} "


def texts(*places: tuple[str, str]) -> Callable[[Content], None]:
    def write(content: Content) -> None:
        for kind, key in places:
            for entry in content[kind]:
                if key in entry and not isinstance(entry[key], dict):
                    entry[key] = as_text(entry[key])

    return write


def first(content: Content) -> Content:
    entry: Content = content["annotations"][0]
    return entry


def polygons(change: Callable[[list[float]], Any]) -> Callable[[Content], None]:
    return lambda content: first(content).update(segmentation=list(map(change, first(content)["segmentation"])))


def renamed(name: str) -> Callable[[Content], None]:
    return lambda content: content["images"][0].update(file_name=name)


def damaged(codec: str) -> str:
    return NAME.encode().decode(codec)


def runs_as_text(content: Content) -> None:
    for entry in content["annotations"][1:]:
        counts = [str(run) for run in entry["segmentation"]["counts"]]
        entry["segmentation"] = {"size": ["80", "120.0"], "counts": counts}


text_ids = texts(("annotations", "image_id"), ("annotations", "category_id"))
N_TEXT, N_ID = "number written as text", "id written as text"
REPEATED = "polygon with repeated points, such as its first at its end"
SLASHES, CODEC = "file name with other slashes or space around it", "file name in another encoding"
SUFFIX, FOLDER = "file name with another extension or none", "file lies in another folder than in its name"

DIRT: dict[str, tuple[Callable[[Content], Any], dict[str, int]]] = {
    "numbers": (texts(("annotations", "bbox"), ("annotations", "segmentation")), {N_TEXT: 2}),
    "keypoints": (texts(("annotations", "keypoints")), {N_TEXT: 1}),
    "crowds": (texts(("annotations", "iscrowd")), {N_TEXT: 3}),
    "sizes": (texts(("images", "height"), ("images", "width")), {N_TEXT: 2}),
    "runs": (runs_as_text, {N_TEXT: 1}),
    "ids of annotations": (text_ids, {N_ID: 3}),
    "ids of images": (lambda c: [image.update(id=str(image["id"])) for image in c["images"]], {N_ID: 3}),
    "ids of categories": (texts(("categories", "id")), {N_TEXT: 2}),
    "categories by name": (lambda c: first(c).update(category_id="car "), {"category given by its name": 1}),
    "spaces": (lambda c: c["categories"][0].update(name=" car\n"), {"class name with space around it": 1}),
    "whole lists": (
        lambda c: first(c).update({key: json.dumps(first(c)[key]) for key in ("bbox", "segmentation")}),
        {"list written as text": 1},
    ),
    "pairs": (
        polygons(lambda polygon: [polygon[at : at + 2] for at in range(0, len(polygon), 2)]),
        {"polygon written as pairs of coordinates": 1},
    ),
    "closed twice": (polygons(lambda polygon: polygon + 2 * polygon[:2]), {REPEATED: 1}),
    "doubled points": (polygons(lambda polygon: [*polygon[:4], *polygon[2:4], *polygon[4:]]), {REPEATED: 1}),
    "a line": (
        lambda c: first(c)["segmentation"].insert(0, [1, 2, 30, 4, 1, 2]),
        {REPEATED: 1, "degenerate part of a polygon left out beside valid ones": 1},
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
    "backslashes": (renamed(".\\" + NAME.replace("/", "\\")), {SLASHES: 1}),
    "capitals": (renamed(NAME.upper()), {"file name in other capitals": 1}),
    "as cp1252": (renamed(damaged("cp1252").replace("/", "\\")), {CODEC: 1}),
    "as latin-1": (renamed(damaged("latin-1")), {CODEC: 1}),
    "as cp437": (renamed(damaged("cp437")), {CODEC: 1}),
    "percent": (renamed("z%C3%BCge/K%C3%A4fer%20%C3%84.png"), {"file name in percent codes": 1}),
    "extension": (renamed("züge/Käfer Ä.JPEG"), {SUFFIX: 1}),
    "no extension": (renamed("züge/Käfer Ä"), {SUFFIX: 1}),
    "no folder": (renamed("Käfer Ä.png"), {FOLDER: 1}),
    "other machine": (renamed("C:\\data\\" + NAME), {FOLDER: 1}),
}


@pytest.fixture(scope="module")
def clean_fingerprint(tmp_path_factory: pytest.TempPathFactory) -> str:
    report, expected = build(write_images(tmp_path_factory.mktemp("clean")), clean())
    assert (report.repaired, report.rejected) == ({}, {"crowd region, not one object (iscrowd)": 1})
    assert report.kept == {"car": 1, "toothbrush": 1}
    return expected


@pytest.mark.parametrize("name", list(DIRT))
def test_dirt_is_repaired_to_the_bank_of_clean_data_and_counted(
    folder: Path, name: str, clean_fingerprint: str
) -> None:
    soil, repaired = DIRT[name]
    content = clean()
    soil(content)
    assert content != clean()
    report, own = build(folder, content)
    assert report.repaired == repaired
    assert report.rejected == {"crowd region, not one object (iscrowd)": 1}
    assert own == clean_fingerprint
    with ForegroundBank.open(report.path) as bank:
        assert bank.info()["built"]["repaired"] == repaired
    summary = report.summary()
    assert all(reason in summary and report.examples[reason] for reason in repaired)


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
def test_what_cannot_be_repaired_is_rejected_and_ends_nothing(
    folder: Path, soil: Callable[[Content], Any], reason: str
) -> None:
    content = clean()
    soil(content)
    report, _ = build(folder, content)
    assert any(reason in given for given in report.rejected)
    assert report.kept["toothbrush"] == 1


@pytest.mark.parametrize("names", [None, 5, []])
def test_keypoints_that_no_category_names_are_left_out(folder: Path, names: Any) -> None:
    content = clean()
    for category in content["categories"]:
        category["keypoints"] = names
    report, _ = build(folder, content)
    assert report.kept == {"car": 1, "toothbrush": 1}
    assert any("keypoints of a category that names none" in given for given in report.repaired)


def test_content_in_memory_gives_the_bank_of_a_file(folder: Path, clean_fingerprint: str) -> None:
    content: Any = clean()
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
    del content["images"][1]["file_name"]  # as in LVIS
    content["images"][1]["coco_url"] = f"http://images.cocodataset.org/train2017/{OTHER}"
    assert build(folder, content)[1] == clean_fingerprint


def rle(columns: slice) -> Content:
    mask = np.zeros((80, 120), np.uint8, order="F")
    mask[10:30, columns] = 1
    return {"size": [80, 120], "counts": coco_mask.encode(mask)["counts"].decode()}


def test_bitmaps_and_several_rles_are_masks(folder: Path) -> None:
    bitmap = np.zeros((80, 120), bool)
    bitmap[10:30, 30:70] = True
    masks = [rle(slice(30, 70)), [rle(slice(30, 50)), rle(slice(50, 70))], bitmap, 255 * bitmap.astype(np.uint8)]
    fingerprints = set()
    for mask in masks:
        content = clean()
        first(content).update(segmentation=mask, bbox=[30, 10, 40, 20])
        fingerprints.add(build(folder, content, overwrite=True)[1])
    assert len(fingerprints) == 1


def test_names_that_are_missing_or_no_text_end_nothing(folder: Path) -> None:
    for name in ({}, {"file_name": ""}):
        content = clean()
        content["images"].append({"id": 77, "width": 9, "height": 9} | name)
        content["annotations"].append(first(content) | {"id": 78, "image_id": 77})
        assert build(folder, content, image_list=[NAME], overwrite=True)[0].kept["car"] == 1
    content = clean()
    renamed("half \ud83d.png")(content)
    content["categories"][0]["keypoints"] = ["half \ud83d"]
    report, _ = build(folder, content, overwrite=True)
    assert "half \\ud83d.png" in report.summary().encode().decode()


def test_boxes_are_clipped_to_the_image(folder: Path) -> None:
    content = clean()
    content["annotations"][1] = {"id": 2, "image_id": 9, "category_id": 90, "bbox": [100, 60, 20, 20]}
    _, within = build(folder, content, boxes="ellipse")
    content["annotations"][1]["bbox"] = [100, 60, "40", 35.5]
    report, beyond = build(folder, content, "beyond.bank", boxes="ellipse")
    assert beyond == within
    assert report.repaired == {"box reaches beyond its image and was clipped": 1, N_TEXT: 1}


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
def test_polygons_survive_any_notation(polygon: list[tuple[float, float]], data: st.DataObject) -> None:
    flat = [value for point in polygon for value in point]
    repeats = data.draw(st.lists(st.integers(1, 3), min_size=len(polygon), max_size=len(polygon)))
    dirty: Any = [point for point, times in zip(polygon, repeats, strict=True) for _ in range(times)]
    dirty += [polygon[0]] * data.draw(st.integers(0, 2))
    notation = data.draw(st.sampled_from([str, lambda value: f" {value}\t", float]))
    dirty = [[notation(value) for value in point] for point in dirty]
    if data.draw(st.booleans()):
        dirty = [value for point in dirty for value in point]
    dirty = [dirty] if data.draw(st.booleans()) else dirty
    if data.draw(st.booleans()):
        dirty = json.dumps(dirty)
    entry = {"segmentation": dirty}
    before = copy.deepcopy(entry)
    assert repair_annotation(entry, set())["segmentation"] == [flat]
    assert entry == before

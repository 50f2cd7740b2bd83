"""``terse-aug compose``: what is written is what training is given, in every format."""

from __future__ import annotations

import contextlib
import io
import json
import os
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from export_samples import CLASSES, NAMES, SIZES, Data, coco_of
from factories import every_image
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch.utils.data import SequentialSampler

from terse_aug import ForegroundBank, NumberedSampler, Terse
from terse_aug.bank import ExtractionRules, build_from_yolo
from terse_aug.bank.inputs.images import image_size, read_image
from terse_aug.cli import main
from terse_aug.export.polygons import mask_to_polygon
from terse_aug.preview import open_coco

# Of pycocotools' decoder with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

COPIES = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def coco(data: Data) -> Path:
    return data.compose("coco", "--copies", str(COPIES), "--image-format", "png", "--decoys", "0", "0")


@pytest.fixture(scope="module")
def trained(data: Data) -> dict[tuple[int, int], Any]:
    """What two epochs of a training are given, by (image, epoch): composite, target, and record."""
    paste = every_image(objects=(2, 4))
    samples = open_coco(data.json, data.images)
    labels = {name: label for label, name in CLASSES.items()}
    terse = Terse(ForegroundBank.open(data.bank).select(categories=[1, 2]), seed=3, classes=labels, paste=paste)
    composer, sampler = terse.composer(), NumberedSampler(SequentialSampler(NAMES))
    found = {}
    for epoch in range(COPIES):
        for index in sampler:
            sample = samples.read(index)
            image = (sample.image * 255).round().byte()
            found[int(index), epoch] = composer(image, sample.target, index.number)
    return found


def masks_of(entries: list[dict[str, Any]]) -> list[NDArray[np.uint8]]:
    return [coco_mask.decode(entry["segmentation"]) for entry in entries]


def test_composites_and_labels_are_those_of_training(coco: Path, trained: dict[tuple[int, int], Any]) -> None:
    written = coco_of(coco)
    keys = [(index, epoch) for index in range(len(NAMES)) for epoch in range(COPIES)]
    assert [image["composed_from"] for image in written["images"]] == [NAMES[index] for index, _ in keys]
    pasted = 0
    for key, image in zip(keys, written["images"], strict=True):
        composite, target, record = trained[key]
        pixels = read_image(coco / "images" / image["file_name"])
        np.testing.assert_array_equal(pixels, composite.permute(1, 2, 0).numpy())
        entries = written["by_image"][image["id"]]
        boxes = [[x, y, x + width, y + height] for x, y, width, height in (entry["bbox"] for entry in entries)]
        assert torch.tensor(boxes).tolist() == target["boxes"].tolist()
        assert [entry["category_id"] for entry in entries] == target["labels"].tolist()
        if "masks" in target and len(target["masks"]):
            np.testing.assert_array_equal(np.stack(masks_of(entries)), target["masks"].numpy())
        sources = {row: source for _, source, _, _, row, _ in record.pastes if row is not None}
        assert {row: own["pasted_from"] for row, own in enumerate(entries) if "pasted_from" in own} == sources
        pasted += len(sources)
    assert pasted > 15


def test_the_coco_json_is_consistent_by_pycocotools(coco: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        read = COCO(str(coco / "annotations.json"))
    assert {category["id"]: category["name"] for category in read.loadCats(read.getCatIds())} == CLASSES
    cut = 0
    for image in read.loadImgs(read.getImgIds()):
        covered = np.zeros((image["height"], image["width"]), int)
        assert image_size(coco / "images" / image["file_name"]) == covered.shape
        for entry in read.loadAnns(read.getAnnIds(image["id"])):
            mask = read.annToMask(entry)
            rows, columns = np.nonzero(mask)
            left, top = columns.min(), rows.min()
            assert entry["bbox"] == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
            assert entry["area"] == mask.sum() > 0
            cut += "pasted_from" not in entry and cv2.connectedComponents(mask)[0] > 2
            covered += mask
        assert covered.max() <= 1
    assert cut > 0, "no object in several parts"
    assert len(read.getImgIds()) == COPIES * len(NAMES)


@pytest.mark.parametrize("kind", ["yolo", "yolo-seg"])
def test_yolo_is_read_back_by_the_projects_own_reader(data: Data, coco: Path, kind: str) -> None:
    out = data.compose(kind, "--format", kind, "--copies", str(COPIES), "--decoys", "0", "0")
    names = yaml.safe_load((out / "data.yaml").read_text())["names"]
    assert names == {0: "dog", 1: "cat"}
    boxes: list[Any] = []

    def own_mask(image: Any, box: Any) -> Any:
        boxes.append(box)
        mask = np.zeros(image.shape[:2], np.uint8)
        left, top, right, bottom = (round(value) for value in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
        mask[top:bottom, left:right] = 1
        return mask

    rules = ExtractionRules(min_area=1, min_side=1, min_box_agreement=0)
    report = build_from_yolo(out / "images", data.folder / f"{kind}.bank", boxes=own_mask, rules=rules, jobs=1)
    assert not report.rejected
    assert not report.repaired
    bank = {own.source: own for own in ForegroundBank.open(report.path)}
    written = coco_of(coco)
    stems = {image["file_name"].removesuffix(".png"): image for image in written["images"]}
    expected = {
        f"{stem}.jpg#{row}": (entry, image)
        for stem, image in stems.items()
        for row, entry in enumerate(written["by_image"][image["id"]], 1)
    }
    assert bank.keys() == expected.keys()
    for name, (entry, image) in expected.items():
        own, (height, width) = bank[name], (image["height"], image["width"])
        assert names[own.label] == CLASSES[entry["category_id"]]
        assert own.center is not None
        left, top = own.center[0] * width - own.size[0] / 2, own.center[1] * height - own.size[1] / 2
        np.testing.assert_allclose([left, top, *own.size], entry["bbox"], atol=1.01)
        if kind == "yolo-seg":
            found = np.zeros((height, width), np.uint8)
            found[round(top) : round(top) + own.size[1], round(left) : round(left) + own.size[0]] = own.rgba[..., 3] > 0
            assert_within_a_pixel(found, coco_mask.decode(entry["segmentation"]))
    if kind == "yolo":
        ordered = [expected[name][0]["bbox"] for name in sorted(expected, key=by_file_and_row)]
        np.testing.assert_allclose(boxes, ordered, atol=1e-3)


def by_file_and_row(name: str) -> tuple[Path, int]:
    file, _, row = name.rpartition("#")
    return Path(file), int(row)


def assert_within_a_pixel(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
    around = np.ones((3, 3), np.uint8)
    assert not (found & ~cv2.dilate(expected, around) & 1).any()
    assert not (cv2.erode(expected, around) & ~found & 1).any()


def test_polygons_of_any_mask(data: Data) -> None:
    generator = np.random.default_rng(0)
    for number in range(150):
        mask = (generator.random((13, 11)) < (0.1, 0.5, 0.9)[number % 3]).astype(np.uint8)
        polygon = mask_to_polygon(mask)
        assert polygon is not None
        rle = coco_mask.merge(coco_mask.frPyObjects([polygon.flatten().tolist()], *mask.shape))
        assert_within_a_pixel(coco_mask.decode(rle), mask)
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose([*polygon.min(0), *polygon.max(0)], box, atol=1)
    assert mask_to_polygon(np.zeros((3, 3), bool)) is None
    line = np.zeros((9, 9), bool)
    line[4, 2:8] = True
    rle = coco_mask.merge(coco_mask.frPyObjects([mask_to_polygon(line).flatten().tolist()], 9, 9))
    np.testing.assert_array_equal(coco_mask.decode(rle), line)


@pytest.mark.parametrize("how", ["copy", "link"])
def test_originals_have_their_own_pixels_and_labels(data: Data, how: str) -> None:
    more = ["--format", "yolo", "--copies", "0", "--originals", how, "--val", str(data.images)]
    out = data.compose(f"originals-{how}", *more)
    assert yaml.safe_load((out / "data.yaml").read_text())["val"] == str(data.images)
    written = sorted(path.relative_to(out / "images").as_posix() for path in (out / "images").rglob("*.*"))
    assert written == ["A-2.jpg", "a.png", "c.png", "sub/a.png", "sub/b.png"]
    for name, source in zip(written, ("A.jpg", "a.png", "c.png", "sub/a.png", "sub/images/b.png"), strict=True):
        path = out / "images" / name
        assert path.is_symlink() == (how == "link")
        assert path.read_bytes() == (data.images / source).read_bytes()
        if how == "link":
            assert os.path.samefile(path, data.images / source)
        lines = (out / "labels" / name).with_suffix(".txt").read_text().splitlines()
        expected = [entry for entry in data.content["annotations"] if NAMES[entry["image_id"]] == source]
        height, width = SIZES[NAMES.index(source)]
        for line, entry in zip(lines, expected, strict=True):
            number, x, y, w, h = map(float, line.split())
            assert ("dog", "cat")[int(number)] == CLASSES[entry["category_id"]]
            found = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            np.testing.assert_allclose(found, entry["bbox"], atol=1e-3)


def test_an_original_that_viewers_turn_is_written_as_its_labels_see_it(tmp_path: Path) -> None:
    data = Data(tmp_path / "own")
    path = data.images / "A.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(read_image(path)[:, :60]).save(path, exif=exif)
    data.content["images"][4] |= {"height": 88, "width": 60}
    data.json.write_text(json.dumps(data.content))
    out = data.compose("turned", "--originals", "copy", "--image-format", "png")
    image = next(own for own in coco_of(out)["images"] if own["composed_from"] == "A.jpg")
    assert image["file_name"].endswith(".png")
    assert image_size(out / "images" / image["file_name"]) == (88, 60)


def test_boxes_only_have_areas_and_no_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Data(tmp_path / "own", masks=False)
    written = coco_of(data.compose("boxes", "--image-size", "50"))
    entries = list(chain.from_iterable(own for own in written["by_image"].values()))
    assert all(min(image["height"], image["width"]) == 50 for image in written["images"])
    assert all(0 < own["area"] <= own["bbox"][2] * own["bbox"][3] * 1.0001 for own in entries)
    has_masks = ["segmentation" in own for own in entries]
    assert not any(has_masks[: -len(written["by_image"][5])])
    assert all(has_masks[-len(written["by_image"][5]) :]), "the masks of pastes are known where there is nothing else"
    assert main_refuses(data, capsys, "seg", "--format", "yolo-seg").startswith("error: format yolo-seg: expected")
    assert not (data.folder / "seg").exists()


def main_refuses(data: Data, capsys: pytest.CaptureFixture[str], name: str, *more: str) -> str:
    capsys.readouterr()
    assert main(data.arguments(data.folder / name, *more)) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    return printed

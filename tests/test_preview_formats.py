"""``terse-aug preview`` of every annotation format, and what it shows of composites."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from annotated_samples import (
    BOX,
    HEIGHT,
    WIDTH,
    AnnotatedImage,
    as_labelme,
    as_panoptic,
    as_via,
    as_voc,
    as_yolo,
    make_sample,
)
from PIL import Image

from terse_aug import ForegroundBank, PasteConfig, Terse
from terse_aug.bank import BankWriter, Foreground, build_from_labelme, build_from_rgba
from terse_aug.bank.readers.annotated_images import read_annotations
from terse_aug.cli import main
from terse_aug.preview import open_annotations, open_coco, preview_samples
from terse_aug.utils.random import derived_seed
from terse_aug.viz.images import resize_within

Flags = Callable[[AnnotatedImage], list[object]]


def yolo(sample: AnnotatedImage) -> list[object]:
    as_yolo(sample)
    (sample.root / "names.txt").write_text("cat\ndog\n")
    return ["yolo", "--images", sample.images, "--names", sample.root / "names.txt"]


def panoptic(sample: AnnotatedImage) -> list[object]:
    annotations, masks = as_panoptic(sample)
    return ["panoptic", "--annotations", annotations, "--masks", masks, "--images", sample.images]


FORMATS: dict[str, Flags] = {
    "voc": lambda sample: ["voc", "--root", as_voc(sample)],
    "voc, names": lambda sample: ["voc", "--root", as_voc(sample, masks=False), "--names", "dog", "cat"],
    "yolo": yolo,
    "labelme": lambda sample: ["labelme", "--folder", as_labelme(sample), "--images", sample.images],
    "via": lambda sample: ["via", "--file", as_via(sample), "--images", sample.images, "--attribute", "kind"],
    "panoptic": panoptic,
}


def bank_of_squares(path: Path, size: float = 0.2) -> Path:
    with BankWriter(path, {1: "cat", 2: "dog"}) as writer:
        for label in (1, 2):
            writer.add(Foreground(np.full((20, 20, 4), 255, np.uint8), label, f"{label}.png", size))
    return path


def preview(folder: Path, *flags: object) -> int:
    bank = bank_of_squares(folder / "x.bank")
    return main(["preview", str(bank), "--out", str(folder / "sheet.html"), "--count", "1", *map(str, flags)])


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_can_be_previewed(name: str, tmp_path: Path) -> None:
    """By the flags that its source has in ``bank build``."""
    flags = FORMATS[name](make_sample(tmp_path))
    assert preview(tmp_path, "--source", *flags, "--paste-probability", "0", "--decoys", "0", "0") == 0
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert "with its labels: 1 cat, 1 dog" in page or "with its labels: 1 dog, 1 cat" in page


def test_boxes_of_objects_with_masks_only_are_those_of_the_masks(tmp_path: Path) -> None:
    sample = make_sample(tmp_path)
    data = open_annotations(build_from_labelme, folder=as_labelme(sample), images=sample.images)
    (read,) = data.choose(1, 0)
    x, y, width, height = BOX
    assert read.image.shape == (3, HEIGHT, WIDTH)
    boxes = dict(
        zip([data.classes[label] for label in read.target["labels"].tolist()], read.target["boxes"], strict=True)
    )
    assert (boxes["cat"] - torch.tensor([20.0, 10, 70, 60])).abs().max() <= 1
    assert boxes["dog"].tolist() == [x, y, x + width, y + height]
    assert data.dropped.counts == {"mask, because other objects of the data set have none": 1}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "."], "expected --annotations for --source coco"),
        (["--images", ".", "--annotations", "a.json", "--root", "."], "--root: not allowed with --source coco"),
        (["--source", "voc"], "expected --root for --source voc"),
        (["--source", "voc", "--root", ".", "--masks", "."], "--masks: not allowed with --source voc"),
        (["--source", "rgba"], "invalid choice: 'rgba'"),
        (["--images", ".", "--annotations", "labelme/scene.json"], "use source labelme"),
    ],
)
def test_wrong_flags_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    as_labelme(make_sample(tmp_path))
    assert preview(tmp_path, *flags) == 2
    assert message in capsys.readouterr().err


def test_sources_without_annotations_have_none_to_read(tmp_path: Path) -> None:
    Image.fromarray(np.full((30, 30, 4), 255, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(TypeError):
        read_annotations(build_from_rgba, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def coco(folder: Path) -> tuple[Path, Path]:
    """A JSON with one cat, and the folder of its image."""
    sample = make_sample(folder)
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": list(BOX)}
    images = [{"id": 1, "file_name": "scene.png"}]
    content = {"images": images, "annotations": [entry], "categories": [{"id": 1, "name": "cat"}]}
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json", sample.images


def test_a_composite_is_shown_without_anything_drawn_on_it(tmp_path: Path) -> None:
    data = open_coco(*coco(tmp_path))
    bank = ForegroundBank.open(bank_of_squares(tmp_path / "x.bank")).select(categories=[1])
    terse = Terse(bank, "random", classes={"cat": 1}, paste=PasteConfig(paste_probability=1))
    (pair,) = preview_samples(terse, data.choose(1, 0), data.classes).pairs
    (sample,) = data.choose(1, 0)
    composites = terse.compose([sample.image], [sample.target], seed=derived_seed(0, "preview", 0))
    pixels = composites.images[0].mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    assert (pair.plain == resize_within(pixels, 640, 1024)).all()
    assert pair.composite.shape == pair.plain.shape
    assert (pair.composite != pair.plain).any()


@pytest.mark.parametrize(("size", "hint"), [(1.6, True), (0.4, False)])
def test_close_ups_get_a_hint_to_the_scale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: float, hint: bool
) -> None:
    """The cat of the image has a size of 0.36."""
    annotations, images = coco(tmp_path)
    bank = bank_of_squares(tmp_path / "x.bank", size)
    arguments = ["preview", bank, "--images", images, "--annotations", annotations, "--classes", "cat"]
    arguments += ["--paste-probability", 1, "--out", tmp_path / "sheet.html", "--png", tmp_path / "sheet.png"]
    assert main([str(argument) for argument in arguments]) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "sheet.html").read_text(encoding="utf-8")
    for text in (printed, page):
        assert bool(re.search(r"times as large as objects of the images .*--scale 0\.\d+ 0\.\d+", text)) is hint

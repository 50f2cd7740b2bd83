"""``terse-aug compose`` of every annotation format, and what its identity depends on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from annotated_samples import AnnotatedImage, as_labelme, as_panoptic, as_via, as_voc, as_yolo, make_sample
from export_samples import coco_of
from factories import make_bank, make_foreground
from PIL import Image

from terse_aug.cli import main

Arguments = list[object]


@pytest.fixture
def sample(tmp_path: Path) -> AnnotatedImage:
    return make_sample(tmp_path / "data")


@pytest.fixture
def compose(tmp_path: Path) -> Callable[..., int]:
    """Run the command with pastes of a dog into ``tmp_path / "out"``; returns its exit code."""
    make_bank(tmp_path, [make_foreground(0, label=2, side=30)]).close()
    (bank,) = tmp_path.glob("*.bank")

    def run(*flags: object, out: Path = tmp_path / "out") -> int:
        given = ["compose", bank, "--source", *flags, "--out", out, "--jobs", 1, "--paste-probability", 1]
        return main([*map(str, given), "--classes", "dog"])

    return run


def voc(sample: AnnotatedImage) -> tuple[Arguments, Path]:
    root = as_voc(sample)
    return ["voc", "--root", root], root / "SegmentationObject" / "scene.png"


def yolo(sample: AnnotatedImage) -> tuple[Arguments, Path]:
    as_yolo(sample)
    return ["yolo", "--images", sample.images], sample.root / "labels" / "scene.txt"


def labelme(sample: AnnotatedImage) -> tuple[Arguments, Path]:
    folder = as_labelme(sample)
    return ["labelme", "--folder", folder, "--images", sample.images], folder / "scene.json"


def via(sample: AnnotatedImage) -> tuple[Arguments, Path]:
    file = as_via(sample)
    return ["via", "--file", file, "--images", sample.images, "--attribute", "kind"], file


def panoptic(sample: AnnotatedImage) -> tuple[Arguments, Path]:
    annotations, masks = as_panoptic(sample)
    (mask,) = masks.glob("*.png")
    return ["panoptic", "--annotations", annotations, "--masks", masks, "--images", sample.images], mask


def changed(file: Path) -> None:
    """Change an annotation file: the first object is elsewhere, or is not there."""
    if file.suffix == ".png":
        with Image.open(file) as image:
            pixels, palette = np.array(image), image.getpalette()
        pixels[:40] = 0
        mask = Image.fromarray(pixels)
        if palette is not None:
            mask.putpalette(palette)
        mask.save(file)
    elif file.suffix == ".txt":
        file.write_text(file.read_text().replace("0 0.1", "0 0.2"))
    else:
        file.write_text(file.read_text().replace("20", "25"))


@pytest.mark.parametrize("source", [voc, yolo, labelme, via, panoptic])
def test_every_format_is_composed_and_notices_changed_labels(
    sample: AnnotatedImage,
    compose: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    source: Callable[[AnnotatedImage], tuple[Arguments, Path]],
) -> None:
    flags, file = source(sample)
    assert compose(*flags) == 0
    written = coco_of(tmp_path / "out")
    names = {own["id"]: own["name"] for own in written["categories"]}
    (entries,) = written["by_image"].values()
    own = [names[entry["category_id"]] for entry in entries if "pasted_from" not in entry]
    assert set(own) <= {"cat", "dog"}
    assert own
    assert len(entries) > len(own)
    assert compose(*flags) == 0
    assert "finished before" in capsys.readouterr().out
    changed(file)
    assert compose(*flags) == 2
    assert "images and labels (there" in capsys.readouterr().err

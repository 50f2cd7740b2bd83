"""``terse-aug compose`` of every annotation format, and what its identity depends on."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from annotated_samples import (
    HEIGHT,
    POLYGON,
    WIDTH,
    AnnotatedImage,
    as_labelme,
    as_panoptic,
    as_via,
    as_voc,
    as_yolo,
    make_sample,
    true_masks,
    via_regions,
)
from export_samples import coco_of
from factories import make_bank, make_foreground
from PIL import Image

from terse_aug.bank.inputs.images import read_image
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


def masks(sample: AnnotatedImage) -> tuple[Arguments, Path]:
    first, second = true_masks()
    file = sample.root / "masks" / "scene.png"
    file.parent.mkdir()
    Image.fromarray(first + 2 * second).save(file)
    return ["masks", "--images", sample.images, "--masks", file.parent, "--category", "dog"], file


def cvat(sample: AnnotatedImage) -> tuple[Arguments, Path]:
    points = ";".join(f"{x},{y}" for x, y in POLYGON)
    text = f'<image id="0" name="scene.png" width="{WIDTH}" height="{HEIGHT}">'
    text += f'<polygon label="cat" points="{points}" /><polygon label="dog" points="80,30;110,30;110,70" /></image>'
    file = sample.root / "cvat.xml"
    file.write_text(f"<annotations><version>1.1</version>{text}</annotations>")
    return ["cvat", "--file", file, "--images", sample.images], file


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


@pytest.mark.parametrize("source", [voc, yolo, labelme, via, cvat, panoptic, masks])
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


def test_regions_of_via_without_a_class_are_of_the_category(
    sample: AnnotatedImage, compose: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    regions = [own | {"region_attributes": {}} for own in via_regions()]
    flags: Arguments = ["via", "--file", as_via(sample, regions=regions), "--images", sample.images]
    assert compose(*flags, "--category", "dog") == 0
    assert [own["name"] for own in coco_of(tmp_path / "out")["categories"]] == ["dog"]
    assert compose(*flags, "--category", "dog", "--names", "cat", "dog", out=tmp_path / "named") == 0
    (sample.root / "classes").mkdir()
    flags[2] = as_via(AnnotatedImage(sample.root / "classes", sample.pixels))
    assert compose(*flags, "--category", "dog", out=tmp_path / "other") == 2
    assert "--category" in capsys.readouterr().err


@pytest.mark.parametrize("originals", ["link", "copy"])
def test_images_in_the_files_of_labelme(
    sample: AnnotatedImage, compose: Callable[..., int], tmp_path: Path, originals: str
) -> None:
    folder = as_labelme(sample)
    file, image = folder / "scene.json", sample.images / "scene.png"
    content = json.loads(file.read_bytes())
    file.write_text(json.dumps(content | {"imageData": base64.b64encode(image.read_bytes()).decode()}))
    image.unlink()
    flags = ["--originals", originals, "--copies", 0, "--image-format", "png"]
    assert compose("labelme", "--folder", folder, *flags) == 0
    (written,) = coco_of(tmp_path / "out")["images"]
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "images" / written["file_name"]), sample.pixels)


@pytest.mark.parametrize("content", ["no image", 5])
def test_damaged_images_in_the_files_of_labelme_are_counted(
    sample: AnnotatedImage, compose: Callable[..., int], capsys: pytest.CaptureFixture[str], content: object
) -> None:
    folder = as_labelme(sample)
    file = folder / "scene.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"imageData": content}))
    (sample.images / "scene.png").unlink()
    assert compose("labelme", "--folder", folder) == 2
    assert "1 image file cannot be read" in capsys.readouterr().err


def test_images_of_yolo_without_a_label_file_have_no_objects(
    sample: AnnotatedImage, compose: Callable[..., int], tmp_path: Path
) -> None:
    flags, _ = yolo(sample)
    Image.fromarray(sample.pixels).save(sample.images / "nothing.png")
    assert compose(*flags, "--copies", 0, "--originals", "copy", "--format", "yolo") == 0
    assert (tmp_path / "out" / "images" / "nothing.png").is_file()
    assert (tmp_path / "out" / "labels" / "nothing.txt").read_bytes() == b""


def test_images_beside_the_folder_have_names_below_the_output(
    sample: AnnotatedImage, compose: Callable[..., int], tmp_path: Path
) -> None:
    """LabelMe's files name their images by a path out of their folder."""
    folder = as_labelme(sample)
    content = json.loads((folder / "scene.json").read_bytes())
    (sample.images / "more").mkdir()
    Image.fromarray(sample.pixels).save(sample.images / "more" / "other.png")
    (folder / "other.json").write_text(json.dumps(content | {"imagePath": "../images/more/other.png"}))
    assert compose("labelme", "--folder", folder) == 0
    names = [own["file_name"] for own in coco_of(tmp_path / "out")["images"]]
    assert sorted(names) == ["more/other_composite1.jpg", "scene_composite1.jpg"]


def test_a_folder_without_any_label_file_of_yolo_is_refused(
    sample: AnnotatedImage, compose: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    flags, file = yolo(sample)
    file.unlink()
    assert compose(*flags) == 2
    assert "image without a label file (such as scene.png)" in capsys.readouterr().err

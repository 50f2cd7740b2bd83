"""LabelMe's shapes and images, VIA's shapes and attributes, and masks of COCO's panoptic format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_samples import (
    BOX,
    AnnotatedImage,
    as_labelme,
    as_panoptic,
    build_labelme,
    build_via_regions,
    by_name,
    labelme_shapes,
    make_sample,
    png_in_base64,
    via_regions,
)
from PIL import Image

from terse_aug import ForegroundBank
from terse_aug.bank import (
    BuildReport,
    build_from_labelme,
    build_from_panoptic,
)
from terse_aug.bank.readers.annotation_collector import SHARED_IMAGE


@pytest.fixture
def sample(tmp_path: Path) -> AnnotatedImage:
    return make_sample(tmp_path)


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
    report = build_labelme(sample, tmp_path / "out.bank", shapes, boxes="box")
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
    assert build_from_labelme(folder, next(outs)).kept == {"cat": 1}  # at the path in the JSON
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
    found = by_name(build_via_regions(sample, tmp_path / "out.bank", regions))
    assert np.abs(np.subtract(found["a"].size, (40, 40))).max() <= 1
    assert np.abs(np.subtract(found["b"].size, (20, 60))).max() <= 1  # rotated by a right angle


def test_via_does_not_guess_which_of_two_attributes_is_the_class(sample: AnnotatedImage, tmp_path: Path) -> None:
    regions = [region | {"region_attributes": {"quality": "good", "kind": "cat"}} for region in via_regions()]
    with pytest.raises(ValueError, match=r"which of the regions' attributes is the class\? There are kind, quality"):
        build_via_regions(sample, tmp_path / "out.bank", regions)
    report = build_via_regions(sample, tmp_path / "out.bank", regions, attribute="quality")
    assert report.kept == {"good": 1}
    with ForegroundBank.open(report.path) as bank:
        assert "(quality)" in bank.info()["built"]["annotations"]
    with pytest.raises(ValueError, match=r"no region has the attribute 'colour'; there are kind, quality"):
        build_via_regions(sample, tmp_path / "other.bank", regions, attribute="colour")


def test_unusable_panoptic_masks_are_counted(sample: AnnotatedImage, tmp_path: Path) -> None:
    annotations, masks = as_panoptic(sample)
    file = masks / "scene.png"
    with Image.open(file) as image:
        changed = {"cannot be read": image.convert("L"), "and image differ in size": image.crop((0, 0, 20, 20))}
    for reason, own in changed.items():
        own.save(file)
        with pytest.raises(ValueError, match=f"mask file {reason}"):
            build_from_panoptic(annotations, masks, sample.images, tmp_path / "out.bank")
    for reason, content in (("cannot be read", file.read_bytes()[:60]), ("is missing", None)):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ValueError, match=f"mask file {reason}"):
            build_from_panoptic(annotations, masks, sample.images, tmp_path / "out.bank")

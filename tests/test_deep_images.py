"""Images of 16 bits that use fewer: their range is given, or the build warns that they are dark."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from bank_samples import CocoSample, gradient
from numpy.typing import NDArray
from PIL import Image

from terse_aug.bank import (
    BuildReport,
    ExtractionRules,
    ForegroundBank,
    build_from_coco,
    build_from_labelme,
    build_from_products,
    build_from_rgba,
    build_from_video,
)
from terse_aug.bank.inputs.deep_images import DIM_16BIT, Levels
from terse_aug.bank.inputs.images import read_image
from terse_aug.data.background_pool import BackgroundPool

RULES = ExtractionRules(black_16bit=1000, white_16bit=5095)
KINDS = ("grey.png", "grey.tif", "color.png", "color.tif")


def save(values: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    """Write 8-bit colours with 12 bits, from 1000 on, or their first channel as grey; returns them."""
    if "grey" in path.name:
        values = np.repeat(values[..., :1], 3, axis=2)
    deep = (values.astype(np.uint16) * 16 + 1000)[..., ::-1]
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), deep[..., 0] if "grey" in path.name else deep)
    return values


def build(folder: Path, kind: str, rules: ExtractionRules) -> tuple[BuildReport, NDArray[np.uint8]]:
    """A bank of the usual object on an image of 16 bits, and the image as it was meant."""
    sample = CocoSample(folder)
    pixels = save(sample.pixels, sample.images / kind)
    sample.content["images"][0]["file_name"] = kind
    sample.write()
    return build_from_coco(sample.json, sample.images, folder / "out.bank", rules=rules), pixels


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_is_scaled_to_eight_bits(tmp_path: Path, kind: str) -> None:
    report, pixels = build(tmp_path, kind, RULES)
    assert report.repaired == {}
    found = ForegroundBank.open(report.path)[0].rgba[..., :3].astype(int)
    np.testing.assert_allclose(found, pixels[10:30, 30:70], atol=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_build_of_dark_images_warns(tmp_path: Path, kind: str) -> None:
    with pytest.warns(UserWarning, match="--white-16bit"):
        report, _ = build(tmp_path, kind, ExtractionRules())
    assert report.repaired == {DIM_16BIT: 1}
    assert ForegroundBank.open(report.path)[0].rgba[..., :3].max() < 64


def test_other_sources_and_the_pool_take_the_range(tmp_path: Path) -> None:
    product = np.full((90, 90, 3), 255, np.uint8)
    product[20:70, 30:60] = (160, 60, 20)
    for number, suffix in enumerate(("png", "tif")):
        save(product, tmp_path / "products" / f"color{number}.{suffix}")
    report = build_from_products(tmp_path / "products", tmp_path / "a.bank", rules=RULES)
    assert (report.kept, report.repaired) == ({"object": 2}, {})
    assert ForegroundBank.open(report.path)[0].rgba[..., 0].max() > 150
    for at in range(6):
        frame = np.full((60, 90, 3), 200, np.uint8)
        frame[10:30, 12 * at : 12 * at + 12] = (20, 60, 160)
        save(frame, tmp_path / "frames" / f"color{at}.png")
    with pytest.raises(ValueError, match="6  16-bit image"):  # in which nothing is seen to move
        build_from_video(tmp_path / "frames", tmp_path / "b.bank", every=1)
    assert build_from_video(tmp_path / "frames", tmp_path / "c.bank", every=1, rules=RULES).repaired == {}
    crop = BackgroundPool(tmp_path / "frames", 1.0, 1000, 5095).crop(0, 60, 90, torch.Generator())
    assert crop.max() == 199  # 200 of 4095 / 16
    pool = BackgroundPool(tmp_path / "frames")
    assert pool.crop(0, 60, 90, torch.Generator()).max() < 64
    assert pool.is_dim(0)


def test_transparency_keeps_its_own_range(tmp_path: Path) -> None:
    deep = np.dstack([gradient(40, 40).astype(np.uint16) * 16, np.pad(np.full((20, 20), 65535, np.uint16), 10)])
    (tmp_path / "objects").mkdir()
    cv2.imwrite(str(tmp_path / "objects" / "a.png"), deep[..., [2, 1, 0, 3]])
    report = build_from_rgba(tmp_path / "objects", tmp_path / "a.bank", rules=ExtractionRules(white_16bit=4080))
    found = ForegroundBank.open(report.path)[0].rgba
    np.testing.assert_array_equal(found[..., :3], gradient(40, 40)[10:30, 10:30])
    assert (found[..., 3] == 255).all()


def test_values_beyond_the_range_are_clipped_and_wrong_ranges_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1000, 3000, 5000, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", Levels(1000, 5000))[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(ValueError, match="black_16bit < white_16bit"):
        ExtractionRules(black_16bit=5, white_16bit=5)
    with pytest.raises(ValueError, match="black_16bit < white_16bit"):
        BackgroundPool(tmp_path, white_16bit=2**16)


def test_an_image_within_a_labelme_file_has_its_range(tmp_path: Path) -> None:
    pixels = save(gradient(40, 60), tmp_path / "color.png")
    data = base64.b64encode((tmp_path / "color.png").read_bytes()).decode()
    (tmp_path / "json").mkdir()
    shape = {"label": "a", "points": [[10, 5], [50, 5], [50, 35], [10, 35]]}
    content = {"imagePath": "a.png", "imageHeight": 40, "imageWidth": 60, "imageData": data, "shapes": [shape]}
    (tmp_path / "json" / "a.json").write_text(json.dumps(content))
    report = build_from_labelme(tmp_path / "json", tmp_path / "out.bank", rules=RULES)
    found = ForegroundBank.open(report.path)[0].rgba[..., :3].astype(int)
    np.testing.assert_allclose(found, pixels[5:35, 10:50], atol=1)

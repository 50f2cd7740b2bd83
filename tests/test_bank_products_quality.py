"""Product photographs whose object has nearly the background's colour, and masks that are split and refined."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from terse_aug import ForegroundBank
from terse_aug.bank import PlainBackground, build_from_products
from terse_aug.cli import main
from terse_aug.viz.images import SKY_BLUE

HEIGHT, WIDTH = 160, 200
BROWN = (150, 90, 50)


def cups(*centers: int) -> NDArray[np.bool_]:
    """Discs at columns."""
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    return np.any([np.hypot(rows - 80, columns - center) <= 40 for center in centers], 0)


def photograph(mask: NDArray[np.bool_], color: object = None) -> NDArray[np.uint8]:
    """An object on a white background that gets darker to the right; by default white, with shade at its right side."""
    image = np.full((HEIGHT, WIDTH, 3), 250.0) - np.linspace(0, 8, WIDTH)[:, None]
    shade = np.maximum(np.linspace(-30, 60, WIDTH), 0)
    image[mask] = (image - shade[:, None])[mask] if color is None else color
    image += np.random.default_rng(0).normal(0, 1, image.shape)
    rounded: NDArray[np.uint8] = image.clip(0, 255).astype(np.uint8)
    return rounded


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


def iou(alpha: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    found = alpha > 127
    return float((found & mask).sum() / (found | mask).sum())


def test_white_objects_on_white_are_rejected_and_shown(tmp_path: Path) -> None:
    save(tmp_path / "cups" / "brown.png", photograph(cups(90), BROWN))
    save(tmp_path / "cups" / "white.png", photograph(cups(90)))
    report = build_from_products(tmp_path / "cups", tmp_path / "a.bank", rejected_sheet=tmp_path / "sheets")
    assert [list(report.examples[reason]) for reason in report.rejected] == [["white.png"]]
    with ForegroundBank.open(report.path) as bank:
        assert [foreground.source for foreground in bank] == ["brown.png"]
    (sheet,) = (tmp_path / "sheets").glob("01-*.png")
    with Image.open(sheet) as image:
        blue = (np.abs(np.asarray(image.convert("RGB")).astype(int) - SKY_BLUE) < 40).all(-1)
    assert blue.sum() > 200


def test_without_the_gate_scraps_are_kept(tmp_path: Path) -> None:
    save(tmp_path / "cups" / "white.png", photograph(cups(90)))
    out = str(tmp_path / "a.bank")
    build = ["bank", "build", "products", "--folder", str(tmp_path / "cups"), "--out", out, "--min-quality"]
    assert main([*build, "0.7"]) == 2
    assert main([*build, "0"]) == 0
    with ForegroundBank.open(out) as bank:
        assert np.count_nonzero(bank[0].rgba[..., 3]) < 0.7 * cups(90).sum()
    with pytest.raises(ValueError, match="min_quality within 0 to 1"):
        PlainBackground(min_quality=2)


@pytest.mark.parametrize("color", [BROWN, 128, (250, 200, 60), (200, 215, 235)])
def test_other_colours_pass(color: object) -> None:
    (alpha,) = PlainBackground().alphas(photograph(cups(90), color))
    assert iou(alpha, cups(90)) > 0.95


def test_masks_are_split_into_their_parts() -> None:
    """Also where their soft edges touch; specks are left out, and each pixel belongs to one part."""
    mask = cups(50, 135)
    mask[5:8, 5:8] = True
    alpha = (255 * cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 4)).astype(np.uint8)
    assert alpha[80, 80:100].min() > 0
    image = photograph(mask, BROWN)
    left, right = PlainBackground(split=True).alphas_of_mask(image, alpha)
    assert iou(left, cups(50)) > 0.95
    assert iou(right, cups(135)) > 0.95
    assert not ((left > 0) & (right > 0)).any()
    (same,) = PlainBackground().alphas_of_mask(image, alpha)
    assert (same == alpha).all()


def test_sloppy_masks_are_refined() -> None:
    mask = cups(60)
    sloppy = cv2.dilate(255 * mask.astype(np.uint8), np.ones((5, 5), np.uint8))
    (alpha,) = PlainBackground(refine=True).alphas_of_mask(photograph(mask, BROWN), sloppy)
    assert iou(sloppy, mask) < 0.93
    assert iou(alpha, mask) > 0.97


def test_the_command_splits_and_refines_masks(tmp_path: Path) -> None:
    save(tmp_path / "cups" / "a.png", photograph(cups(50, 150), BROWN))
    save(tmp_path / "masks" / "a.png", 255 * cups(50, 150).astype(np.uint8))
    build = ["bank", "build", "products", "--folder", str(tmp_path / "cups"), "--masks", str(tmp_path / "masks")]
    assert main([*build, "--split", "--refine", "--out", str(tmp_path / "a.bank")]) == 0
    with ForegroundBank.open(tmp_path / "a.bank") as bank:
        assert [foreground.source for foreground in bank] == ["a.png#1", "a.png#2"]
        assert {name: bank.info()["built"][name] for name in ("split", "refine")} == {"split": True, "refine": True}
    assert main([*build, "--min-quality", "0.5", "--out", str(tmp_path / "b.bank")]) == 2


@pytest.mark.parametrize("kind", ["F", "I"])
def test_images_without_a_known_range_are_counted(tmp_path: Path, kind: str) -> None:
    save(tmp_path / "cups" / "a.png", photograph(cups(90), BROWN))
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.float32)).convert(kind).save(tmp_path / "cups" / "b.tif")
    report = build_from_products(tmp_path / "cups", tmp_path / "out.bank")
    assert (report.kept, report.rejected) == ({"object": 1}, {"image cannot be read": 1})

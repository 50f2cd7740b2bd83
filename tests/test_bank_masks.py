"""Banks from images and instance masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bank_samples import gradient
from PIL import Image

from terse_aug.bank import ExtractionRules, ForegroundBank, build_from_masks, read_image

EVERY = ExtractionRules(min_area=1, min_side=1, max_side=None)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    return images, masks


def add(images: Path, masks: Path, name: str, suffix: str = "_mask") -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[5:25, 10:40] = 1
    mask[30:50, 50:75] = 4  # ids have holes
    Image.fromarray(gradient(60, 80)).save(images / f"{name}.png")
    Image.fromarray(mask).save(masks / f"{name}{suffix}.png")


def test_every_number_is_an_object(folders: tuple[Path, Path], tmp_path: Path) -> None:
    add(*folders, "b")
    add(*folders, "a", suffix="")
    report = build_from_masks(*folders, tmp_path / "out.bank", category="walker")
    bank = ForegroundBank.open(report.path)
    assert (report.kept, report.rejected) == ({"walker": 4}, {})
    assert [f.source for f in bank] == ["a.png#1", "a.png#4", "b.png#1", "b.png#4"]
    assert bank.categories == {1: "walker"}
    np.testing.assert_array_equal(bank[3].rgba[..., :3], gradient(60, 80)[30:50, 50:75])


def test_what_does_not_match_is_counted(folders: tuple[Path, Path], tmp_path: Path) -> None:
    images, masks = folders
    for name in ("good", "no_mask_here", "no_image", "size", "broken", "void", "colour", "unlisted"):
        add(images, masks, name)
    (masks / "no_mask_here_mask.png").unlink()
    (images / "no_image.png").unlink()
    Image.fromarray(gradient(61, 80)).save(images / "size.png")
    whole = (images / "broken.png").read_bytes()
    (images / "broken.png").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (80, 60)).save(masks / "void_mask.png")
    Image.fromarray(gradient(60, 80)).save(masks / "colour_mask.png")
    listed = [path.stem for path in images.iterdir() if path.stem != "unlisted"] + ["gone"]
    report = build_from_masks(images, masks, tmp_path / "out.bank", image_list=listed)
    assert report.kept == {"person": 2}
    assert report.rejected == {
        "image without a mask of its name": 1,
        "mask without an image of its name": 1,
        "image is not in `image_list`": 1,
        "listed in `image_list`, but there is no such image": 1,
        "image or mask cannot be read": 2,
        "image and mask differ in size": 1,
        "mask has no object": 1,
    }


def test_real_penn_fudan(data_root: Path, tmp_path: Path) -> None:
    images, masks = data_root / "penn_fudan" / "PNGImages", data_root / "penn_fudan" / "PedMasks"
    report = build_from_masks(images, masks, tmp_path / "out.bank", rules=EVERY)
    assert (report.kept, report.rejected) == ({"person": 423}, {})
    with ForegroundBank.open(report.path) as bank:
        name, number = bank[200].source.split("#")
        mask = np.asarray(Image.open(masks / name.replace(".png", "_mask.png"))) == int(number)
        assert np.count_nonzero(bank[200].rgba[..., 3]) == mask.sum()
        assert (bank[200].rgba[bank[200].rgba[..., 3] > 0, :3] == read_image(images / name)[mask]).all()

"""Banks from folders: of images and instance masks, and of files with transparency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bank_samples import gradient
from PIL import Image

from terse_aug.bank import ExtractionRules, ForegroundBank, build_from_masks, build_from_rgba, read_image

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
    assert report.kept == {"object": 2}
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
    assert (report.kept, report.rejected) == ({"object": 423}, {})
    with ForegroundBank.open(report.path) as bank:
        name, number = bank[200].source.split("#")
        mask = np.asarray(Image.open(masks / name.replace(".png", "_mask.png"))) == int(number)
        assert np.count_nonzero(bank[200].rgba[..., 3]) == mask.sum()
        assert (bank[200].rgba[bank[200].rgba[..., 3] > 0, :3] == read_image(images / name)[mask]).all()


def save(path: Path, alpha_at: tuple[slice, slice] = np.s_[3:23, 5:35], alpha: int = 200) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    rgba = np.dstack([gradient(40, 50), np.zeros((40, 50), np.uint8)])
    rgba[(*alpha_at, 3)] = alpha
    Image.fromarray(rgba).save(path, **({"lossless": True, "exact": True} if path.suffix == ".webp" else {}))
    return rgba


def test_subfolders_are_classes(tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    save(folder / "zebra" / "a.png")
    save(folder / "apple" / "red" / "b.tif")
    save(folder / "grüner apfel" / "c.webp")
    rgba = save(folder / "d.png")
    report = build_from_rgba(folder, tmp_path / "out.bank", category="thing", relative_size=0.25)
    bank = ForegroundBank.open(report.path)
    assert report.kept == {"apple": 1, "grüner apfel": 1, "thing": 1, "zebra": 1}
    assert bank.categories == {1: "apple", 2: "grüner apfel", 3: "thing", 4: "zebra"}
    assert {f.source: bank.categories[f.label] for f in bank} == {
        "apple/red/b.tif": "apple",
        "d.png": "thing",
        "grüner apfel/c.webp": "grüner apfel",
        "zebra/a.png": "zebra",
    }
    for foreground in bank:
        np.testing.assert_array_equal(foreground.rgba, rgba[3:23, 5:35])  # tight, and alpha as it was
        assert foreground.relative_size == 0.25


def test_faint_alpha_is_removed(tmp_path: Path) -> None:
    """Background removers leave alpha of one or two."""
    rgba = save(tmp_path / "clean" / "a.png")
    faint = rgba.copy()
    faint[..., 3] = np.maximum(faint[..., 3], np.indices(faint.shape[:2]).sum(0) % 3)
    (tmp_path / "faint").mkdir()
    Image.fromarray(faint).save(tmp_path / "faint" / "a.png")
    found = []
    for name in ("clean", "faint"):
        build_from_rgba(tmp_path / name, tmp_path / f"{name}.bank")
        with ForegroundBank.open(tmp_path / f"{name}.bank") as bank:
            found.append(bank[0].rgba)
    np.testing.assert_array_equal(*found)


def test_files_that_are_no_images_take_no_label(tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    save(folder / "cup" / "a.png")
    save(folder / "person" / "b.png")
    (folder / "README.txt").write_text("x")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("x")
    report = build_from_rgba(folder, tmp_path / "out.bank")
    assert ForegroundBank.open(report.path).categories == {1: "cup", 2: "person"}
    assert report.rejected == {"not an image file": 2}


def test_unusable_files_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "objects"
    save(folder / "good.png")
    save(folder / "unlisted.png")
    save(folder / "opaque.png", np.s_[:, :], 255)
    save(folder / "clear.png", alpha=0)
    save(folder / "small.png", np.s_[3:6, 3:6])
    Image.fromarray(gradient(9, 9)).save(folder / "flat.png")
    (folder / "notes.txt").write_text("x")
    Image.fromarray(np.full((20, 17000, 4), 255, np.uint8) - np.uint8([0, 0, 0, 1])).save(folder / "wide.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / ".hidden").write_text("")
    listed = [path.name for path in folder.iterdir() if path.stem != "unlisted"]
    rules = ExtractionRules(max_side=None)
    report = build_from_rgba(folder, tmp_path / "out.bank", image_list=listed, rules=rules)
    assert report.kept == {"object": 1}
    assert sorted(report.rejected.values()) == [1] * 9
    reasons = " ".join(report.rejected)
    for reason in ("no alpha", "opaque", "transparent", "min_area", "be read", "not an im", "image_list", "16384 px"):
        assert reason in reasons


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="folder of RGBA images"):
        build_from_rgba(tmp_path / "no", tmp_path / "out.bank")
    for relative_size in (0, -1, float("inf")):
        with pytest.raises(ValueError, match="relative_size above 0"):
            build_from_rgba(tmp_path, tmp_path / "out.bank", relative_size=relative_size)
    with pytest.raises(ValueError, match="drop_truncated"):
        build_from_rgba(tmp_path, tmp_path / "out.bank", rules=ExtractionRules(drop_truncated=True))
    with pytest.raises(ValueError, match="was kept"):
        build_from_rgba(tmp_path, tmp_path / "out.bank")

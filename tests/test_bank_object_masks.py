"""One mask file for each object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pixel_checks import HEIGHT, WIDTH, assert_masks, disk, noise, rectangle, save_image

from terse_aug.bank import build_from_object_masks
from terse_aug.bank.inputs.mask_files import DARK_OBJECT

FIRST, SECOND = disk(30, 30, 15), rectangle(60, 20, 30, 40)
WHITE = [np.where(mask, np.uint8(255), np.uint8(0)) for mask in (FIRST, SECOND)]


def test_the_layout_of_the_data_science_bowl(tmp_path: Path) -> None:
    for seed, name in enumerate(("aa", "bb")):
        save_image(tmp_path / "set" / name / "images" / f"{name}.png", noise(seed))
    for number, mask in enumerate(WHITE):
        save_image(tmp_path / "set" / "aa" / "masks" / f"{number}.png", mask)
    report = build_from_object_masks(tmp_path / "set", tmp_path / "out.bank", category="nucleus")
    assert_masks(report, noise(0), {"nucleus": [FIRST, SECOND]})
    assert report.rejected == {"image without masks": 1}
    (tmp_path / "set" / "aa" / "images" / "aa.png").rename(tmp_path / "set" / "aa" / "aa.png")
    assert build_from_object_masks(tmp_path / "set", tmp_path / "above.bank").kept == {"object": 2}
    save_image(tmp_path / "set" / "aa" / "images" / "second.png", noise(0))
    with pytest.raises(ValueError, match=r"2 +mask beside several images, or none"):
        build_from_object_masks(tmp_path / "set", tmp_path / "several.bank")


@pytest.mark.parametrize(
    "names",
    [
        ("a/1.png", "a/2.png"),
        ("a_1.png", "a_2.png"),
        ("a_cat_0.png", "a-1.png"),
        ("masks/a/x.png", "masks/a/y.png"),
        ("a.png", "a_1.png"),
    ],
)
def test_masks_are_named_after_their_image(names: tuple[str, str], tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "a.png", noise(0))
    save_image(tmp_path / "images" / "a_cat.png", noise(1))  # whose name begins like the other's
    folder = tmp_path / "masks" / "sub" if names[0].startswith("masks") else tmp_path / "masks"
    for name, mask in zip(names, WHITE, strict=True):
        save_image(folder / name.removeprefix("masks/"), mask)
    if folder.name == "sub":  # the same subfolder
        save_image(tmp_path / "images" / "sub" / "a.png", noise(0))
        (tmp_path / "images" / "a.png").unlink()
    save_image(tmp_path / "masks" / "other_1.png", WHITE[0])
    report = build_from_object_masks(tmp_path / "images", tmp_path / "out.bank", masks=tmp_path / "masks")
    if names[0] == "a_cat_0.png":  # the longest name
        report = build_from_object_masks(
            tmp_path / "images", tmp_path / "b.bank", masks=tmp_path / "masks", image_list=["a.png"]
        )
        assert_masks(report, noise(0), {"object": [SECOND]})
    else:
        assert_masks(report, noise(0), {"object": [FIRST, SECOND]})
    assert report.rejected["mask without an image of its name"] == 1


def test_masks_of_any_kind_and_what_cannot_be_used(tmp_path: Path) -> None:
    root = tmp_path / "set" / "a"
    save_image(root / "images" / "a.png", noise())
    masks = {
        "0": 255 - WHITE[0],
        "1": np.dstack([255 - WHITE[1]] * 3),
        "2": WHITE[0][:50],
        "3": np.zeros((HEIGHT, WIDTH), np.uint8),
        "4": np.where(rectangle(5, 5, 4, 4), np.uint8(0), np.uint8(255)),
    }
    for name, mask in masks.items():
        save_image(root / "masks" / f"{name}.png", mask)
    (root / "masks" / "5.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    report = build_from_object_masks(tmp_path / "set", tmp_path / "out.bank")
    assert_masks(report, noise(), {"object": [FIRST, SECOND]})
    assert report.repaired == {DARK_OBJECT: 2}
    assert report.rejected == {
        "image and mask differ in size": 1,
        "mask is empty": 1,
        "fewer than 100 px visible (min_area)": 1,
        "image or mask cannot be read": 1,
    }


def test_a_dark_object_at_the_border_follows_the_other_masks(tmp_path: Path) -> None:
    masks = [FIRST, SECOND, rectangle(0, 0, WIDTH, 70)]
    save_image(tmp_path / "images" / "a.png", noise())
    for number, mask in enumerate(masks):
        save_image(tmp_path / "masks" / "a" / f"{number}.png", np.where(mask, np.uint8(0), np.uint8(255)))
    report = build_from_object_masks(tmp_path / "images", tmp_path / "out.bank", masks=tmp_path / "masks")
    assert_masks(report, noise(), {"object": masks})


def test_images_of_one_name_have_their_masks_in_common(tmp_path: Path) -> None:
    for seed, name in enumerate(("a.png", "a.bmp", "b.png", "c.png", "c.bmp")):
        save_image(tmp_path / "images" / name, noise(seed))
    for name in ("a_1.png", "b_1.png"):
        save_image(tmp_path / "masks" / name, WHITE[0])
    report = build_from_object_masks(tmp_path / "images", tmp_path / "out.bank", masks=tmp_path / "masks")
    assert_masks(report, noise(2), {"object": [FIRST]})
    assert report.rejected == {
        "image has its masks in common with another of its name": 2,
        "image without masks": 2,
    }


def test_images_and_masks_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    save_image(folder / "a.png", noise())
    save_image(folder / "b.png", noise(1))
    for name, mask in zip(("a_1.png", "a/2.png"), WHITE, strict=True):
        save_image(folder / name, mask)
    report = build_from_object_masks(folder, tmp_path / "out.bank", masks=folder)
    assert_masks(report, noise(), {"object": [FIRST, SECOND]})
    assert report.rejected == {"image without masks": 1}
    save_image(folder / "b_cat.png", noise(2))  # of the image b or of another
    save_image(folder / "b_cat_0.png", WHITE[0])
    report = build_from_object_masks(folder, tmp_path / "b.bank", masks=folder)
    assert_masks(report, noise(), {"object": [FIRST, SECOND]})
    assert report.rejected == {"file may be an image or a mask of one": 2, "image without masks": 1}

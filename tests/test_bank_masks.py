"""Source `masks`: which side is the object, colours, classes of semantic masks, connected parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pixel_checks import HEIGHT, WIDTH, Mask, assert_masks, disk, noise, rectangle, save_image

from terse_aug.bank import BuildReport, build_from_masks
from terse_aug.bank.inputs.mask_files import DARK_OBJECT, NO_ZERO

OBJECT = disk(50, 40, 25)
LARGE = ~(rectangle(0, 0, 40, 30))
"""Covers most of the border."""
FIRST, SECOND, THIRD = disk(30, 30, 15), rectangle(60, 20, 30, 40), rectangle(100, 60, 20, 30)


def black_and_white(mask: Mask, white: int = 255, black: int = 0) -> NDArray[np.uint8]:
    return np.where(mask, np.uint8(white), np.uint8(black))


def build(folder: Path, masks: dict[str, Any], **options: Any) -> BuildReport:
    """From masks by file name, each an array or an image, of one image under all names."""
    for name, mask in masks.items():
        save_image(folder / "images" / Path(name).with_suffix(".png"), noise())
        file = folder / "masks" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(file)
    return build_from_masks(folder / "images", folder / "masks", folder / "out.bank", **options)


def bits(mask: Mask) -> Image.Image:
    return Image.fromarray(mask)


def palette(mask: Mask) -> Image.Image:
    image = Image.fromarray(mask.astype(np.uint8), mode="P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    return image


@pytest.mark.parametrize(
    ("draw", "repaired"),
    [
        (lambda mask: black_and_white(mask), {}),
        (lambda mask: black_and_white(~mask), {DARK_OBJECT: 1}),
        (lambda mask: bits(mask), {}),
        (lambda mask: bits(~mask), {DARK_OBJECT: 1}),
        (lambda mask: palette(mask), {DARK_OBJECT: 1}),  # black on white, whatever the indices
        (lambda mask: np.repeat(black_and_white(~mask)[..., None], 3, 2), {DARK_OBJECT: 1}),
        (lambda mask: black_and_white(mask, 3), {}),
        (lambda mask: black_and_white(~mask, 1), {DARK_OBJECT: 1}),
        (lambda mask: black_and_white(mask, 200, 50), {NO_ZERO: 1}),
        (lambda mask: black_and_white(mask, 1, 2), {NO_ZERO: 1}),  # no white in it
    ],
)
def test_the_background_is_never_the_object(
    draw: Callable[[Mask], Any], repaired: dict[str, int], tmp_path: Path
) -> None:
    report = build(tmp_path, {"a.png": draw(OBJECT)})
    assert_masks(report, noise(), {"object": [OBJECT]})
    assert report.repaired == repaired


def test_an_object_that_covers_most_of_the_border_follows_the_other_masks(tmp_path: Path) -> None:
    others = [OBJECT, FIRST, SECOND]
    for name, drawn in (("white", lambda mask: mask), ("dark", lambda mask: ~mask)):
        masks = {f"{n}.png": black_and_white(drawn(mask)) for n, mask in enumerate([*others, LARGE])}
        assert_masks(build(tmp_path / name, masks), noise(), {"object": [*others, LARGE]})
    one = rectangle(0, 0, WIDTH, HEIGHT - 30)  # a number, in a format where 0 is background
    assert_masks(build(tmp_path / "number", {"a.png": black_and_white(one, 1)}), noise(), {"object": [one]})


def test_soft_edges_and_jpeg_are_one_object(tmp_path: Path) -> None:
    drawn = black_and_white(OBJECT).astype(float)
    drawn = (drawn + np.roll(drawn, 1, 0) + np.roll(drawn, 1, 1)) / 3
    report = build(tmp_path / "png", {"a.png": drawn.astype(np.uint8)})
    assert_masks(report, noise(), {"object": [drawn.astype(np.uint8) > 127]})
    report = build(tmp_path / "jpeg", {"a.jpg": black_and_white(~OBJECT)})
    assert_masks(report, noise(), {"object": [OBJECT]}, outline=True)
    assert report.rejected == {}
    with pytest.raises(ValueError, match=r"image or mask cannot be read .*JPEG, which changes numbers"):
        build(tmp_path / "numbers", {"a.jpg": 40 * FIRST.astype(np.uint8) + 80 * SECOND.astype(np.uint8)})


def test_the_class_is_given_or_the_name_of_the_folder(tmp_path: Path) -> None:
    masks = {f"{name}/a.png": black_and_white(OBJECT) for name in ("apple", "train/pear", "val")}
    report = build(tmp_path / "folders", masks)
    assert report.kept == {"apple": 1, "object": 1, "pear": 1}
    assert build(tmp_path / "given", masks, category="fruit").kept == {"fruit": 3}
    assert build(tmp_path / "none", {"a.png": black_and_white(OBJECT)}).kept == {"object": 1}


# --- colours --------------------------------------------------------------------------------------------------------


def colored(*parts: tuple[Mask, tuple[int, int, int]], ground: tuple[int, int, int] = (0, 0, 0)) -> NDArray[np.uint8]:
    image = np.full((HEIGHT, WIDTH, 3), ground, np.uint8)
    for mask, color in parts:
        image[mask] = color
    return image


RED, GREEN, VOID = (128, 0, 0), (0, 128, 0), (224, 224, 192)


@pytest.mark.parametrize("ground", [(0, 0, 0), (255, 255, 255)])
def test_every_color_is_an_object(ground: tuple[int, int, int], tmp_path: Path) -> None:
    mask = colored((FIRST, RED), (SECOND, GREEN), (THIRD, VOID), ground=ground)
    report = build(tmp_path, {"a.png": mask})
    assert_masks(report, noise(), {"object": [FIRST, SECOND]})
    assert report.rejected == {}


def test_void_of_a_palette_and_transparency_are_background(tmp_path: Path) -> None:
    indices = Image.fromarray(np.where(THIRD, 255, FIRST + 2 * SECOND).astype(np.uint8), mode="P")
    indices.putpalette([0, 0, 0, *RED, *GREEN, *([9] * 3 * 252), *VOID])
    assert_masks(build(tmp_path / "palette", {"a.png": indices}), noise(), {"object": [FIRST, SECOND]})
    hidden = colored((FIRST, RED), (THIRD, (5, 60, 7)), ground=(9, 9, 9))  # transparent, and of any colour
    rgba = np.dstack([hidden, black_and_white(FIRST)])
    assert_masks(build(tmp_path / "rgba", {"a.png": rgba}), noise(), {"object": [FIRST]})


# --- classes --------------------------------------------------------------------------------------------------------

MAPS = {
    "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\nblack dog:0,128,0::\n",
    "label_colors.txt": "0 0 0\tVoid\n128 0 0\tcat\n0 128 0\tblack dog\n",
    "class_dict.csv": "name,r,g,b\nbackground,0,0,0\ncat,128,0,0\nblack dog,0,128,0\n",
}


@pytest.mark.parametrize("name", list(MAPS))
def test_colors_are_classes_by_a_label_map(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(MAPS[name])
    mask = colored((FIRST | THIRD, RED), (SECOND, GREEN))
    mask[0, :40] = (1, 2, 3)
    report = build(tmp_path, {"a.png": mask}, label_map=tmp_path / name)
    assert_masks(report, noise(), {"cat": [FIRST | THIRD], "black dog": [SECOND]})
    assert report.rejected == {"number or colour is not in the label map": 1}
    report = build(tmp_path, {"a.png": mask}, label_map=tmp_path / name, split=True, names=["cat"], overwrite=True)
    assert_masks(report, noise(), {"cat": [FIRST, THIRD]})
    assert report.rejected["class is not in `names`"] == 1


@pytest.mark.parametrize(
    "text", ["background\ncat\ndog\n", "cat\ndog\n", "cat: 1\ndog: 2\n", "0 background\n1 cat\n2 dog"]
)
def test_numbers_are_classes_by_a_list_of_names(text: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(text)
    mask = (FIRST | THIRD) + 2 * SECOND.astype(np.uint8)
    report = build(tmp_path, {"a.png": mask}, label_map=tmp_path / "classes.txt", split=True)
    assert_masks(report, noise(), {"cat": [FIRST, THIRD], "dog": [SECOND]})


def test_parts_that_touch_at_a_corner_are_one_object(tmp_path: Path) -> None:
    both = rectangle(10, 10, 20, 20) | rectangle(30, 30, 20, 20)
    report = build(tmp_path, {"a.png": (both | THIRD).astype(np.uint8)}, split=True)
    assert_masks(report, noise(), {"object": [both, THIRD]})


@pytest.mark.parametrize("in_colors", [True, False])
def test_cvat_segmentation_masks(in_colors: bool, tmp_path: Path) -> None:
    """The layout of CVAT's Segmentation mask and of VOC's segmentation, without XML files."""
    root = tmp_path / "cvat"
    (root / "SegmentationObject").mkdir(parents=True)
    (root / "SegmentationClass").mkdir()
    pixels = save_image(root / "JPEGImages" / "a.png", noise())
    objects = colored((FIRST, RED), (SECOND, GREEN), (THIRD, (128, 128, 0)))
    if in_colors:
        save_image(root / "SegmentationObject" / "a.png", objects)
    else:
        save_image(root / "SegmentationObject" / "a.png", (FIRST + 2 * SECOND + 3 * THIRD).astype(np.uint8))
    save_image(root / "SegmentationClass" / "a.png", colored((FIRST | THIRD, RED), (SECOND, GREEN)))
    (root / "labelmap.txt").write_text(MAPS["labelmap.txt"])
    report = build_from_masks(root / "JPEGImages", root / "SegmentationObject", tmp_path / "object.bank")
    assert_masks(report, pixels, {"cat": [FIRST, THIRD], "black dog": [SECOND]})
    report = build_from_masks(root / "JPEGImages", root / "SegmentationClass", tmp_path / "class.bank")
    assert_masks(report, pixels, {"cat": [FIRST | THIRD], "black dog": [SECOND]})


def test_wrong_calls_for_classes(tmp_path: Path) -> None:
    masks = {"a.png": black_and_white(OBJECT)}
    (tmp_path / "map.txt").write_text("cat:1,2\ndog:3,4,5\n")
    with pytest.raises(ValueError, match=r"map\.txt, line 1: expected a class name and a colour"):
        build(tmp_path, masks, label_map=tmp_path / "map.txt")
    with pytest.raises(ValueError, match="--label-map"):
        build(tmp_path, masks, names=["cat"])
    with pytest.raises(ValueError, match="expected category or label_map, got both"):
        build(tmp_path, masks, label_map=tmp_path / "map.txt", category="cat")
    with pytest.raises(FileNotFoundError, match="class names and colours"):
        build(tmp_path, masks, label_map=tmp_path / "none.txt")

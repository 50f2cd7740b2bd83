"""Source `masks`: files of class names, and masks whose numbers or colours are classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pixel_checks import HEIGHT, WIDTH, Mask, assert_masks, disk, noise, rectangle, save_image

from terse_aug.bank import BuildReport, build_from_masks
from terse_aug.bank.inputs.label_map import LabelMap

FIRST, SECOND, THIRD = disk(30, 30, 15), rectangle(60, 20, 30, 40), rectangle(100, 60, 20, 30)
RED, GREEN, VOID = (128, 0, 0), (0, 128, 0), (224, 224, 192)
VOC_MAP = "background:0,0,0::\naeroplane:128,0,0::\nbicycle:0,128,0::\n"


def colored(*parts: tuple[Mask, tuple[int, int, int]]) -> NDArray[np.uint8]:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for mask, color in parts:
        image[mask] = color
    return image


def build(folder: Path, mask: Any, text: str, **options: Any) -> BuildReport:
    """From one image and its mask, an array or an image, with a label map."""
    save_image(folder / "images" / "a.png", noise())
    (folder / "masks").mkdir(exist_ok=True)
    (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(folder / "masks" / "a.png")
    (folder / "map.txt").write_text(text)
    options = {"label_map": folder / "map.txt", "overwrite": True} | options
    return build_from_masks(folder / "images", folder / "masks", folder / "out.bank", **options)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("id,name\n0,background\n1,car\n", {0: "background", 1: "car"}),
        ("name;id\ncar;1\n", {1: "car"}),
        ("Type 1\nType 2\n", {1: "Type 1", 2: "Type 2"}),
        ("background\nType 1\nDog 2\n", {0: "background", 1: "Type 1", 2: "Dog 2"}),
        ("car: 1\ncar: 2\n", {1: "car", 2: "car"}),
        ("car 1,10,20,30\n", {(10, 20, 30): "car 1"}),
        ("1 255 0 0 car\n", {(255, 0, 0): "car"}),
        ("id,name,r,g,b\n0,car,64,0,128\n1,bus,1,2,3\n", {(64, 0, 128): "car", (1, 2, 3): "bus"}),
        ("64 0 128 2 wheeler\n1 2 3 car\n", {(64, 0, 128): "2 wheeler", (1, 2, 3): "car"}),
        ("person:192,128,128:head,hand 1,2,3:jump\n", {(192, 128, 128): "person"}),
        ("3:64,0,128::\n4:1,2,3::\n", {(64, 0, 128): "3", (1, 2, 3): "4"}),
    ],
)
def test_forms_of_label_maps(text: str, names: dict[Any, str], tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text(text)
    found = LabelMap.read(tmp_path / "map.txt")
    own = {(number % 256, number // 256 % 256, number // 65536): name for number, name in found.names.items()}
    assert (own if found.colors else found.names) == names


@pytest.mark.parametrize("name", ["unlabeled", "unlabelled", "bg", "Void"])
def test_names_of_the_background(name: str, tmp_path: Path) -> None:
    report = build(tmp_path, FIRST + 7 * SECOND.astype(np.uint8), f"1 car\n7 {name}\n")
    assert (report.kept, report.rejected) == ({"car": 1}, {})


def test_void_is_no_class_unless_the_label_map_names_it(tmp_path: Path) -> None:
    mask = colored((FIRST, RED), (THIRD, VOID))
    report = build(tmp_path, mask, VOC_MAP)
    assert (report.kept, report.rejected) == ({"aeroplane": 1}, {})
    report = build(tmp_path, mask, VOC_MAP + "edge:224,224,192::\n")
    assert_masks(report, noise(), {"aeroplane": [FIRST], "edge": [THIRD]})


def test_class_numbers_are_never_those_of_soft_edges(tmp_path: Path) -> None:
    mask = np.where(SECOND, np.uint8(255), np.uint8(0))
    lane = rectangle(10, 70, 60, 20) & ~rectangle(12, 70, 56, 18)  # of two pixels' width
    mask[lane] = 1
    report = build(tmp_path, mask, "background\nlane\ncar\n")
    assert_masks(report, noise(), {"lane": [lane]})
    assert report.rejected == {"number or colour is not in the label map": 1}


@pytest.mark.parametrize("bits", [True, False])
def test_white_is_the_only_class(bits: bool, tmp_path: Path) -> None:
    mask = FIRST if bits else np.where(FIRST, np.uint8(255), np.uint8(0))
    assert_masks(build(tmp_path, mask, "0 background\n7 car\n"), noise(), {"car": [FIRST]})
    with pytest.raises(ValueError, match="not in the label map"):
        build(tmp_path, mask, "car\nbus\n")


@pytest.mark.parametrize("names", ["car", ["car", "car"], ["car", "bsu"], [""]])
def test_names_are_those_of_the_label_map(names: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected"):
        build(tmp_path, FIRST.astype(np.uint8), "car\nbus\nc\na\nr\n", names=names)


def test_instance_colors_are_no_classes(tmp_path: Path) -> None:
    (tmp_path / "labelmap.txt").write_text(VOC_MAP)
    save_image(tmp_path / "JPEGImages" / "x.png", noise())
    masks = tmp_path / "SegmentationObject"
    save_image(masks / "x.png", colored((FIRST, RED), (SECOND, GREEN)))
    with pytest.raises(ValueError, match=r"--class-masks.*--category"):
        build_from_masks(tmp_path / "JPEGImages", masks, tmp_path / "out.bank")
    report = build_from_masks(tmp_path / "JPEGImages", masks, tmp_path / "out.bank", category="thing")
    assert_masks(report, noise(), {"thing": [FIRST, SECOND]})


def test_an_image_without_a_class_mask_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "labelmap.txt").write_text(VOC_MAP)
    for name in ("x.png", "y.png"):
        save_image(tmp_path / "JPEGImages" / name, noise())
        save_image(tmp_path / "SegmentationObject" / name, colored((FIRST, RED), (SECOND, GREEN)))
    save_image(tmp_path / "SegmentationClass" / "x.png", colored((FIRST | SECOND, GREEN)))
    report = build_from_masks(tmp_path / "JPEGImages", tmp_path / "SegmentationObject", tmp_path / "out.bank")
    assert_masks(report, noise(), {"bicycle": [FIRST, SECOND]})
    assert report.rejected == {"image without a class mask of its name": 1}

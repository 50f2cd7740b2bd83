"""Pascal VOC with other folder names, in subfolders, with colours as masks, rotated boxes and polygons."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pixel_checks import HEIGHT, WIDTH, Mask, assert_masks, disk, noise, polygon, rectangle, save_image

from terse_aug.bank import build_from_voc
from terse_aug.bank.readers.annotation_collector import SHARED_IMAGE
from terse_aug.bank.readers.voc import voc_color

BOX = (20, 10, 50, 40)


def box_xml(left: int, top: int, width: int, height: int, name: str = "cat") -> str:
    corners = {"xmin": left + 1, "ymin": top + 1, "xmax": left + width, "ymax": top + height}
    return (
        f"<object><name>{name}</name><bndbox>{''.join(f'<{k}>{v}</{k}>' for k, v in corners.items())}</bndbox></object>"
    )


def write(xml: Path, image: Path, *objects: str, seed: int = 0) -> NDArray[np.uint8]:
    """An XML file and its image; returns the pixels."""
    xml.parent.mkdir(parents=True, exist_ok=True)
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    text = f"<annotation><filename>{image.name}</filename>{size}{''.join(objects or [box_xml(*BOX)])}</annotation>"
    xml.write_text(text)
    return save_image(image, noise(seed))


@pytest.mark.parametrize(
    ("xml", "image"),
    [
        ("annotations/a.xml", "images/a.png"),
        ("ANNOTATIONS/a.xml", "JPEGimages/a.png"),
        ("labels/a.xml", "imgs/a.png"),
        ("annotations/xmls/a.xml", "images/a.png"),  # Oxford-IIIT Pet
        ("a.xml", "a.png"),
        ("a.xml", "images/a.png"),
        ("images/a.xml", "images/a.png"),
        ("train/a.xml", "train/a.png"),  # Roboflow
        ("annotations/x/y/a.xml", "images/x/y/a.png"),
        ("train/Annotations/a.xml", "train/images/a.png"),
    ],
)
def test_folders_of_any_usual_name(xml: str, image: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "labels").mkdir(parents=True)  # without XML files, as of YOLO
    pixels = write(root / xml, root / image)
    report = build_from_voc(root, tmp_path / "out.bank", boxes="box")
    assert_masks(report, pixels, {"cat": [rectangle(*BOX)]})
    assert (report.rejected, report.repaired) == ({}, {})


def test_masks_of_a_split_lie_beside_its_xml_files(tmp_path: Path) -> None:
    pixels = write(tmp_path / "train" / "Annotations" / "a.xml", tmp_path / "train" / "JPEGImages" / "a.png")
    save_image(tmp_path / "train" / "SegmentationObject" / "a.png", colored(rectangle(*BOX)))
    report = build_from_voc(tmp_path, tmp_path / "out.bank")
    assert_masks(report, pixels, {"cat": [rectangle(*BOX)]})
    assert report.mask_sources == {"mask": 1}


def test_folders_may_be_given_and_lists_lie_anywhere(tmp_path: Path) -> None:
    pixels = write(tmp_path / "set" / "marks" / "s" / "a.xml", tmp_path / "elsewhere" / "s" / "a.png")
    write(tmp_path / "set" / "marks" / "b.xml", tmp_path / "elsewhere" / "b.png", seed=1)
    (tmp_path / "set" / "train.txt").write_text("a\n")
    folders = {"annotations": tmp_path / "set" / "marks", "images": tmp_path / "elsewhere"}
    report = build_from_voc(tmp_path / "set", tmp_path / "out.bank", split="train", boxes="box", **folders)
    assert_masks(report, pixels, {"cat": [rectangle(*BOX)]})
    (tmp_path / "set" / "train.txt").write_text("a.png\n")  # a list of images
    assert (
        build_from_voc(tmp_path / "set", tmp_path / "list.bank", split="train", boxes="box", **folders).rejected == {}
    )
    with pytest.raises(FileNotFoundError, match="missing"):
        build_from_voc(tmp_path / "set", tmp_path / "no.bank", images=tmp_path / "missing")


def test_files_of_one_name_in_several_subfolders_keep_their_images(tmp_path: Path) -> None:
    for seed, part in enumerate(("a", "b")):
        write(
            tmp_path / "set" / "annotations" / part / "1.xml", tmp_path / "set" / "images" / part / "1.png", seed=seed
        )
    report = build_from_voc(tmp_path / "set", tmp_path / "out.bank", boxes="box", image_list=["a/1.png"])
    assert_masks(report, noise(0), {"cat": [rectangle(*BOX)]})
    for part in ("a", "b"):
        (tmp_path / "set" / "images" / part / "1.png").rename(tmp_path / "set" / "images" / "1.png")
    with pytest.raises(ValueError, match=rf"2 +{SHARED_IMAGE}"):
        build_from_voc(tmp_path / "set", tmp_path / "flat.bank", boxes="box")


def test_a_missing_image_of_an_impossible_name_is_rejected(tmp_path: Path) -> None:
    root = tmp_path / "set"
    pixels = write(root / "a.xml", root / "a.png")
    (root / "b.xml").write_text((root / "a.xml").read_text().replace("a.png", f"{'x' * 300}/b.png"))
    report = build_from_voc(root, tmp_path / "out.bank", boxes="box")
    assert_masks(report, pixels, {"cat": [rectangle(*BOX)]})
    assert sum(report.rejected.values()) == 1


def test_images_without_xml_and_xml_of_other_formats_are_counted(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "a.xml", root / "a.png")
    save_image(root / "b.png", noise())
    (root / "._a.xml").write_bytes(b"\x00\x05\x16\x07")  # of macOS
    (root / "._a.png").write_bytes(b"\x00\x05\x16\x07")
    (root / "cvat.xml").write_text("<annotations><image/></annotations>")
    (root / "other.xml").write_text("<project/>")
    report = build_from_voc(root, tmp_path / "out.bank", boxes="box")
    assert report.rejected == {
        "image without an XML file": 1,
        "XML file of CVAT, which source cvat reads": 1,
        "XML file of another format than VOC's": 1,
    }
    (root / "empty" / "SegmentationObject").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="source masks reads SegmentationObject"):
        build_from_voc(root / "empty", tmp_path / "empty.bank")


# --- masks ----------------------------------------------------------------------------------------------------------

FIRST, SECOND, THIRD = disk(30, 30, 15), rectangle(60, 20, 30, 40), rectangle(100, 60, 20, 30)


def colored(*masks: Mask) -> NDArray[np.uint8]:
    """In the colours of VOC's map, the n-th mask in the n-th."""
    numbers = sum(voc_color(number) * mask.astype(np.int64) for number, mask in enumerate(masks, 1))
    return np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)


def test_colors_of_voc() -> None:
    known = {1: (128, 0, 0), 2: (0, 128, 0), 5: (128, 0, 128), 8: (64, 0, 0), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {n: (voc_color(n) % 256, voc_color(n) // 256 % 256, voc_color(n) // 65536) for n in known} == known


@pytest.mark.parametrize("order", [(FIRST, SECOND, THIRD), (THIRD, FIRST, SECOND)])
def test_instance_masks_in_colors(order: tuple[Mask, ...], tmp_path: Path) -> None:
    """As CVAT writes them; the objects of the XML file may be in another order."""
    root = tmp_path / "set"
    objects = [box_xml(15, 15, 31, 31), box_xml(60, 20, 30, 40, "dog"), box_xml(0, 70, 20, 20, "dog")]
    pixels = write(root / "Annotations" / "a.xml", root / "JPEGImages" / "a.png", *objects)
    save_image(root / "SegmentationObject" / "a.png", colored(*order))
    report = build_from_voc(root, tmp_path / "out.bank")
    assert_masks(report, pixels, {"cat": [FIRST], "dog": [SECOND]})
    assert sum(report.rejected.values()) == 1  # a box without a mask


def test_an_occluded_object_takes_no_mask_of_another(tmp_path: Path) -> None:
    root = tmp_path / "set"
    horse, person = rectangle(10, 30, 60, 60), rectangle(10, 10, 60, 20)
    objects = [box_xml(10, 10, 60, 60, "person"), box_xml(10, 30, 60, 60, "horse")]
    pixels = write(root / "Annotations" / "a.xml", root / "JPEGImages" / "a.png", *objects)
    save_image(root / "SegmentationObject" / "a.png", colored(person, horse))
    report = build_from_voc(root, tmp_path / "out.bank")
    assert_masks(report, pixels, {"horse": [horse]})
    hard = objects[1].replace("<bndbox>", "<difficult>1</difficult><bndbox>")
    write(root / "Annotations" / "a.xml", root / "JPEGImages" / "a.png", objects[0], hard)
    with pytest.raises(ValueError, match="marked as difficult"):
        build_from_voc(root, tmp_path / "difficult.bank")


def test_a_color_that_fits_its_own_box_is_not_left_for_one_that_fits_better(tmp_path: Path) -> None:
    root = tmp_path / "set"
    front = rectangle(14, 14, 56, 56)
    behind = rectangle(10, 10, 60, 42) & ~front
    objects = [box_xml(10, 10, 60, 60), box_xml(14, 30, 56, 56, "dog")]  # the second too low
    pixels = write(root / "Annotations" / "a.xml", root / "JPEGImages" / "a.png", *objects)
    save_image(root / "SegmentationObject" / "a.png", colored(behind, front))
    assert_masks(build_from_voc(root, tmp_path / "out.bank"), pixels, {"cat": [behind], "dog": [front]})


def test_void_is_no_mask_and_a_damaged_mask_file_is_a_reason_to_reject(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "Annotations" / "a.xml", root / "JPEGImages" / "a.png")
    file = root / "SegmentationObject" / "a.png"
    save_image(file, np.where(rectangle(*BOX)[..., None], np.uint8([224, 224, 192]), np.uint8(0)))
    assert build_from_voc(root, tmp_path / "void.bank", boxes="box").mask_sources == {"box": 1}
    save_image(file, noise(1))
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(ValueError, match="mask file cannot be read"):
        build_from_voc(root, tmp_path / "out.bank", boxes="box")


@pytest.mark.parametrize("polygon", ["", "<pt><x/></pt>", "<x1>1</x1><y1>1</y1>"])
@pytest.mark.parametrize("with_masks", [True, False])
def test_a_polygon_without_three_points_leaves_the_box(polygon: str, with_masks: bool, tmp_path: Path) -> None:
    root = tmp_path / "set"
    entry = box_xml(*BOX).replace("<bndbox>", f"<polygon>{polygon}</polygon><bndbox>")
    pixels = write(root / "Annotations" / "a.xml", root / "JPEGImages" / "a.png", entry)
    if with_masks:
        save_image(root / "SegmentationObject" / "a.png", colored(rectangle(*BOX)))
    report = build_from_voc(root, tmp_path / "out.bank", boxes="box")
    assert_masks(report, pixels, {"cat": [rectangle(*BOX)]})
    assert sum(report.repaired.values()) == 1


def test_polygons_of_labelme(tmp_path: Path) -> None:
    points = [(10, 10), (60, 20), (30, 70)]
    text = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in points)
    entry = f"<object><name>cat</name><polygon><username>me</username>{text}</polygon></object>"
    pixels = write(tmp_path / "a.xml", tmp_path / "a.png", entry)
    assert_masks(build_from_voc(tmp_path, tmp_path / "out.bank"), pixels, {"cat": [polygon(points)]}, outline=True)


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, 2.8])
def test_rotated_boxes_are_polygons(angle: float, tmp_path: Path) -> None:
    values = {"cx": 60.0, "cy": 48.0, "w": 50.0, "h": 20.0, "angle": angle}
    text = "".join(f"<{key}>{value}</{key}>" for key, value in values.items())
    pixels = write(
        tmp_path / "a.xml",
        tmp_path / "a.png",
        f"<object><type>robndbox</type><name>ship</name><robndbox>{text}</robndbox></object>",
    )
    along, across = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    corners = [np.array([60, 48]) + u * 25 * along + v * 10 * across for u, v in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    report = build_from_voc(tmp_path, tmp_path / "out.bank")
    assert_masks(report, pixels, {"ship": [polygon(corners)]}, outline=True)


def test_polygons_of_roboflow(tmp_path: Path) -> None:
    points = [(10, 10), (60, 20), (30, 70)]
    text = "".join(f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in enumerate(points, 1))
    outline = f"<object><name>cat</name><polygon>{text}</polygon><bndbox><xmin>11</xmin></bndbox></object>"
    pixels = write(tmp_path / "a.xml", tmp_path / "a.png", outline)
    assert_masks(build_from_voc(tmp_path, tmp_path / "out.bank"), pixels, {"cat": [polygon(points)]}, outline=True)

"""CVAT's XML for images."""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from pixel_checks import HEIGHT, WIDTH, Mask, assert_masks, disk, noise, polygon, rectangle, save_image

from terse_aug.bank import BuildReport, build_from_cvat
from terse_aug.bank.readers.annotation_collector import SHOWS_NO_OBJECT

TRIANGLE = [[10, 10], [60, 20], [30, 70]]
RING = disk(90, 40, 20) & ~disk(90, 40, 8)


def mask_xml(mask: Mask, **more: str) -> str:
    """A mask as CVAT writes it: run lengths within its box, row by row, that of the background first."""
    rows, columns = np.nonzero(mask)
    part = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    runs = [len(list(run)) for _, run in groupby(part.ravel())]
    runs = [0, *runs] if part.flat[0] else runs
    height, width = part.shape
    place = {"left": columns.min(), "top": rows.min(), "width": width, "height": height}
    attributes = {"label": "ring", "rle": ", ".join(map(str, runs))} | place | more
    return "<mask " + " ".join(f'{key}="{value}"' for key, value in attributes.items()) + "></mask>"


def build(folder: Path, *shapes: str, more: str = "", **options: object) -> BuildReport:
    save_image(folder / "images" / "sub" / "a b.png", noise())
    image = f'<image id="0" name="sub/a b.png" width="{WIDTH}" height="{HEIGHT}">{"".join(shapes)}</image>'
    text = (
        f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta/>{image}{more}</annotations>'
    )
    (folder / "annotations.xml").write_text(text)
    return build_from_cvat(folder / "annotations.xml", folder / "images", folder / "out.bank", **options)


def points(corners: list[list[float]]) -> str:
    return ";".join(f"{x:.2f},{y:.2f}" for x, y in corners)


def turned(x: float, y: float, width: float, height: float, degrees: float) -> list[list[float]]:
    """Corners of a box around its centre, turned clockwise."""
    turn = math.radians(degrees)
    places = [(-width / 2, -height / 2), (width / 2, -height / 2), (width / 2, height / 2), (-width / 2, height / 2)]
    return [
        [x + right * math.cos(turn) - down * math.sin(turn), y + right * math.sin(turn) + down * math.cos(turn)]
        for right, down in places
    ]


def test_shapes_of_cvat(tmp_path: Path) -> None:
    report = build(
        tmp_path,
        f'<polygon label="triangle" source="manual" occluded="0" points="{points(TRIANGLE)}" z_order="0"/>',
        mask_xml(RING, label=" ring "),
        '<ellipse label="disk" cx="40" cy="60" rx="15" ry="15" rotation="30"/>',
        '<ellipse label="oval" cx="60.5" cy="50.5" rx="30" ry="12" rotation="90"/>',
        '<box label="turned" xtl="40" ytl="30" xbr="100" ybr="60" rotation="30"><attribute name="a"/></box>',
    )
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    oval = ((columns - 60) / 12) ** 2 + ((rows - 50) / 30) ** 2 <= 1
    expected = {
        "triangle": [polygon(TRIANGLE)],
        "disk": [disk(40, 60, 15)],
        "oval": [oval],
        "turned": [polygon(turned(70, 45, 60, 30, 30))],
    }
    assert_masks(report, noise(), expected | {"ring": [RING]}, outline=True)
    assert report.rejected == {}
    assert report.repaired == {"class name with space around it": 1}
    assert_masks(build(tmp_path / "exact", mask_xml(RING)), noise(), {"ring": [RING]})


def test_a_mask_that_fills_its_first_pixel(tmp_path: Path) -> None:
    mask = rectangle(5, 7, 20, 10) | rectangle(5, 17, 40, 10)
    assert_masks(build(tmp_path, mask_xml(mask)), noise(), {"ring": [mask]})


def test_boxes_and_groups_of_cvat(tmp_path: Path) -> None:
    shapes = [
        '<box label="cat" xtl="20.00" ytl="10.00" xbr="70.00" ybr="60.00"/>',
        mask_xml(RING, group_id="1"),
        mask_xml(rectangle(10, 60, 30, 20), group_id="1"),
        mask_xml(rectangle(10, 60, 30, 20), group_id="0"),
    ]
    report = build(tmp_path, *shapes)
    assert_masks(report, noise(), {"ring": [RING | rectangle(10, 60, 30, 20), rectangle(10, 60, 30, 20)]})
    report = build(tmp_path / "boxes", *shapes, boxes="box", categories=["cat"])
    (found,) = report.kept.items()
    assert found == ("cat", 1)


def test_what_cannot_be_used_is_counted(tmp_path: Path) -> None:
    report = build(
        tmp_path,
        mask_xml(RING),
        mask_xml(RING, rle="1, 2"),
        mask_xml(RING, left="120"),
        '<polyline label="a" points="1,2;3,4;5,6"/>',
        '<tag label="a"/>',
        '<polygon label="a" points="1,2;x"/>',
        '<box label="a" xtl="3"/>',
        '<box label="" xtl="3" ytl="3" xbr="40" ybr="40"/>',
        more='<track id="0" label="car"><box frame="0" xtl="1" ytl="1" xbr="9" ybr="9"/></track>',
    )
    assert report.kept == {"ring": 1}
    assert report.rejected == {
        "run lengths of the mask do not add up to its box": 1,
        "mask does not lie within the image": 1,
        SHOWS_NO_OBJECT: 1,
        "tag, which has no outline": 1,
        "a point is not x, y": 1,
        "box without ytl": 1,
        "object without a class name": 1,
        "track of a video: export it as CVAT for images": 1,
    }
    (tmp_path / "voc.xml").write_text("<annotation></annotation>")
    with pytest.raises(ValueError, match="expected an XML file of CVAT, with <annotations> at its root"):
        build_from_cvat(tmp_path / "voc.xml", tmp_path, tmp_path / "other.bank")
    (tmp_path / "voc.xml").write_text("{}")
    with pytest.raises(ValueError, match="expected an XML file of CVAT"):
        build_from_cvat(tmp_path / "voc.xml", tmp_path, tmp_path / "other.bank")

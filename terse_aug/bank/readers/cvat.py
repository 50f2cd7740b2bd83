"""CVAT's XML of version 1.1, "CVAT for images"."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from terse_aug.bank.build.report import BuildReport
from terse_aug.bank.inputs.folders import check_folders
from terse_aug.bank.inputs.masks import segmentation_as_json
from terse_aug.bank.inputs.repair import Malformed, Repairs, as_number, class_name
from terse_aug.bank.readers.annotated_images import AnnotationOptions
from terse_aug.bank.readers.annotation_collector import (
    SHOWS_NO_OBJECT,
    AnnotationCollector,
    box_to_polygon,
    ellipse_to_polygon,
    points_to_polygon,
)
from terse_aug.bank.readers.other_formats import names_other_formats
from terse_aug.bank.readers.several_parts import Paths, as_path, takes_several

_TRACK = "track of a video: export it as CVAT for images"


@takes_several()
@names_other_formats
def build_from_cvat(
    file: Paths, images: Paths, out: str | Path, *, names: Sequence[str] | None = None, **options: Any
) -> BuildReport:
    """Build a bank from CVAT's XML for images: polygons, ellipses and masks have masks, boxes none.

    Rotated boxes are polygons. Shapes of one label in a group are one object in several parts. Lines, points,
    skeletons, cuboids and tags are rejected, and so are tracks of videos.

    Args:
        file: the annotations.xml.
        images: folder of the images.
        out: the bank to write.
        names: class names, labelled 1, 2, ... in this order; by default those that occur, sorted.
        options: see :class:`AnnotationOptions`.

    Raises:
        FileNotFoundError: the file or the folder does not exist.
        ValueError: the file is no XML of CVAT, or no object can be read; and as :class:`AnnotationOptions`.
    """
    settings = AnnotationOptions.checked(out, options)
    file, images = as_path(file), as_path(images)
    if not file.is_file():
        raise FileNotFoundError(f"expected an XML file of CVAT at {file}, found none")
    check_folders(images, content="images")
    try:
        tree = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, UnicodeDecodeError, LookupError, ValueError) as error:
        raise ValueError(f"{file}: expected an XML file of CVAT ({error})") from error
    if tree.tag != "annotations":
        raise ValueError(f"{file}: expected an XML file of CVAT, with <annotations> at its root, got <{tree.tag}>")
    collector = AnnotationCollector.with_names(names)
    for image in tree.iter("image"):
        _read_image(image, collector)
    for track in tree.iter("track"):
        collector.log.drop(_TRACK, f"track {track.get('id')} ({track.get('label')})")
    return collector.build("cvat", file.name, images, out, settings)


def _read_image(image: ElementTree.Element, collector: AnnotationCollector) -> None:
    name = (image.get("name") or "").strip()
    size = _side(image, "height"), _side(image, "width")
    number = collector.add_image(name, *size)
    for row, shape in enumerate(image, 1):
        where = f"{name}, shape {row}"
        repairs: Repairs = set()
        try:
            label, converted = class_name(shape.get("label"), repairs), _convert(shape, size)
        except Malformed as reason:
            collector.reject(str(reason), where, number)
            continue
        collector.log.repair(repairs, where)
        group = (shape.get("group_id") or "0").strip()
        collector.add_part(number, label, None if group in ("0", "") else group, row, **converted)


def _side(image: ElementTree.Element, name: str) -> int:
    """Height or width of the image in px, 0 if it is missing."""
    try:
        return max(0, int(as_number(image.get(name))))
    except Malformed:
        return 0


def _numbers(shape: ElementTree.Element, *names: str) -> list[float]:
    if missing := [name for name in names if shape.get(name) is None]:
        raise Malformed(f"{shape.tag} without {missing[0]}")
    return [as_number(shape.get(name)) for name in names]


def _convert(shape: ElementTree.Element, size: tuple[int, int]) -> dict[str, Any]:
    """A shape as ``segmentation`` or ``bbox`` of COCO."""
    angle = math.radians(as_number(shape.get("rotation") or 0))
    if shape.tag == "box":
        left, top, right, bottom = _numbers(shape, "xtl", "ytl", "xbr", "ybr")
        box = (left, top, right - left, bottom - top)
        return {"segmentation": [box_to_polygon(*box, angle)]} if angle else {"bbox": list(box)}
    if shape.tag == "polygon":
        points = [point.split(",") for point in (shape.get("points") or "").split(";")]
        return {"segmentation": [points_to_polygon(points)]}
    if shape.tag == "ellipse":
        x, y, radius_x, radius_y = _numbers(shape, "cx", "cy", "rx", "ry")
        return {"segmentation": [ellipse_to_polygon(x, y, radius_x, radius_y, angle)]}
    if shape.tag == "mask":
        return {"segmentation": _decode_mask(shape, size)}
    if shape.tag in ("polyline", "points", "skeleton", "cuboid", "tag"):
        raise Malformed(
            SHOWS_NO_OBJECT if shape.tag in ("polyline", "points") else f"{shape.tag}, which has no outline"
        )
    raise Malformed("shape of an unknown kind")


def _decode_mask(shape: ElementTree.Element, size: tuple[int, int]) -> Any:
    """A mask in run lengths, row by row of a box, of which the first is background."""
    left, top, width, height = (int(value) for value in _numbers(shape, "left", "top", "width", "height"))
    if not all(size):
        raise Malformed("mask in a file without the image's size")
    if left < 0 or top < 0 or width < 1 or height < 1 or top + height > size[0] or left + width > size[1]:
        raise Malformed("mask does not lie within the image")
    runs = [int(as_number(run.strip())) for run in (shape.get("rle") or "").split(",")]
    if min(runs) < 0 or sum(runs) != width * height:
        raise Malformed("run lengths of the mask do not add up to its box")
    whole = np.zeros(size, np.uint8)
    part = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8)
    whole[top : top + height, left : left + width] = part.reshape(height, width)
    return segmentation_as_json(whole)

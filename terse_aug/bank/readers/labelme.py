"""LabelMe's JSON files, one for each image. Imports numpy and pillow, beside the parts of this package."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from terse_aug.bank.inputs.images import BROKEN_FILE, is_file
from terse_aug.bank.inputs.masks import segmentation_as_json
from terse_aug.bank.inputs.repair import TEXT_NUMBER, Malformed, Notes, as_number, class_name, has_text
from terse_aug.bank.readers.annotation_collector import (
    CLAIMED,
    Collector,
    Reading,
    as_points,
    corners_to_box,
    ellipse_to_polygon,
    numbered,
)


def read_labelme(folder: Path, images: Path | None = None, names: Sequence[str] | None = None) -> Reading:
    """Read LabelMe's files: polygons, circles and masks are masks, rectangles are boxes.

    Polygons and circles of one label with the same ``group_id`` are one object in several parts. Lines and points are
    left out.

    Args:
        folder: of the JSON files, searched at any depth.
        images: folder of the images, in the same subfolders or in none; by default each lies where its JSON says, or
            else beside it.
        names: of the classes, labelled 1, 2, ... in this order; by default those that are met, in the order of the
            names.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: no object can be read.
    """
    for place in (folder, images):
        if place is not None and not place.is_dir():
            raise FileNotFoundError(f"expected a folder at {place}, found none")
    root = images or folder
    sharing: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    collected = Collector(numbered(names))
    for path in sorted(folder.rglob("*.json")):
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, OSError, RecursionError) as error:
            collected.ledger.drop("JSON file cannot be read", f"{path.name}: {error}")
            continue
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            collected.ledger.drop("not a file of LabelMe's", path.name)
            continue
        size = _size(content)
        name, stands_in = _image_of(path, content, folder, images)
        number = collected.image(name, *(size or ()))
        _read_shapes(content["shapes"], number, size, path.name, collected)
        if stands_in:
            sharing[name].append((number, path.relative_to(folder)))
    _withdraw_shared(sharing, collected)
    return collected.reading("labelme", folder.name, root)


def _image_of(path: Path, content: dict[str, Any], folder: Path, images: Path | None) -> tuple[str, bool]:
    """Name of the image relative to the folder of images, the one that the file says if none is there; and whether it
    was found in that folder for want of one in the subfolder of the file."""
    said = str(content.get("imagePath") or "").replace("\\", "/")
    bases = [path.parent] if images is None else [images / path.parent.relative_to(folder), images]
    names = [said, Path(said).name, *(path.stem + suffix for suffix in (".jpg", ".png", ".jpeg"))]
    places = [(base / name, base) for base in bases for name in names if name]
    place, base = next(((place, base) for place, base in places if is_file(place)), places[0])
    found, root = os.path.abspath(place), os.path.abspath(images or folder)
    # Not resolved: a link has the name that it is known by.
    name = Path(os.path.relpath(found, root)).as_posix() if found.startswith(root + os.sep) else found
    return name, base != bases[0]


def _withdraw_shared(sharing: dict[str, list[tuple[int, Path]]], collected: Collector) -> None:
    """Drop what files of several folders say of one image that stands in for theirs: it can be that of one only."""
    used = collected.has_objects()
    lost: dict[int, str] = {}
    for files in sharing.values():
        told = [(number, file) for number, file in files if number in used]
        if len({file.parent for _, file in told}) > 1:
            lost |= {number: file.as_posix() for number, file in told}
    collected.withdraw(lost, CLAIMED)


def _size(content: dict[str, Any]) -> tuple[int, int] | None:
    try:
        height, width = int(as_number(content.get("imageHeight"))), int(as_number(content.get("imageWidth")))
    except Malformed:
        return None
    return (height, width) if 0 < height <= _LARGEST_SIDE and 0 < width <= _LARGEST_SIDE else None


_LARGEST_SIDE = 2**15


def _read_shapes(shapes: list[Any], image: int, size: tuple[int, int] | None, where: str, collected: Collector) -> None:
    groups: dict[Any, list[list[float]]] = {}
    for row, shape in enumerate(shapes, 1):
        place = f"{where}, shape {row}"
        notes: Notes = set()
        try:
            label = class_name(shape.get("label") if isinstance(shape, dict) else None, notes)
            found = _shape(shape, size)
        except Malformed as reason:
            collected.drop(str(reason), place, image)
            continue
        if any(has_text(point) for point in shape["points"]):
            notes.add(TEXT_NUMBER)
        collected.ledger.repair(notes, place)
        group = shape.get("group_id")
        if not isinstance(group, int | str) or group == "" or not isinstance(found.get("segmentation"), list):
            collected.object(image, label, row, **found)
        elif (label, group) in groups:
            groups[label, group].extend(found["segmentation"])
        else:
            groups[label, group] = found["segmentation"]
            collected.object(image, label, row, segmentation=groups[label, group])


def _shape(shape: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    kind = shape.get("shape_type") or "polygon"
    points = as_points(shape.get("points"))
    if kind == "polygon":
        return {"segmentation": [points]}
    if kind == "rectangle" and len(points) == 8:  # all four corners
        points = [min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])]
    if kind in ("rectangle", "circle", "mask") and len(points) != 4:
        raise Malformed(f"{kind} is not two points")
    if kind == "rectangle":
        return {"bbox": corners_to_box(*points)}
    if kind == "circle":
        radius = math.hypot(points[2] - points[0], points[3] - points[1])
        return {"segmentation": [ellipse_to_polygon(points[0], points[1], radius, radius)]}
    if kind == "mask":
        return {"segmentation": _mask(shape.get("mask"), points, size)}
    if kind in ("line", "linestrip", "point", "points"):
        raise Malformed("shape is a line or a point, which shows no object")
    raise Malformed("shape of an unknown kind")


def _mask(encoded: Any, points: list[float], size: tuple[int, int] | None) -> Any:
    """A PNG in base64, whose first corner lies at the first point."""
    if size is None:
        raise Malformed("mask in a file without the image's size")
    try:
        png = base64.b64decode(str(encoded), validate=True)
        with Image.open(io.BytesIO(png)) as image:
            shown: NDArray[np.bool_] = np.asarray(image.convert("L")) > 0
    except (binascii.Error, *BROKEN_FILE) as error:
        raise Malformed("mask is no PNG in base64") from error
    left, top = round(points[0]), round(points[1])
    whole = np.zeros(size, np.uint8)
    if left < 0 or top < 0 or top + shown.shape[0] > size[0] or left + shown.shape[1] > size[1]:
        raise Malformed("mask does not lie within the image")
    whole[top : top + shown.shape[0], left : left + shown.shape[1]] = shown
    return segmentation_as_json(whole)

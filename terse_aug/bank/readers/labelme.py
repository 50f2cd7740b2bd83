"""LabelMe: a JSON file for each image."""

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

from terse_aug.bank.build.report import BuildReport
from terse_aug.bank.inputs.folders import check_folders
from terse_aug.bank.inputs.image_endings import image_endings
from terse_aug.bank.inputs.images import BROKEN_FILE, is_file
from terse_aug.bank.inputs.masks import segmentation_as_json
from terse_aug.bank.inputs.repair import TEXT_NUMBER, Malformed, Repairs, as_number, class_name, contains_text
from terse_aug.bank.readers.annotated_images import AnnotationOptions
from terse_aug.bank.readers.annotation_collector import (
    SHARED_IMAGE,
    AnnotationCollector,
    ellipse_to_polygon,
    points_to_polygon,
)

_MAX_SIDE = 2**15


def build_from_labelme(
    folder: str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    names: Sequence[str] | None = None,
    **options: Any,
) -> BuildReport:
    """Build a bank from LabelMe's JSON files: polygons, circles and masks have masks, rectangles boxes only.

    Polygons and circles of one label with the same ``group_id`` are one object in several parts. Lines and points are
    rejected.

    Args:
        folder: folder of the JSON files, searched at any depth.
        out: the bank to write.
        images: folder of the images, in the same subfolders or in none; by default at the path in the JSON file, or
            else beside it.
        names: class names, labelled 1, 2, ... in this order; by default those that occur, sorted.
        options: see :class:`AnnotationOptions`.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: no object can be read; and as :class:`AnnotationOptions`.
    """
    settings = AnnotationOptions.checked(out, options)
    folder, images = Path(folder), None if images is None else Path(images)
    check_folders(folder, images)
    files_of_image: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    collector = AnnotationCollector.with_names(names)
    for path in sorted(folder.rglob("*.json")):
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, OSError, RecursionError) as error:
            collector.log.drop("JSON file cannot be read", f"{path.name}: {error}")
            continue
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            collector.log.drop("not a LabelMe file", path.name)
            continue
        size = _size(content)
        name, is_substitute = _find_image(path, content, folder, images)
        number = collector.add_image(name, *(size or ()))
        _read_shapes(content["shapes"], number, size, path.name, collector)
        if is_substitute:
            files_of_image[name].append((number, path.relative_to(folder)))
    _reject_shared_images(files_of_image, collector)
    return collector.build("labelme", folder.name, images or folder, out, settings)


def _find_image(path: Path, content: dict[str, Any], folder: Path, images: Path | None) -> tuple[str, bool]:
    """Name of the image of a JSON file, relative to the folder of images, or as written if no file is found.

    And whether it lies in that folder itself instead of the JSON file's subfolder of it.
    """
    written_name = str(content.get("imagePath") or "").replace("\\", "/")
    bases = [path.parent] if images is None else [images / path.parent.relative_to(folder), images]
    names = [written_name, Path(written_name).name, *(path.stem + suffix for suffix in image_endings())]
    places = [(base / name, base) for base in bases for name in names if name]
    place, base = next(((place, base) for place, base in places if is_file(place)), places[0])
    file, root = os.path.abspath(place), os.path.abspath(images or folder)
    # Not resolved: a link keeps its own name.
    name = Path(os.path.relpath(file, root)).as_posix() if file.startswith(root + os.sep) else file
    return name, base != bases[0]


def _reject_shared_images(files_of_image: dict[str, list[tuple[int, Path]]], collector: AnnotationCollector) -> None:
    """Reject images that JSON files of several subfolders share because their own are missing."""
    used = collector.images_with_objects()
    shared: dict[int, str] = {}
    for files in files_of_image.values():
        with_objects = [(number, file) for number, file in files if number in used]
        if len({file.parent for _, file in with_objects}) > 1:
            shared |= {number: file.as_posix() for number, file in with_objects}
    collector.reject_images(shared, SHARED_IMAGE)


def _size(content: dict[str, Any]) -> tuple[int, int] | None:
    try:
        height, width = int(as_number(content.get("imageHeight"))), int(as_number(content.get("imageWidth")))
    except Malformed:
        return None
    return (height, width) if 0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE else None


def _read_shapes(
    shapes: list[Any], image: int, size: tuple[int, int] | None, file: str, collector: AnnotationCollector
) -> None:
    groups: dict[Any, list[list[float]]] = {}
    for row, shape in enumerate(shapes, 1):
        where = f"{file}, shape {row}"
        repairs: Repairs = set()
        try:
            label = class_name(shape.get("label") if isinstance(shape, dict) else None, repairs)
            converted = _convert(shape, size)
        except Malformed as reason:
            collector.reject(str(reason), where, image)
            continue
        if any(contains_text(point) for point in shape["points"]):
            repairs.add(TEXT_NUMBER)
        collector.log.repair(repairs, where)
        group, polygons = shape.get("group_id"), converted.get("segmentation")
        if not isinstance(group, int | str) or group == "" or not isinstance(polygons, list):
            collector.add_object(image, label, row, **converted)
        elif (label, group) in groups:
            groups[label, group].extend(polygons)
        else:
            groups[label, group] = polygons
            collector.add_object(image, label, row, segmentation=polygons)


def _convert(shape: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """A shape as ``segmentation`` or ``bbox`` of COCO."""
    kind = shape.get("shape_type") or "polygon"
    points = points_to_polygon(shape.get("points"))
    if kind == "polygon":
        return {"segmentation": [points]}
    if kind == "rectangle" and len(points) == 8:  # all four corners
        points = [min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])]
    if kind in ("rectangle", "circle", "mask") and len(points) != 4:
        raise Malformed(f"{kind} is not two points")
    if kind == "rectangle":
        x0, y0, x1, y1 = points
        return {"bbox": [min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)]}
    if kind == "circle":
        radius = math.hypot(points[2] - points[0], points[3] - points[1])
        return {"segmentation": [ellipse_to_polygon(points[0], points[1], radius, radius)]}
    if kind == "mask":
        return {"segmentation": _decode_mask(shape.get("mask"), points, size)}
    if kind in ("line", "linestrip", "point", "points"):
        raise Malformed("shape is a line or a point, which shows no object")
    raise Malformed("shape of an unknown kind")


def _decode_mask(encoded: Any, points: list[float], size: tuple[int, int] | None) -> Any:
    """A PNG in base64, whose top left corner lies at the first point."""
    if size is None:
        raise Malformed("mask in a file without the image's size")
    try:
        png = base64.b64decode(str(encoded), validate=True)
        with Image.open(io.BytesIO(png)) as image:
            mask: NDArray[np.bool_] = np.asarray(image.convert("L")) > 0
    except (binascii.Error, *BROKEN_FILE) as error:
        raise Malformed("mask is no PNG in base64") from error
    left, top = round(points[0]), round(points[1])
    whole = np.zeros(size, np.uint8)
    if left < 0 or top < 0 or top + mask.shape[0] > size[0] or left + mask.shape[1] > size[1]:
        raise Malformed("mask does not lie within the image")
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return segmentation_as_json(whole)

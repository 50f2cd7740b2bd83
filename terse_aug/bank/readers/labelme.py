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
    SHOWS_NO_OBJECT,
    AnnotationCollector,
    around_points,
    ellipse_to_polygon,
    points_to_polygon,
)
from terse_aug.bank.readers.other_formats import names_other_formats
from terse_aug.bank.readers.several_parts import Paths, as_path, takes_several

_MAX_SIDE = 2**15
_NO_CLASSES = ("__ignore__", "_background_")
"""Labels of LabelMe for regions to ignore, and for what is no object."""
_QUADRILATERALS = ("rotation", "quadrilateral", "oriented_rectangle")
"""Kinds of shapes with four corners, of LabelMe and X-AnyLabeling."""


@takes_several()
@names_other_formats
def build_from_labelme(
    folder: Paths,
    out: str | Path,
    *,
    images: Paths | None = None,
    names: Sequence[str] | None = None,
    **options: Any,
) -> BuildReport:
    """Build a bank from LabelMe's JSON files: polygons, circles and masks have masks, rectangles boxes only.

    Rotated rectangles and quadrilaterals are polygons. Shapes of one label with the same ``group_id`` are one object in
    several parts. Lines, points, and shapes labelled ``__ignore__`` or ``_background_`` are rejected. An image that is
    in the JSON file (``imageData``) is used if there is no file of it.

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
    folder, images = as_path(folder), None if images is None else as_path(images)
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
        # The image in the JSON file is its own; a file of another folder may not be.
        is_embedded = bool(content.get("imageData")) and (is_substitute or not is_file((images or folder) / name))
        is_substitute &= not is_embedded
        height, width = size or (None, None)
        number = collector.add_image(name, height, width, path if is_embedded else None)
        _read_shapes(content["shapes"], number, size, path.name, collector)
        if is_substitute:
            files_of_image[name].append((number, path.relative_to(folder)))
    collector.reject_shared_images(files_of_image)
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


def _size(content: dict[str, Any]) -> tuple[int, int] | None:
    try:
        height, width = int(as_number(content.get("imageHeight"))), int(as_number(content.get("imageWidth")))
    except Malformed:
        return None
    return (height, width) if 0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE else None


def _read_shapes(
    shapes: list[Any], image: int, size: tuple[int, int] | None, file: str, collector: AnnotationCollector
) -> None:
    for row, shape in enumerate(shapes, 1):
        where = f"{file}, shape {row}"
        repairs: Repairs = set()
        try:
            label = class_name(shape.get("label") if isinstance(shape, dict) else None, repairs)
            if label in _NO_CLASSES:
                raise Malformed(f"marked as no object ({label})")
            converted = _convert(shape, size)
        except Malformed as reason:
            collector.reject(str(reason), where, image)
            continue
        if any(contains_text(point) for point in shape["points"]):
            repairs.add(TEXT_NUMBER)
        collector.log.repair(repairs, where)
        group = shape.get("group_id")
        group = group if isinstance(group, int | str) and group != "" else None
        collector.add_part(image, label, group, row, **converted)


def _convert(shape: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """A shape as ``segmentation`` or ``bbox`` of COCO."""
    kind = shape.get("shape_type") or "polygon"
    points = points_to_polygon(shape.get("points"))
    if kind == "polygon":
        return {"segmentation": [points]}
    if kind in _QUADRILATERALS or (kind == "rectangle" and len(points) == 8 and not _is_upright(points)):
        if len(points) != 8:
            raise Malformed(f"{kind} is not four points")
        return {"segmentation": [points]}
    if kind == "rectangle" and len(points) == 8:
        left, top, width, height = around_points(points)
        points = [left, top, left + width, top + height]
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
        raise Malformed(SHOWS_NO_OBJECT)
    raise Malformed("shape of an unknown kind")


def _is_upright(points: list[float]) -> bool:
    """Whether four corners are those of their box, each once, up to a pixel."""
    left, top, width, height = around_points(points)
    corners = [(u, v) for u in (left, left + width) for v in (top, top + height)]
    found: set[tuple[float, float]] = set()
    for x, y in zip(points[::2], points[1::2], strict=True):
        found |= {(u, v) for u, v in corners if max(abs(x - u), abs(y - v)) <= 1}
    return len(found) == 4


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

"""Label Studio's JSON and JSON-MIN exports."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.build.report import BuildLog, BuildReport
from terse_aug.bank.inputs.folders import check_folders, visible_files
from terse_aug.bank.inputs.image_endings import is_image_name
from terse_aug.bank.inputs.masks import segmentation_as_json
from terse_aug.bank.inputs.repair import Malformed, Repairs, as_number, class_name
from terse_aug.bank.readers.annotated_images import AnnotationOptions
from terse_aug.bank.readers.annotation_collector import (
    SHOWS_NO_OBJECT,
    AnnotationCollector,
    ellipse_to_polygon,
    points_to_polygon,
)
from terse_aug.bank.readers.other_formats import names_other_formats
from terse_aug.bank.readers.several_parts import Paths, as_path, takes_several

UPLOADED = "file name with the prefix that Label Studio gives to uploads"
"""A repair."""
_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")
_LOCAL_FILES = "data/local-files/?"
"""Label Studio's address of a file of its own computer, followed by ``d=folder/image.jpg``."""
_SOLID = 128


@takes_several()
@names_other_formats
def build_from_label_studio(
    file: Paths, images: Paths, out: str | Path, *, names: Sequence[str] | None = None, **options: Any
) -> BuildReport:
    """Build a bank from Label Studio's JSON or JSON-MIN: polygons, ellipses and brushes have masks, rectangles none.

    Rotated rectangles are polygons. Of a brush, pixels of at least half of its opacity count. Of several annotations of
    a task the one marked as ground truth is used, or else the first; predictions are not. Key points are rejected.

    Args:
        file: the JSON file.
        images: folder of the images, under their own names or those of Label Studio's uploads, in the same subfolders
            or in none.
        out: the bank to write.
        names: class names, labelled 1, 2, ... in this order; by default those that occur, sorted.
        options: see :class:`AnnotationOptions`.

    Raises:
        FileNotFoundError: the file or the folder does not exist.
        ValueError: the file is no export of Label Studio, or no object can be read; and as :class:`AnnotationOptions`.
    """
    settings = AnnotationOptions.checked(out, options)
    file, images = as_path(file), as_path(images)
    if not file.is_file():
        raise FileNotFoundError(f"expected a JSON export of Label Studio at {file}, found none")
    check_folders(images, content="images")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected a JSON export of Label Studio ({error})") from error
    tasks = content if isinstance(content, list) else [content]
    if not any(isinstance(task, dict) and ("data" in task or _regions_of_min(task)) for task in tasks):
        raise ValueError(f"{file}: expected a JSON export of Label Studio, a list of tasks, each with data")
    collector = AnnotationCollector.with_names(names)
    files = {path.name for path in visible_files(images)}
    uploads: dict[str, list[tuple[str, int, str]]] = defaultdict(list)
    for row, task in enumerate(tasks, 1):
        where = f"task {task.get('id', row) if isinstance(task, dict) else row}"
        try:
            written, regions = _image_of(task), list(_regions(task, where, collector.log))
        except Malformed as reason:
            collector.log.drop(str(reason), where)
            continue
        name = _without_prefix(written, files)
        image = _read_regions(regions, name, where, collector)
        if name != written:
            collector.log.repair([UPLOADED], written)
            uploads[name].append((written, image, where))
    several = [own for own in uploads.values() if len({written for written, _, _ in own}) > 1]
    shared = {image: where for own in several for _, image, where in own}
    collector.reject_images(shared, "image may be that of several uploads of its name")
    return collector.build("label_studio", file.name, images, out, settings)


def _image_of(task: Any) -> str:
    """The path of a task's image, from a path or an address."""
    data = task.get("data", task) if isinstance(task, dict) else None
    if not isinstance(data, dict):
        raise Malformed("task without data")
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value.strip()}
    found = [own for own in map(_path, texts.values()) if is_image_name(own)]
    if "image" in texts:
        return _path(texts["image"])
    if len(found) != 1:
        raise Malformed("task with several images, or without an image")
    return found[0]


def _path(address: str) -> str:
    """The path in an address. Only addresses of the web end in ? or # and more; elsewhere names may contain both."""
    address = address.strip().replace("\\", "/")
    _, _, query = address.partition(_LOCAL_FILES)
    if names := parse_qs(query).get("d"):
        return names[0].lstrip("/")
    scheme, is_address, rest = address.partition("://")
    if not is_address:
        return address.lstrip("/")
    path = rest.partition("/")[2].lstrip("/")
    return unquote(re.split("[?#]", path)[0]) if scheme.lower() in ("http", "https") else path


def _without_prefix(path: str, files: Iterable[str]) -> str:
    """The path of an image as it was before it was uploaded, if only that file exists."""
    place = PurePosixPath(path)
    plain = _PREFIX.sub("", place.name)
    return place.with_name(plain).as_posix() if place.name not in files and plain in files else path


def _regions(task: dict[str, Any], where: str, log: BuildLog) -> Iterator[dict[str, Any]]:
    """The regions of a task, each with all that its parts say of it."""
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list):
        yield from _regions_of_min(task)
        return
    valid = [own for own in annotations if isinstance(own, dict) and isinstance(own.get("result"), list)]
    used = [own for own in valid if not own.get("was_cancelled")]
    used.sort(key=lambda own: not own.get("ground_truth"))
    if len(valid) > len(used):
        log.drop("annotation that was skipped by its annotator", where, len(valid) - len(used))
    if not used:
        raise Malformed("task without an annotation")
    for other in used[1:]:
        log.drop("region of another annotation of the same task", where, len(other["result"]))
    by_id: dict[Any, dict[str, Any]] = {}
    for row, part in enumerate(used[0]["result"]):
        value = part.get("value") if isinstance(part, dict) else None
        if not isinstance(value, dict):
            log.drop("result that is no region, such as a relation", where)
            continue
        kept = {key: part[key] for key in ("original_width", "original_height", "image_rotation") if key in part}
        by_id.setdefault(str(part.get("id", row)), {}).update(kept | value)
    for region in by_id.values():
        if "original_width" in region:
            yield region
        else:
            log.drop("result that is no region, such as a class of the whole image", where)


def _regions_of_min(task: Any) -> list[dict[str, Any]]:
    values = list(task.values()) if isinstance(task, dict) else []
    parts = [part for value in values if isinstance(value, list) for part in value]
    return [part for part in parts if isinstance(part, dict) and "original_width" in part]


def _read_regions(regions: list[dict[str, Any]], name: str, where: str, collector: AnnotationCollector) -> int:
    """Add the image of a task with its objects; returns its number."""
    sizes = {(region.get("original_height"), region.get("original_width")) for region in regions}
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    size = (height, width) if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0 else None
    image = collector.add_image(name, *(size or ()))
    for row, region in enumerate(regions, 1):
        repairs: Repairs = set()
        try:
            if size is None:
                raise Malformed("region without the size of its image")
            if region.get("image_rotation"):
                raise Malformed("image that was rotated in Label Studio")
            label, shape = _class(region, repairs), _convert(region, *size)
        except Malformed as reason:
            collector.reject(str(reason), f"{where}, region {row}", image)
        else:
            collector.log.repair(repairs, f"{where}, region {row}")
            collector.add_object(image, label, row, **shape)
    return image


def _class(region: Mapping[str, Any], repairs: Repairs) -> str:
    lists = [value for key, value in region.items() if key.endswith("labels") and isinstance(value, list)]
    labels = list(dict.fromkeys(label for value in lists for label in value if isinstance(label, str)))
    if len(labels) > 1:
        raise Malformed("region of several classes")
    return class_name(labels[0] if labels else None, repairs)


def _convert(region: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """A region's shape, in per cent of the image, as ``segmentation`` or ``bbox`` of COCO."""
    if "rle" in region:
        return {"segmentation": segmentation_as_json(_decode_brush(region["rle"], height, width))}
    if "points" in region:
        points = points_to_polygon(region["points"])
        if region.get("closed") is False:
            raise Malformed(SHOWS_NO_OBJECT)
        return {"segmentation": [[value * (height if at % 2 else width) / 100 for at, value in enumerate(points)]]}
    angle = math.radians(as_number(region.get("rotation") or 0))
    if "radiusX" in region:
        x, y, across, down = (as_number(region.get(key)) / 100 for key in ("x", "y", "radiusX", "radiusY"))
        return {"segmentation": [ellipse_to_polygon(x * width, y * height, across * width, down * height, angle)]}
    if not {"x", "y", "width", "height"} <= region.keys():
        raise Malformed(SHOWS_NO_OBJECT)
    x, y, across, down = (as_number(region[key]) / 100 for key in ("x", "y", "width", "height"))
    x, y, across, down = x * width, y * height, across * width, down * height
    if not angle:
        return {"bbox": [x, y, across, down]}
    right = (across * math.cos(angle), across * math.sin(angle))
    below = (-down * math.sin(angle), down * math.cos(angle))
    corners = [(0, 0), right, (right[0] + below[0], right[1] + below[1]), below]  # it turns about its first corner
    return {"segmentation": [[value for dx, dy in corners for value in (x + dx, y + dy)]]}


def _decode_brush(rle: Any, height: int, width: int) -> NDArray[np.uint8]:
    """The alpha of an image in Label Studio's run lengths (those of @thi.ng/rle-pack) as a mask of 0 and 1.

    A header has the number of values (32 bits), the bits of a value (5), and four sizes of run lengths (4 each); a run
    has a bit, 1 if all its values are the same, the number of a size, its length, and its value or values.
    """
    if not isinstance(rle, list) or not all(type(byte) is int and 0 <= byte < 256 for byte in rle):
        raise Malformed("run lengths of the brush are damaged")
    bits = "".join(f"{byte:08b}" for byte in rle)
    position = 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        if position > len(bits):
            raise Malformed("run lengths of the brush are damaged")
        return int(bits[position - count : position], 2)

    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    if word != 8:
        raise Malformed("run lengths of the brush are damaged")
    if count != 4 * height * width:
        raise Malformed("brush and image differ in size")
    values = np.zeros(count, np.uint8)
    done = 0
    while done < count:
        same, length = read(1), read(sizes[read(2)]) + 1
        end = min(done + length, count)
        values[done:end] = read(word) if same else [read(word) for _ in range(end - done)]
        done = end
    return (values[3::4] >= _SOLID).reshape(height, width).astype(np.uint8)

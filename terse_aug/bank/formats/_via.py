"""VGG Image Annotator's exports: JSON or CSV of version 1 and 2, and its project. Imports the standard library."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from terse_aug.bank.formats._reading import Collector, Malformed, Reading, as_number, as_points, ellipse_to_polygon


def read_via(file: Path, images: Path, attribute: str | None = None) -> Reading:
    """Read an export of VIA: polygons, polylines, circles and ellipses are masks, rectangles are boxes.

    Args:
        file: the JSON (annotations or project) or the CSV.
        images: folder of the images.
        attribute: of the regions, whose value is the class; by default the one that most regions have. Of a checkbox
            the option that is set, if it is one. Regions without any attribute are of the class ``object``.

    Raises:
        FileNotFoundError: the file or the folder does not exist.
        ValueError: it is no export of VIA's, no region has the attribute, or no object can be read.
    """
    if not file.is_file():
        raise FileNotFoundError(f"expected an export of VIA at {file}, found none")
    if not images.is_dir():
        raise FileNotFoundError(f"expected a folder of images at {images}, found none")
    try:
        text = file.read_text(encoding="utf-8-sig")
        entries = list(_from_csv(text) if file.suffix.lower() == ".csv" else _from_json(text))
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise ValueError(f"{file}: expected an export of VIA (JSON or CSV of version 1 or 2): {error!r}") from error
    named = Counter(key for _, regions in entries for region in regions for key in _attributes(region))
    if attribute is not None and attribute not in named:
        raise ValueError(f"{file}: no region has the attribute {attribute!r}; there are {', '.join(sorted(named))}")
    chosen = attribute or next((key for key, _ in named.most_common(1)), None)
    collected = Collector()
    for name, regions in entries:
        number = collected.image(name)
        for row, region in enumerate(regions, 1):
            try:
                collected.object(number, _class(region, chosen), row, **_shape(region))
            except Malformed as reason:
                collected.dropped.add(str(reason), f"{name}, region {row}")
    return collected.reading("via", file.name, images)


def _from_json(text: str) -> Iterator[tuple[str, list[Any]]]:
    content = json.loads(text)
    content = content.get("_via_img_metadata", content)
    for entry in content.values():
        regions = entry["regions"]
        yield str(entry["filename"]), list(regions.values() if isinstance(regions, Mapping) else regions)


def _from_csv(text: str) -> Iterator[tuple[str, list[Any]]]:
    regions: dict[str, list[Any]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        # The first column's name has had a mark before it in some versions.
        name = next(value for key, value in row.items() if key is not None and key.strip("#") == "filename")
        shape = json.loads(row["region_shape_attributes"] or "{}")
        of_image = regions.setdefault(name, [])
        if shape:
            attributes = json.loads(row["region_attributes"] or "{}")
            of_image.append({"shape_attributes": shape, "region_attributes": attributes})
    yield from regions.items()


def _attributes(region: Any) -> Iterable[str]:
    attributes = region.get("region_attributes") if isinstance(region, Mapping) else None
    return attributes.keys() if isinstance(attributes, Mapping) else ()


def _class(region: Any, attribute: str | None) -> str:
    if attribute is None:
        return "object"
    if attribute not in _attributes(region):
        raise Malformed("region without the attribute of the class")
    value = region["region_attributes"][attribute]
    if isinstance(value, Mapping):
        chosen = [key for key, is_set in value.items() if is_set]
        if len(chosen) != 1:
            raise Malformed("region with several options of the class, or none")
        value = chosen[0]
    if not str(value).strip():
        raise Malformed("region without a class name")
    return str(value).strip()


def _shape(region: Any) -> dict[str, Any]:
    shape = region.get("shape_attributes") if isinstance(region, Mapping) else None
    if not isinstance(shape, Mapping):
        raise Malformed("region without a shape")
    kind = shape.get("name")
    if kind in ("polygon", "polyline"):
        across, down = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(across, list) or not isinstance(down, list) or len(across) != len(down):
            raise Malformed("polygon with other numbers of x than of y")
        return {"segmentation": [as_points(list(zip(across, down, strict=True)))]}
    if kind == "rect":
        return {"bbox": [as_number(shape.get(key)) for key in ("x", "y", "width", "height")]}
    if kind == "circle":
        x, y, radius = (as_number(shape.get(key)) for key in ("cx", "cy", "r"))
        return {"segmentation": [ellipse_to_polygon(x, y, radius, radius)]}
    if kind == "ellipse":
        x, y, across, down = (as_number(shape.get(key)) for key in ("cx", "cy", "rx", "ry"))
        return {"segmentation": [ellipse_to_polygon(x, y, across, down, as_number(shape.get("theta", 0)))]}
    raise Malformed("shape is a line or a point, which shows no object")

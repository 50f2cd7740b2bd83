"""VGG Image Annotator's exports: JSON or CSV of version 1 and 2, and its project. Imports the standard library."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from terse_aug.bank.inputs.repair import TEXT_NUMBER, Malformed, Notes, as_number, class_name, has_text
from terse_aug.bank.readers.annotation_collector import (
    Collector,
    Reading,
    as_points,
    ellipse_to_polygon,
    numbered,
)


def read_via(file: Path, images: Path, attribute: str | None = None, names: Sequence[str] | None = None) -> Reading:
    """Read an export of VIA: polygons, polylines, circles and ellipses are masks, rectangles are boxes.

    Args:
        file: the JSON (annotations or project) or the CSV.
        images: folder of the images.
        attribute: of the regions, whose value is the class; by default the one that is filled in most often. Of a
            checkbox the option that is set, if it is one. If none is filled in, all regions are of the class
            ``object``.
        names: of the classes, labelled 1, 2, ... in this order; by default those that are met, in the order of the
            names.

    Raises:
        FileNotFoundError: the file or the folder does not exist.
        ValueError: it is no export of VIA's, no region has the attribute, several are filled in as often and none is
            chosen, or no object can be read.
    """
    if not file.is_file():
        raise FileNotFoundError(f"expected an export of VIA at {file}, found none")
    if not images.is_dir():
        raise FileNotFoundError(f"expected a folder of images at {images}, found none")
    try:
        text = file.read_text(encoding="utf-8-sig")
        collected = Collector(numbered(names))
        read = _from_csv if file.suffix.lower() == ".csv" else _from_json
        entries = list(read(text, collected))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise ValueError(f"{file}: expected an export of VIA (JSON or CSV of version 1 or 2): {error!r}") from error
    chosen = _chosen(attribute, [region for _, regions in entries for region in regions], file)
    for name, regions in entries:
        number = collected.image(name)
        for row, region in enumerate(regions, 1):
            notes: Notes = set()
            try:
                collected.object(number, _class(region, chosen, notes), row, **_shape(region, notes))
            except Malformed as reason:
                collected.drop(str(reason), f"{name}, region {row}", number)
            else:
                collected.ledger.repair(notes, f"{name}, region {row}")
    return collected.reading("via", f"{file.name} ({chosen or 'no attribute'})", images)


def _chosen(attribute: str | None, regions: Sequence[Any], file: Path) -> str | None:
    """The attribute that is the class."""
    filled = Counter(key for region in regions for key, value in _attributes(region).items() if value)
    if attribute is not None and attribute not in filled:
        raise ValueError(f"{file}: no region has the attribute {attribute!r}; there are {', '.join(sorted(filled))}")
    first, second = [*filled.most_common(2), (None, 0), (None, 0)][:2]
    if attribute is None and first[1] == second[1] > 0:
        raise ValueError(
            f"{file}: which of the regions' attributes is the class? There are {', '.join(sorted(filled))}: choose one "
            "(attribute, --attribute)"
        )
    return attribute or first[0]


def _from_json(text: str, collected: Collector) -> Iterator[tuple[str, list[Any]]]:
    content = json.loads(text)
    content = content.get("_via_img_metadata", content)
    if not any(isinstance(entry, Mapping) and "filename" in entry for entry in content.values()):
        raise ValueError("no entry has a filename")
    for entry in content.values():
        regions = entry.get("regions") if isinstance(entry, Mapping) and "filename" in entry else None
        if isinstance(regions, Mapping):
            regions = list(regions.values())
        if not isinstance(regions, list):
            collected.ledger.drop("entry without a file name or regions", str(entry)[:100])
            continue
        yield str(entry["filename"]), regions


def _from_csv(text: str, collected: Collector) -> Iterator[tuple[str, list[Any]]]:
    regions: dict[str, list[Any]] = {}
    rows = csv.DictReader(io.StringIO(text))
    # The first column's name has had a mark before it in some versions.
    name_column = next((key for key in rows.fieldnames or () if key.strip("#") == "filename"), None)
    if name_column is None or "region_shape_attributes" not in (rows.fieldnames or ()):
        raise ValueError(f"expected columns filename and region_shape_attributes, got {rows.fieldnames}")
    for number, row in enumerate(rows, 1):
        try:
            shape = json.loads(row["region_shape_attributes"] or "{}")
            attributes = json.loads(row.get("region_attributes") or "{}")
        except (ValueError, RecursionError):
            collected.ledger.drop("row with damaged attributes", f"row {number}, {row[name_column]}")
            continue
        of_image = regions.setdefault(row[name_column], [])
        if shape:
            of_image.append({"shape_attributes": shape, "region_attributes": attributes})
    yield from regions.items()


def _attributes(region: Any) -> Mapping[str, Any]:
    attributes = region.get("region_attributes") if isinstance(region, Mapping) else None
    return attributes if isinstance(attributes, Mapping) else {}


def _class(region: Any, attribute: str | None, notes: Notes) -> str:
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
    return class_name(value, notes)


def _shape(region: Any, notes: Notes) -> dict[str, Any]:
    shape = region.get("shape_attributes") if isinstance(region, Mapping) else None
    if not isinstance(shape, Mapping):
        raise Malformed("region without a shape")
    kind = shape.get("name")
    if any(has_text(value) for key, value in shape.items() if key != "name"):
        notes.add(TEXT_NUMBER)
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

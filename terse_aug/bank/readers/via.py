"""VGG Image Annotator: JSON or CSV of version 1 and 2, and its project."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from terse_aug.bank.build.report import BuildReport
from terse_aug.bank.inputs.folders import check_folders
from terse_aug.bank.inputs.repair import TEXT_NUMBER, Malformed, Repairs, as_number, class_name, contains_text
from terse_aug.bank.inputs.text_files import read_text
from terse_aug.bank.readers.annotated_images import AnnotationOptions
from terse_aug.bank.readers.annotation_collector import (
    SHOWS_NO_OBJECT,
    AnnotationCollector,
    ellipse_to_polygon,
    points_to_polygon,
)
from terse_aug.bank.readers.other_formats import names_other_formats
from terse_aug.bank.readers.several_parts import Paths, as_path, takes_several


@takes_several()
@names_other_formats
def build_from_via(
    file: Paths,
    images: Paths,
    out: str | Path,
    *,
    attribute: str | None = None,
    names: Sequence[str] | None = None,
    **options: Any,
) -> BuildReport:
    """Build a bank from an export of VGG Image Annotator.

    Polygons, polylines, circles and ellipses have masks, rectangles boxes only.

    Args:
        file: the JSON (annotations or project) or the CSV.
        images: folder of the images.
        out: the bank to write.
        attribute: attribute of the regions whose value is the class (of a checkbox the only option that is set); by
            default the one with most values. If no attribute has a value, the class is the one of ``categories``
            (--category), or else ``object``.
        names: class names, labelled 1, 2, ... in this order; by default those that occur, sorted.
        options: see :class:`AnnotationOptions`.

    Raises:
        FileNotFoundError: the file or the folder does not exist.
        ValueError: the file is no export of VIA, the attribute of the class is unknown or unclear, or no object can be
            read; and as :class:`AnnotationOptions`.
    """
    settings = AnnotationOptions.checked(out, options)
    file, images = as_path(file), as_path(images)
    if not file.is_file():
        raise FileNotFoundError(f"expected an export of VIA at {file}, found none")
    check_folders(images, content="images")
    collector = AnnotationCollector.with_names(names)
    try:
        text = read_text(file)
        read = _read_csv if file.suffix.lower() == ".csv" else _read_json
        entries = list(read(text, collector))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise ValueError(f"{file}: expected an export of VIA (JSON or CSV of version 1 or 2): {error!r}") from error
    class_attribute = _class_attribute(attribute, [region for _, regions in entries for region in regions], file)
    category = _category_without_attribute(settings) if class_attribute is None else ""
    for name, regions in entries:
        image = collector.add_image(name)
        for row, region in enumerate(regions, 1):
            repairs: Repairs = set()
            try:
                label = category or _class(region, class_attribute, repairs)
                collector.add_object(image, label, row, **_convert(region, repairs))
            except Malformed as reason:
                collector.reject(str(reason), f"{name}, region {row}", image)
            else:
                collector.log.repair(repairs, f"{name}, region {row}")
    return collector.build("via", f"{file.name} ({class_attribute or 'no attribute'})", images, out, settings)


def _class_attribute(attribute: str | None, regions: Sequence[Any], file: Path) -> str | None:
    counts = Counter(key for region in regions for key, value in _attributes(region).items() if value)
    known = ", ".join(sorted(counts))
    if attribute is not None and attribute not in counts:
        raise ValueError(f"{file}: no region has the attribute {attribute!r}; there are {known}")
    first, second = [*counts.most_common(2), (None, 0), (None, 0)][:2]
    if attribute is None and first[1] == second[1] > 0:
        raise ValueError(
            f"{file}: which of the regions' attributes is the class? There are {known}: choose one "
            "(attribute, --attribute)"
        )
    return attribute or first[0]


def _read_json(text: str, collector: AnnotationCollector) -> Iterator[tuple[str, list[Any]]]:
    content = json.loads(text)
    content = content.get("_via_img_metadata", content)
    if not any(isinstance(entry, Mapping) and "filename" in entry for entry in content.values()):
        raise ValueError("no entry has a filename")
    for entry in content.values():
        regions = entry.get("regions") if isinstance(entry, Mapping) and "filename" in entry else None
        if isinstance(regions, Mapping):
            regions = list(regions.values())
        if not isinstance(regions, list):
            collector.log.drop("entry without a file name or regions", str(entry)[:100])
            continue
        yield str(entry["filename"]), regions


def _read_csv(text: str, collector: AnnotationCollector) -> Iterator[tuple[str, list[Any]]]:
    regions: dict[str, list[Any]] = {}
    rows = csv.DictReader(io.StringIO(text))
    # Some versions write a # before the first column's name.
    name_column = next((key for key in rows.fieldnames or () if key.strip("#") == "filename"), None)
    if name_column is None or "region_shape_attributes" not in (rows.fieldnames or ()):
        raise ValueError(f"expected columns filename and region_shape_attributes, got {rows.fieldnames}")
    for number, row in enumerate(rows, 1):
        try:
            shape = json.loads(row["region_shape_attributes"] or "{}")
            attributes = json.loads(row.get("region_attributes") or "{}")
        except (ValueError, RecursionError):
            collector.log.drop("row with damaged attributes", f"row {number}, {row[name_column]}")
            continue
        of_image = regions.setdefault(row[name_column], [])
        if shape:
            of_image.append({"shape_attributes": shape, "region_attributes": attributes})
    yield from regions.items()


def _attributes(region: Any) -> Mapping[str, Any]:
    attributes = region.get("region_attributes") if isinstance(region, Mapping) else None
    return attributes if isinstance(attributes, Mapping) else {}


def _category_without_attribute(options: AnnotationOptions) -> str:
    """The class of all regions where no attribute has one."""
    names = options.categories
    names = [names] if isinstance(names, str) else ["object"] if names is None else list(names)
    if len(names) != 1:
        raise ValueError(f"no region has an attribute with its class: expected one category (--category), got {names}")
    return names[0]


def _class(region: Any, attribute: str | None, repairs: Repairs) -> str:
    if attribute not in _attributes(region):
        raise Malformed("region without the attribute of the class")
    value = region["region_attributes"][attribute]
    if isinstance(value, Mapping):
        options = [key for key, is_set in value.items() if is_set]
        if len(options) != 1:
            raise Malformed("region with several options of the class, or none")
        value = options[0]
    return class_name(value, repairs)


def _convert(region: Any, repairs: Repairs) -> dict[str, Any]:
    """A region's shape as ``segmentation`` or ``bbox`` of COCO."""
    shape = region.get("shape_attributes") if isinstance(region, Mapping) else None
    if not isinstance(shape, Mapping):
        raise Malformed("region without a shape")
    if any(contains_text(value) for key, value in shape.items() if key != "name"):
        repairs.add(TEXT_NUMBER)
    kind = shape.get("name")
    if kind in ("polygon", "polyline"):
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            raise Malformed("polygon with other numbers of x than of y")
        return {"segmentation": [points_to_polygon(list(zip(xs, ys, strict=True)))]}
    if kind == "rect":
        return {"bbox": [as_number(shape.get(key)) for key in ("x", "y", "width", "height")]}
    if kind == "circle":
        x, y, radius = (as_number(shape.get(key)) for key in ("cx", "cy", "r"))
        return {"segmentation": [ellipse_to_polygon(x, y, radius, radius)]}
    if kind == "ellipse":
        x, y, radius_x, radius_y = (as_number(shape.get(key)) for key in ("cx", "cy", "rx", "ry"))
        return {"segmentation": [ellipse_to_polygon(x, y, radius_x, radius_y, as_number(shape.get("theta", 0)))]}
    raise Malformed(SHOWS_NO_OBJECT)

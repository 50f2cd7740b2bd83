"""Pascal VOC: an XML file for each image, and instance masks for some."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from terse_aug.bank.build.report import BuildReport
from terse_aug.bank.extract import box_iou, tight_box
from terse_aug.bank.inputs.images import is_color_image
from terse_aug.bank.inputs.mask_files import VOID_COLOR, color_number, read_object_numbers
from terse_aug.bank.inputs.masks import MaskInFile
from terse_aug.bank.inputs.repair import SWAPPED_CORNERS, Malformed, Repairs, as_number, class_name
from terse_aug.bank.readers.annotated_images import AnnotationOptions
from terse_aug.bank.readers.annotation_collector import (
    SHARED_IMAGE,
    AnnotationCollector,
    around_points,
    box_to_polygon,
)
from terse_aug.bank.readers.other_formats import names_other_formats
from terse_aug.bank.readers.several_parts import Paths, as_path, takes_several
from terse_aug.bank.readers.voc_layout import VocLayout, has_own_file

_LEAST_AGREEMENT = 0.5
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@takes_several()
@names_other_formats
def build_from_voc(
    root: Paths,
    out: str | Path,
    *,
    annotations: Paths | None = None,
    images: Paths | None = None,
    split: str | None = None,
    difficult: bool = False,
    names: Sequence[str] | None = None,
    **options: Any,
) -> BuildReport:
    """Build a bank from a folder in the layout of Pascal VOC (VOC2012 devkit, section 3), or with other folder names.

    The n-th object of ``Annotations/NAME.xml`` is the one of number n, or of VOC's n-th colour, in
    ``SegmentationObject/NAME.png``, if there is such a file; else it has a box only. Boxes count from 1 and include
    their last pixel. Rotated boxes (``robndbox``) and polygons have masks. Masks that disagree with their box are
    rejected (``rules.min_box_agreement``); colours are then searched for the object of the box.

    Args:
        root: folder with Annotations, JPEGImages and, for masks, SegmentationObject.
        out: the bank to write.
        annotations: folder of the XML files, at any depth; by default Annotations, xmls or labels in any capitals, or
            else the root.
        images: folder of the images, in the same subfolders or in none; by default JPEGImages, images or imgs in any
            capitals, or else beside the XML files.
        split: a list in ImageSets/Main (or else Segmentation, Layout, or the root), such as train, or with its folder,
            such as Segmentation/train; all images by default. Images that the list of a class marks with -1 are not
            used.
        difficult: use objects that are marked as difficult.
        names: class names, labelled 1, 2, ... in this order; by default those that occur, sorted.
        options: see :class:`AnnotationOptions`.

    Raises:
        FileNotFoundError: a folder or the list does not exist.
        ValueError: no object can be read; and as :class:`AnnotationOptions`.
    """
    settings = AnnotationOptions.checked(out, options)
    root = as_path(root)
    layout = VocLayout.find(root, *(None if given is None else as_path(given) for given in (annotations, images)))
    collector = AnnotationCollector.with_names(names)
    files_of_image: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    used = set()
    for path in layout.xml_files(split, collector.log):
        try:
            tree = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, UnicodeDecodeError, OSError, LookupError, ValueError) as error:
            collector.log.drop("XML file cannot be read", f"{path.name}: {error}")
            continue
        if tree.tag != "annotation" and tree.find("object") is None:
            source = "CVAT, which source cvat reads" if tree.tag == "annotations" else "another format than VOC's"
            collector.log.drop(f"XML file of {source}", path.name)
            continue
        name, image, is_substitute = _read_objects(tree, path, layout, difficult, collector)
        used.add(name)
        if is_substitute:
            files_of_image[name].append((image, path.relative_to(layout.annotations)))
    collector.reject_shared_images(files_of_image)
    if split is None:
        layout.count_unused(used, collector.log)
    return collector.build("voc", root.name, layout.images, out, settings)


def _read_objects(
    tree: ElementTree.Element, path: Path, layout: VocLayout, difficult: bool, collector: AnnotationCollector
) -> tuple[str, int, bool]:
    """Add an image with its objects; returns its name and number, and whether it is of another subfolder."""
    written_name = (tree.findtext("filename") or "").strip()
    name, is_substitute = layout.image(path, written_name)
    if written_name and Path(name).name != Path(written_name).name:
        collector.log.repair(["image has the name of its XML file and not that in it"], path.name)
    image = collector.add_image(name, _side(tree, "height"), _side(tree, "width"))
    belongs_to_other = has_own_file(name, path)
    mask = layout.mask(path)
    entries = dict(enumerate(tree.findall("object"), 1))
    masks = None if mask is None else _InstanceMask(mask, _boxes(entries))
    for row, entry in entries.items():
        where = f"{path.name}, object {row}"
        repairs: Repairs = set()
        if belongs_to_other:
            collector.reject(SHARED_IMAGE, where, image)
            continue
        try:
            category, shape = class_name(entry.findtext("name"), repairs), _shape(entry, repairs)
        except Malformed as reason:
            collector.reject(str(reason), where, image)
            continue
        if not difficult and (entry.findtext("difficult") or "0").strip() == "1":
            collector.reject("marked as difficult", where, image, **shape)
            continue
        collector.log.repair(repairs, where)
        if masks is not None:
            if masks.error is not None:
                collector.reject("mask file cannot be read", masks.error, image, **shape)
                continue
            shape = {"bbox": _around(shape), "segmentation": masks.of(row) or shape.get("segmentation")}
        collector.add_object(image, category, row, **shape)
    return name, image, is_substitute


class _InstanceMask:
    """A file with the masks of all objects of an image, by numbers or, as CVAT writes it, by colours.

    Of colours, an object has that of its number if this fits its box. CVAT's XML files list boxes only, so that their
    numbers may differ: the others have the colour that fits best among those that are left.

    Attributes:
        error: why a mask in colours cannot be read.
    """

    def __init__(self, path: Path, boxes: Mapping[int, list[float]]):
        self.error: str | None = None
        self._path = path
        self._colors: dict[int, int] | None = None
        if is_color_image(path):
            try:
                self._colors = _match_colors(_boxes_by_color(path), boxes)
            except ValueError as error:
                self.error = str(error)

    def of(self, row: int) -> MaskInFile | None:
        """The mask of the n-th object, if there is one."""
        if self._colors is None:
            return MaskInFile(self._path, row)
        return MaskInFile(self._path, self._colors[row], colors=True) if row in self._colors else None


def _match_colors(colors: Mapping[int, list[float]], boxes: Mapping[int, list[float]]) -> dict[int, int]:
    """Colours by numbers of objects: of all objects first their own, so that none takes that of another."""
    found: dict[int, int] = {}
    pairs = [
        (color == voc_color(row), agreement, row, color)
        for row, box in boxes.items()
        for color, own in colors.items()
        if (agreement := box_iou((own[0], own[1], own[2], own[3]), (box[0], box[1], box[2], box[3])))
        >= _LEAST_AGREEMENT
    ]
    for _, _, row, color in sorted(pairs, key=lambda pair: pair[:2], reverse=True):
        if row not in found and color not in found.values():
            found[row] = color
    return found


def _boxes_by_color(path: Path) -> dict[int, list[float]]:
    numbers = read_object_numbers(path, colors=True).numbers
    colors = (color for color in np.unique(numbers).tolist() if color not in (0, VOID_COLOR))
    boxes = ((color, tight_box((numbers == color).astype(np.uint8))) for color in colors)
    return {color: [*map(float, box)] for color, box in boxes if box is not None}


def voc_color(number: int) -> int:
    """The colour of a number in Pascal VOC's colour map (VOClabelcolormap.m of the devkit), as R + 256 G + 65536 B."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return color_number(*channels)


def _side(tree: ElementTree.Element, name: str) -> int | None:
    """Height or width of the image in px; many exports have 0 or nothing."""
    try:
        return int(as_number((tree.findtext(f"size/{name}") or "").strip()))
    except Malformed:
        return None


def _shape(entry: ElementTree.Element, repairs: Repairs) -> dict[str, Any]:
    """The shape of an object as ``segmentation`` or ``bbox`` of COCO; rotated boxes and polygons count from 0."""
    rotated, box, polygon = entry.find("robndbox"), entry.find("bndbox"), entry.find("polygon")
    if polygon is not None:
        points = _polygon(polygon)
        if len(points) >= 6:
            return {"segmentation": [points]}
        if rotated is None and box is None:
            raise Malformed("polygon of fewer than three valid points, and no box")
        repairs.add("polygon of fewer than three valid points; the box beside it was used")
    if rotated is not None:
        x, y, width, height, angle = _numbers(rotated, ("cx", "cy", "w", "h", "angle"))
        return {"segmentation": [box_to_polygon(x - width / 2, y - height / 2, width, height, angle)]}
    if box is None:
        raise Malformed("object without a box")
    left, top, right, bottom = _numbers(box, _CORNERS)
    if left > right or top > bottom:
        repairs.add(SWAPPED_CORNERS)
    left, right, top, bottom = min(left, right), max(left, right), min(top, bottom), max(top, bottom)
    return {"bbox": [left - 1, top - 1, right - left + 1, bottom - top + 1]}


def _numbers(entry: ElementTree.Element, names: Sequence[str]) -> list[float]:
    texts = [entry.findtext(name) for name in names]
    if None in texts:
        raise Malformed("object without a box")
    return [as_number((text or "").strip()) for text in texts]


def _polygon(polygon: ElementTree.Element) -> list[float]:
    """The points x1, y1, x2, y2, ..., as Roboflow writes them, or in elements of their own, as LabelMe does."""
    try:
        if points := polygon.findall("pt"):
            return [number for point in points for number in _numbers(point, ("x", "y"))]
        count = sum(1 for child in polygon if child.tag.startswith("x"))
        return _numbers(polygon, [f"{axis}{number}" for number in range(1, count + 1) for axis in "xy"])
    except Malformed:
        return []


def _boxes(entries: Mapping[int, ElementTree.Element]) -> dict[int, list[float]]:
    """The boxes of the objects that have a shape, difficult ones, too, by number."""
    boxes = {}
    for row, entry in entries.items():
        with suppress(Malformed):
            boxes[row] = _around(_shape(entry, set()))
    return boxes


def _around(shape: Mapping[str, Any]) -> list[float]:
    box: list[float] = shape.get("bbox") or around_points(shape["segmentation"][0])
    return box

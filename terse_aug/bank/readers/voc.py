"""Pascal VOC: an XML file for each image, and instance masks for some."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from terse_aug.bank.build.report import BuildReport
from terse_aug.bank.inputs.image_endings import image_endings
from terse_aug.bank.inputs.images import is_file
from terse_aug.bank.inputs.masks import MaskInFile
from terse_aug.bank.inputs.repair import SWAPPED_CORNERS, Malformed, Repairs, as_number, class_name
from terse_aug.bank.inputs.text_files import read_text
from terse_aug.bank.readers.annotated_images import AnnotationOptions
from terse_aug.bank.readers.annotation_collector import SHARED_IMAGE, AnnotationCollector

_FOLDERS = ("Annotations", "JPEGImages", "SegmentationObject")
_LIST_FOLDERS = ("Main", "Segmentation", "Layout")


def build_from_voc(
    root: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    difficult: bool = False,
    names: Sequence[str] | None = None,
    **options: Any,
) -> BuildReport:
    """Build a bank from a folder in the layout of Pascal VOC (VOC2012 devkit, section 3).

    The n-th object of ``Annotations/NAME.xml`` is the one of number n in ``SegmentationObject/NAME.png``, if there is
    such a file; else it has a box only. Boxes count from 1 and include their last pixel. Masks that disagree with their
    box are rejected (``rules.min_box_agreement``).

    Args:
        root: folder with Annotations, JPEGImages and, for masks, SegmentationObject.
        out: the bank to write.
        split: a list in ImageSets/Main (or else Segmentation or Layout), such as train, or with its folder, such as
            Segmentation/train; all images by default. Images that the list of a class marks with -1 are not used.
        difficult: use objects that are marked as difficult.
        names: class names, labelled 1, 2, ... in this order; by default those that occur, sorted.
        options: see :class:`AnnotationOptions`.

    Raises:
        FileNotFoundError: a folder or the list does not exist.
        ValueError: no object can be read; and as :class:`AnnotationOptions`.
    """
    settings = AnnotationOptions.checked(out, options)
    root = Path(root)
    annotations, images, masks = (root / name for name in _FOLDERS)
    for folder in (annotations, images):
        if not folder.is_dir():
            raise FileNotFoundError(f"expected a folder in the layout of Pascal VOC, {root} has no {folder.name}")
    collector = AnnotationCollector.with_names(names)
    for path in _xml_files(root, annotations, split, collector):
        try:
            tree = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, UnicodeDecodeError, OSError, LookupError, ValueError) as error:
            collector.log.drop("XML file cannot be read", f"{path.name}: {error}")
            continue
        mask = masks / f"{path.stem}.png"
        _read_objects(tree, path, images, mask if is_file(mask) else None, difficult, collector)
    return collector.build("voc", root.name, images, out, settings)


def _xml_files(root: Path, annotations: Path, split: str | None, collector: AnnotationCollector) -> list[Path]:
    if split is None:
        files = sorted(annotations.glob("*.xml"))
        for deeper in sorted(set(annotations.rglob("*.xml")) - set(files)):
            where = str(deeper.relative_to(annotations))
            collector.log.drop("XML file lies in a subfolder, which is not searched", where)
        return files
    lists = [root / "ImageSets" / folder / f"{split}.txt" for folder in ([""] if "/" in split else _LIST_FOLDERS)]
    path = next((path for path in lists if is_file(path)), None)
    if path is None:
        raise FileNotFoundError(f"expected one of {', '.join(str(path) for path in lists)}, found none")
    lines = [line.strip() for line in read_text(path).splitlines()]
    names = [line if is_file(annotations / f"{line}.xml") else _listed_name(line) for line in lines]
    files = []
    for name in dict.fromkeys(name for name in names if name):
        if is_file(path := annotations / f"{name}.xml"):
            files.append(path)
        else:
            collector.log.drop("image of the split has no XML file", name)
    return files


def _listed_name(line: str) -> str:
    """The name on a line of a list, which may contain a space; empty if the image does not show the list's class."""
    parts = line.rsplit(maxsplit=1)
    if len(parts) == 2 and parts[1] in ("-1", "0", "1"):
        return "" if parts[1] == "-1" else parts[0].strip()
    return line


def _read_objects(
    tree: ElementTree.Element,
    path: Path,
    images: Path,
    mask: Path | None,
    difficult: bool,
    collector: AnnotationCollector,
) -> None:
    written_name = (tree.findtext("filename") or "").strip()
    name = _image_name(path, written_name, images)
    if written_name and name != written_name:
        collector.log.repair(["image has the name of its XML file and not that in it"], path.name)
    image = collector.add_image(name, _side(tree, "height"), _side(tree, "width"))
    has_own_file = _has_own_file(name, path)
    for row, entry in enumerate(tree.findall("object"), 1):
        where = f"{path.name}, object {row}"
        repairs: Repairs = set()
        if has_own_file:
            collector.reject(SHARED_IMAGE, where, image)
            continue
        try:
            category, box = class_name(entry.findtext("name"), repairs), _box(entry, repairs)
        except Malformed as reason:
            collector.reject(str(reason), where, image)
            continue
        if not difficult and (entry.findtext("difficult") or "0").strip() == "1":
            collector.reject("marked as difficult", where, image, bbox=box)
            continue
        collector.log.repair(repairs, where)
        collector.add_object(image, category, row, bbox=box, segmentation=mask and MaskInFile(mask, row))


def _image_name(path: Path, written_name: str, images: Path) -> str:
    """The name in the XML file; or that of the file itself, if the written one does not exist, as in exports of another
    machine, or belongs to another XML file that this one is a copy of.
    """
    if written_name and is_file(images / written_name) and not _has_own_file(written_name, path):
        return written_name
    own_names = (path.stem + suffix for ending in image_endings() for suffix in (ending, ending.upper()))
    return next((name for name in own_names if is_file(images / name)), written_name or f"{path.stem}.jpg")


def _has_own_file(image: str, path: Path) -> bool:
    """Whether an image has an XML file of its name other than ``path``."""
    stem = Path(image).stem
    return stem != path.stem and is_file(path.with_name(f"{stem}.xml"))


def _side(tree: ElementTree.Element, name: str) -> int | None:
    """Height or width of the image in px; many exports have 0 or nothing."""
    try:
        return int(as_number((tree.findtext(f"size/{name}") or "").strip()))
    except Malformed:
        return None


def _box(entry: ElementTree.Element, repairs: Repairs) -> list[float]:
    corners = [entry.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
    if None in corners:
        raise Malformed("object without a box")
    left, top, right, bottom = (as_number((corner or "").strip()) for corner in corners)
    if left > right or top > bottom:
        repairs.add(SWAPPED_CORNERS)
    left, right, top, bottom = min(left, right), max(left, right), min(top, bottom), max(top, bottom)
    return [left - 1, top - 1, right - left + 1, bottom - top + 1]

"""Pascal VOC's layout: an XML file for each image, and masks of the instances of some. Imports the standard library."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from terse_aug.bank.inputs.images import is_file
from terse_aug.bank.inputs.masks import MaskInFile
from terse_aug.bank.inputs.repair import SWAPPED, Malformed, Notes, as_number, class_name
from terse_aug.bank.readers.annotation_collector import CLAIMED, Collector, Reading, numbered

_FOLDERS = ("Annotations", "JPEGImages", "SegmentationObject")
_SPLITS = ("Main", "Segmentation", "Layout")


def read_voc(
    root: Path, split: str | None = None, difficult: bool = False, names: Sequence[str] | None = None
) -> Reading:
    """Read a folder in the layout of Pascal VOC (VOC2012 devkit, section 3).

    The n-th object of ``Annotations/NAME.xml`` is the one of colour n in ``SegmentationObject/NAME.png``, where there
    is such a file; the others have boxes only. Boxes are counted from 1 and include their last pixel.

    Args:
        root: with ``Annotations``, ``JPEGImages`` and, if there are masks, ``SegmentationObject``.
        split: a list in ``ImageSets/Main``, ``Segmentation`` or ``PastePlan``, such as ``train``, the first of these that
            there is; or one of a folder, ``Segmentation/train``. Images that a list of a class marks with -1 are left
            out. All images by default.
        difficult: whether to take objects that are marked as difficult to recognise.
        names: of the classes, labelled 1, 2, ... in this order; by default those that are met, in the order of the
            names.

    Raises:
        FileNotFoundError: a folder or the list does not exist.
        ValueError: no object can be read.
    """
    annotations, images, masks = (root / name for name in _FOLDERS)
    for folder in (annotations, images):
        if not folder.is_dir():
            raise FileNotFoundError(f"expected a folder in the layout of Pascal VOC, {root} has no {folder.name}")
    collected = Collector(numbered(names))
    for path in _files(root, annotations, split, collected):
        try:
            tree = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, UnicodeDecodeError, OSError, LookupError, ValueError) as error:
            collected.ledger.drop("XML file cannot be read", f"{path.name}: {error}")
            continue
        mask = masks / f"{path.stem}.png"
        _read_image(tree, path, images, mask if is_file(mask) else None, difficult, collected)
    return collected.reading("voc", root.name, images)


def _files(root: Path, annotations: Path, split: str | None, collected: Collector) -> list[Path]:
    if split is None:
        return sorted(annotations.glob("*.xml"))
    kinds = [""] if "/" in split else _SPLITS
    lists = [root / "ImageSets" / kind / f"{split}.txt" for kind in kinds]
    found = next((path for path in lists if is_file(path)), None)
    if found is None:
        raise FileNotFoundError(f"expected one of {', '.join(str(path) for path in lists)}, found none")
    lines = [line.strip() for line in found.read_text(encoding="utf-8-sig").splitlines()]
    names = [line if is_file(annotations / f"{line}.xml") else _listed(line) for line in lines]
    files = []
    for name in dict.fromkeys(name for name in names if name):
        if is_file(path := annotations / f"{name}.xml"):
            files.append(path)
        else:
            collected.ledger.drop("image of the split has no XML file", name)
    return files


def _listed(line: str) -> str:
    """The name on a line of a list, which may have a space in it; nothing if it does not show the list's class."""
    parts = line.rsplit(maxsplit=1)
    if len(parts) == 2 and parts[1] in ("-1", "0", "1"):
        return "" if parts[1] == "-1" else parts[0].strip()
    return line.strip()


def _read_image(
    tree: ElementTree.Element, path: Path, images: Path, mask: Path | None, difficult: bool, collected: Collector
) -> None:
    said = (tree.findtext("filename") or "").strip()
    name = _image_of(path, said, images)
    if said and name != said:
        collected.ledger.repair(["image has the name of its XML file and not that in it"], path.name)
    number = collected.image(name, _side(tree, "height"), _side(tree, "width"))
    foreign = _is_of_another(name, path)
    for row, entry in enumerate(tree.findall("object"), 1):
        where = f"{path.name}, object {row}"
        notes: Notes = set()
        if foreign:
            collected.drop(CLAIMED, where, number)
            continue
        try:
            category, box = class_name(entry.findtext("name"), notes), _box(entry, notes)
        except Malformed as reason:
            collected.drop(str(reason), where, number)
            continue
        if not difficult and (entry.findtext("difficult") or "0").strip() == "1":
            collected.drop("marked as difficult", where, number, bbox=box)
            continue
        collected.ledger.repair(notes, where)
        collected.object(number, category, row, bbox=box, segmentation=mask and MaskInFile(mask, row))


def _image_of(path: Path, said: str, images: Path) -> str:
    """What an XML file says, unless there is no such image, as in exports of another machine, or the file is a copy of
    another one's; then the image of the file's own name, where there is one."""
    if said and is_file(images / said) and not _is_of_another(said, path):
        return said
    own = (f"{path.stem}{suffix}" for suffix in _SUFFIXES)
    return next((name for name in own if is_file(images / name)), said or f"{path.stem}.jpg")


def _is_of_another(name: str, path: Path) -> bool:
    """Whether an image has an XML file of its name, and it is not this one."""
    stem = Path(name).stem
    return stem != path.stem and is_file(path.with_name(f"{stem}.xml"))


_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".webp", ".tif", ".tiff")


def _side(tree: ElementTree.Element, name: str) -> int | None:
    """Of the image, px; many exports have 0 or nothing."""
    try:
        return int(as_number((tree.findtext(f"size/{name}") or "").strip()))
    except Malformed:
        return None


def _box(entry: ElementTree.Element, notes: Notes) -> list[float]:
    corners = [entry.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
    if None in corners:
        raise Malformed("object without a box")
    left, top, right, bottom = (as_number((corner or "").strip()) for corner in corners)
    if left > right or top > bottom:
        notes.add(SWAPPED)
    left, right, top, bottom = min(left, right), max(left, right), min(top, bottom), max(top, bottom)
    return [left - 1, top - 1, right - left + 1, bottom - top + 1]

"""Annotation formats beside COCO's own: each is read into the content of a COCO JSON, from which the bank is built.

Every builder takes what :func:`terse_aug.bank.build_from_coco` takes from ``categories`` on, raises what that raises,
and counts what it mended and what it could not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from terse_aug.bank.build.report import BuildReport
from terse_aug.bank.inputs.coco_json import Coco
from terse_aug.bank.readers.annotation_collector import Reading
from terse_aug.bank.readers.coco import Choice, build_annotated
from terse_aug.bank.readers.labelme import read_labelme
from terse_aug.bank.readers.panoptic import read_panoptic
from terse_aug.bank.readers.via import read_via
from terse_aug.bank.readers.voc import read_voc
from terse_aug.bank.readers.yolo import read_yolo


def build_from_voc(
    root: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    difficult: bool = False,
    names: Sequence[str] | None = None,
    **choice: Any,
) -> BuildReport:
    """Build a bank from a folder in Pascal VOC's layout.

    Objects of images with a ``SegmentationObject`` are cut out by it; masks that disagree with their box are left
    out (``rules.min_box_agreement``).

    Args:
        root: with ``Annotations`` and ``JPEGImages``.
        out: the bank to write.
        split: a list in ``ImageSets/Main`` (or else ``Segmentation``), such as ``train``, or one of a folder, such as
            ``Segmentation/train``; all images by default.
        difficult: whether to take objects that are marked as difficult.
        names: of the classes, labelled 1, 2, ... in this order; by default those that are met, in the order of the
            names.
        choice: see :func:`terse_aug.bank.build_from_coco`.
    """
    return _build(lambda: read_voc(Path(root), split, difficult, names), out, choice)


def build_from_yolo(
    images: str | Path,
    out: str | Path,
    *,
    labels: str | Path | None = None,
    names: str | Path | Sequence[str] | Mapping[int, str] | None = None,
    **choice: Any,
) -> BuildReport:
    """Build a bank from YOLO's text files; lines with polygons have masks, lines with boxes none.

    Args:
        images: folder of images.
        out: the bank to write.
        labels: folder of text files; by default the last ``images`` of each path replaced by ``labels``.
        names: of the classes, or a ``data.yaml`` or ``classes.txt``; by default the one beside the folders. Labels are
            the class numbers, from 0 on.
        choice: see :func:`terse_aug.bank.build_from_coco`.
    """
    known = Path(names) if isinstance(names, str) else names
    folder = None if labels is None else Path(labels)
    return _build(lambda: read_yolo(Path(images), folder, known), out, choice)


def build_from_labelme(
    folder: str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    names: Sequence[str] | None = None,
    **choice: Any,
) -> BuildReport:
    """Build a bank from LabelMe's JSON files.

    Args:
        folder: of the JSON files.
        out: the bank to write.
        images: folder of the images; by default where each JSON says, or beside it.
        names: of the classes, labelled 1, 2, ... in this order; by default those that are met, in the order of the
            names.
        choice: see :func:`terse_aug.bank.build_from_coco`.
    """
    place = None if images is None else Path(images)
    return _build(lambda: read_labelme(Path(folder), place, names), out, choice)


def build_from_via(
    file: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    attribute: str | None = None,
    names: Sequence[str] | None = None,
    **choice: Any,
) -> BuildReport:
    """Build a bank from an export of VGG Image Annotator.

    Args:
        file: the JSON or CSV.
        images: folder of the images.
        out: the bank to write.
        attribute: of the regions, whose value is the class; by default the one that is filled in most often.
        names: of the classes, labelled 1, 2, ... in this order; by default those that are met, in the order of the
            names.
        choice: see :func:`terse_aug.bank.build_from_coco`.
    """
    return _build(lambda: read_via(Path(file), Path(images), attribute, names), out, choice)


def build_from_panoptic(
    annotations: str | Path, masks: str | Path, images: str | Path, out: str | Path, **choice: Any
) -> BuildReport:
    """Build a bank from the things of COCO's panoptic format. Labels are the JSON's category ids.

    Args:
        annotations: the JSON.
        masks: folder of its PNG files.
        images: folder of the images.
        out: the bank to write.
        choice: see :func:`terse_aug.bank.build_from_coco`.
    """
    return _build(lambda: read_panoptic(Path(annotations), Path(masks), Path(images)), out, choice)


def _build(read: Callable[[], Reading], out: str | Path, settings: dict[str, Any]) -> BuildReport:
    choice = Choice(**settings)
    choice.check(Path(out))  # before a large data set is read
    reading = read()
    built = {"from": reading.kind, "annotations": reading.name}
    data = Coco.of(reading.content, reading.name)
    return build_annotated(data, reading.folder, out, built, choice, reading.ledger)


__all__ = [
    "Reading",
    "build_from_labelme",
    "build_from_panoptic",
    "build_from_via",
    "build_from_voc",
    "build_from_yolo",
    "read_labelme",
    "read_panoptic",
    "read_via",
    "read_voc",
    "read_yolo",
]

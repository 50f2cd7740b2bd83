"""Builds a bank from images and annotations in the form of a COCO JSON, which all annotation formats are read into."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.pipeline import BuildOptions
from terse_aug.bank.build.report import BY_MASK, BuildLog, BuildReport
from terse_aug.bank.extract import Annotation, ExtractionRules, RejectedObject, extract_from_image
from terse_aug.bank.inputs.coco_entries import file_name
from terse_aug.bank.inputs.coco_json import CocoAnnotations, annotated_side, rejected_sample
from terse_aug.bank.inputs.file_names import FileFinder
from terse_aug.bank.inputs.image_list import ImageList
from terse_aug.bank.inputs.images import read_image_like, why_unreadable
from terse_aug.bank.inputs.masks import NO_MASK, MaskInFile, has_mask, segmentation_as_json, segmentation_to_mask
from terse_aug.bank.inputs.repair import Repairs, clip_box, repair_annotation
from terse_aug.bank.segmenters.box import BoxMaskMethod, BoxMasks
from terse_aug.structures.foreground import Foreground

EMBEDDED = "embedded_in"
"""Key of an image that is not in a file of its own: path of the JSON file that has it as ``imageData`` (LabelMe)."""


@dataclass(frozen=True)
class AnnotationOptions(BuildOptions):
    """Keyword arguments that builders from annotations have in common, beside those of :class:`BuildOptions`.

    Attributes:
        categories: names of the categories to keep; all by default.
        boxes: how masks of objects that have a box only are made: ``"grabcut"``, ``"ellipse"``, ``"box"``, a function
            of image and box such as a cutter, or :class:`BoxMasks`. By default these objects are rejected. With a
            function without ``fingerprint``, ``jobs`` is 1 by default, and each of more processes has a copy of it.
        only_read: end with the annotations instead of building, for :func:`read_annotations`.

    Raises:
        ValueError: a category or a method is unknown.
    """

    categories: Collection[str] | None = None
    boxes: BoxMasks | str | BoxMaskMethod | None = None
    only_read: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.box_masks  # an unknown method is an error at once

    @property
    def box_masks(self) -> BoxMasks | None:
        """``boxes`` as :class:`BoxMasks`."""
        return self.boxes if self.boxes is None or isinstance(self.boxes, BoxMasks) else BoxMasks(self.boxes)


class ReadAnnotations(NamedTuple):
    """Annotations, the folder of their images, and what was rejected and repaired in reading beside ``data.log``."""

    data: CocoAnnotations
    folder: Path
    log: BuildLog


class _OnlyRead(Exception):
    def __init__(self, annotations: ReadAnnotations):
        super().__init__("annotations were read, and no bank is built")
        self.annotations = annotations


def read_annotations(build: Callable[..., Any], **arguments: Any) -> ReadAnnotations:
    """Read what a ``build_from_<source>`` would build a bank from, without building it.

    Args:
        build: the function, whose ``**options`` are :class:`AnnotationOptions`.
        arguments: its arguments, without ``out``.

    Raises:
        FileNotFoundError, ValueError: as ``build``.
    """
    with TemporaryDirectory() as folder:
        try:
            build(out=Path(folder) / "unused.bank", only_read=True, **arguments)
        except _OnlyRead as end:
            return end.annotations
    raise ValueError("expected a source of annotated images, got one without annotations")


def build_from_annotations(
    data: CocoAnnotations,
    folder: Path,
    out: str | Path,
    record: dict[str, Any],
    options: AnnotationOptions,
    before: BuildLog | None = None,
) -> BuildReport:
    """Build a bank from annotations.

    Args:
        data: the annotations.
        folder: of the images.
        out: the bank to write.
        record: where the annotations are from, for the bank's record.
        options: of the user.
        before: what was rejected and repaired in reading.
    """
    if options.only_read:
        raise _OnlyRead(ReadAnnotations(data, folder, before or BuildLog()))
    rules, boxes, image_list = options.rules, options.box_masks, ImageList.of(options.image_list)
    selected = data.select_categories(options.categories, may_lack=options.only_planned)
    keypoint_names = data.keypoint_names(selected)
    files = FileFinder(folder, [file_name(image) for image in data.images.values()])
    log = BuildLog()
    for known in (before, data.log):
        if known is not None:
            log.merge(known)
    groups = data.objects_by_image(selected, image_list, boxes is not None, log)
    record = record | {"images": folder.name} | ({} if boxes is None else boxes.record) | vars(rules)
    source = Source(
        groups,
        _Extractor(folder, rules, boxes, len(keypoint_names)),
        record if boxes is None or boxes.is_reproducible else None,
        log,
        prepare=lambda group: _ImageObjects.find(group[0], group[1], files),
        object_count=lambda group: len(group[1]),
    )
    return options.build(
        out, source, record, selected, keypoint_names, locate=lambda name: folder / files.find(str(name))[0]
    )


class _ImageObjects(NamedTuple):
    """An image and its objects as annotated; name of its file if one fits, and how that name differs."""

    image: dict[str, Any]
    objects: list[dict[str, Any]]
    name: str | None
    difference: str | None

    @classmethod
    def find(cls, image: dict[str, Any], objects: list[dict[str, Any]], files: FileFinder) -> _ImageObjects:
        if EMBEDDED in image:
            return cls(image, objects, file_name(image), None)
        try:
            return cls(image, objects, *files.find(file_name(image)))
        except LookupError as error:
            return cls(image, objects, None, str(error))


@dataclass(frozen=True)
class _Extractor:
    """Extracts the objects of one image after the other."""

    folder: Path
    rules: ExtractionRules
    boxes: BoxMasks | None
    keypoint_count: int

    def files(self, item: _ImageObjects) -> Iterator[Path]:
        """The image, and mask files."""
        if item.name is not None:
            yield item.image.get(EMBEDDED, self.folder / item.name)
        masks = (entry.get("segmentation") for entry in item.objects)
        yield from dict.fromkeys(mask.path for mask in masks if isinstance(mask, MaskInFile))

    def objects(self, item: _ImageObjects, log: BuildLog) -> Iterator[Foreground]:
        """The foregrounds of an image."""
        image, annotated_name = item.image, file_name(item.image)
        repairs: Repairs = set()
        try:
            name, pixels = self._read(item, repairs)
        except RejectedObject as reason:
            shown = rejected_sample(image, item.objects[0])
            log.drop(str(reason), str(reason.__cause__ or annotated_name), len(item.objects), shown=shown)
            return
        log.repair(repairs, annotated_name)
        for entry in item.objects:
            source = f"{name}#{entry.get('id')}"
            repairs = set()
            try:
                foreground, method = self._extract(repair_annotation(entry, repairs), pixels, source, repairs)
            except RejectedObject as reason:
                made = {} if reason.mask is None else {"segmentation": segmentation_as_json(reason.mask > 0)}
                log.drop(str(reason), source, shown=rejected_sample(image, entry | made))
                continue
            log.repair(repairs, source)
            log.mask_sources[method] += 1
            yield foreground

    def _read(self, item: _ImageObjects, repairs: Repairs) -> tuple[str, NDArray[np.uint8]]:
        """The name of an image on disk, and its pixels."""
        if item.name is None:
            raise RejectedObject(f"image file is missing, and several may be meant ({item.difference})")
        repairs |= {item.difference} if item.difference else set()
        height, width = (annotated_side(item.image, side, repairs) for side in ("height", "width"))
        try:
            data = embedded_image(item.image[EMBEDDED]) if EMBEDDED in item.image else None
            path = self.folder / item.name
            pixels = read_image_like(path, height, width, self.rules.levels, repairs, data)
        except FileNotFoundError as error:
            raise RejectedObject("image file is missing") from error
        except ValueError as error:
            raise RejectedObject(why_unreadable(error, "image file cannot be read")) from error
        if height and width and pixels.shape[:2] != (height, width):
            sizes = f"{item.name}: file {pixels.shape[0]}x{pixels.shape[1]}, JSON {height}x{width}"
            raise RejectedObject("image file has another size than annotated") from ValueError(sizes)
        return item.name, pixels

    def _extract(
        self, entry: dict[str, Any], pixels: NDArray[np.uint8], source: str, repairs: Repairs
    ) -> tuple[Foreground, str]:
        """A foreground, and the method that made its mask."""
        keypoints = _keypoints(entry.get("keypoints"), self.keypoint_count, repairs)
        annotation = Annotation(int(entry["category_id"]), source, _box(entry.get("bbox")), keypoints)
        if annotation.box is not None:
            annotation = replace(annotation, box=clip_box(annotation.box, pixels.shape, repairs))
        if self.boxes is None or has_mask(entry.get("segmentation")):
            mask = segmentation_to_mask(entry.get("segmentation"), *pixels.shape[:2])
            return extract_from_image(pixels, mask, annotation, self.rules), BY_MASK
        if annotation.box is None:
            raise RejectedObject(NO_MASK)
        mask, method = self.boxes.alpha(pixels, annotation.box)
        try:
            return extract_from_image(pixels, mask, replace(annotation, box=None), self.rules, soft=True), method
        except RejectedObject as reason:
            raise RejectedObject(str(reason), mask) from reason


def embedded_image(path: Path) -> bytes:
    """The content of the image file in ``imageData`` of a JSON file."""
    try:
        return base64.b64decode(json.loads(path.read_bytes())["imageData"], validate=True)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: imageData is no image in base64") from error


def _box(box: Any) -> tuple[float, float, float, float] | None:
    if box is None:
        return None
    try:
        x, y, width, height = box
        return float(x), float(y), float(width), float(height)
    except (TypeError, ValueError, OverflowError) as error:
        raise RejectedObject("box is not x, y, width, height") from error


def _keypoints(keypoints: Any, count: int, repairs: Repairs) -> NDArray[np.float32] | None:
    if keypoints and not count:
        repairs.add("keypoints of a category that names none were left out")
    if not keypoints or not count:
        return None
    try:
        points = np.asarray(keypoints, dtype=np.float64).reshape(count, 3)
    except (ValueError, TypeError, OverflowError) as error:
        raise RejectedObject("keypoints are not x, y, visibility for each name of the category") from error
    if not (np.abs(points) <= np.finfo(np.float32).max).all():
        raise RejectedObject("keypoints are not finite")
    return points.astype(np.float32)

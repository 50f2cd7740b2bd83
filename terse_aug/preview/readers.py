"""Reads labelled images of all annotation formats, by the same rules as a bank is built from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terse_aug.bank.build.report import BuildLog, ReasonCounts
from terse_aug.bank.extract import RejectedObject, tight_box
from terse_aug.bank.inputs.coco_entries import file_name
from terse_aug.bank.inputs.coco_json import IGNORED, CocoAnnotations, annotated_side
from terse_aug.bank.inputs.file_names import FileFinder
from terse_aug.bank.inputs.folders import find_images
from terse_aug.bank.inputs.image_list import ImageList
from terse_aug.bank.inputs.images import read_image_like, read_index_mask
from terse_aug.bank.inputs.masks import MaskInFile, has_mask, segmentation_to_mask
from terse_aug.bank.inputs.repair import repair_annotation
from terse_aug.bank.readers.annotated_images import EMBEDDED, embedded_image, read_annotations
from terse_aug.bank.readers.coco import build_from_coco
from terse_aug.preview.data import LabelledImages, Sample
from terse_aug.structures.annotations import Target

_MISSING = "image file is missing"
_LARGEST = 2**53


def open_coco(annotations: str | Path, images: str | Path) -> LabelledImages:
    """The images of a COCO JSON.

    Crowd regions and broken annotations are left out and counted. Masks are read where all objects of the data
    set have one, keypoints where all categories that have some have the same number.

    Args:
        annotations: the JSON file.
        images: folder that its file names are relative to.

    Raises:
        FileNotFoundError: the JSON or the folder does not exist.
        ValueError: the file is no COCO JSON of instances, it lists no images, or none of them is in the folder.
    """
    coco, folder, _ = read_annotations(build_from_coco, annotations=annotations, images=_existing_folder(images))
    found = _labelled_images(coco, folder, str(annotations))
    found.folders = (folder,)
    return found


def open_annotations(build: Callable[..., Any], **arguments: Any) -> LabelledImages:
    """The images of any format, with the objects that a bank would be built from, as in :func:`open_coco`.

    Args:
        build: the function that builds a bank from the format, such as :func:`terse_aug.bank.build_from_voc`.
        arguments: its arguments, without ``out``.

    Raises:
        FileNotFoundError, ValueError: as ``build``; and none of the images is in its folder.
    """
    data, folder, log = read_annotations(build, **arguments)
    given = ", ".join(f"{name} {value}" for name, value in arguments.items())
    found = _labelled_images(data, folder, given)
    found.dropped.merge(log.rejected)
    paths = [Path(value).resolve() for value in arguments.values() if isinstance(value, str | Path)]
    if any(folder.resolve().is_relative_to(path) for path in paths):  # else it may hold anything beside the images
        found.folders = (folder,)
    return found


def _labelled_images(coco: CocoAnnotations, folder: Path, annotations: str) -> LabelledImages:
    if not coco.images:
        raise ValueError(f"{annotations} lists no images")
    found = LabelledImages(f"{folder} with {annotations}", coco.categories)
    found.dropped.merge(coco.log.rejected)
    objects = _objects_by_image(coco, found.dropped)
    fields = CocoFields.of(coco, objects, found.dropped)
    found.boxes_only = bool(objects) and not fields.masks
    files = FileFinder(folder, [file_name(record) for record in coco.images.values()])
    for key, record in coco.images.items():
        name = _found(files, file_name(record))
        file = record.get(EMBEDDED, folder / name)
        if file.is_file():
            own = objects.get(key, [])
            read = partial(_read_coco, file, record, own, fields, found.dropped)
            masks = [entry["segmentation"] for entry in own if isinstance(entry.get("segmentation"), MaskInFile)]
            found.add(name, read, (file, *dict.fromkeys(mask.path for mask in masks)), [record, own])
        else:
            found.dropped.add(_MISSING, name)
    if not found.names:
        raise ValueError(
            f"none of the {len(coco.images)} images of {annotations} is in {folder} "
            f"(such as {found.dropped.examples[_MISSING][0]})"
        )
    return found


def open_masks(images: str | Path, masks: str | Path, category: str = "object") -> LabelledImages:
    """Images with instance masks (Penn-Fudan): 0 is background, every other number one object with that id.

    Args:
        images: folder of images ``NAME.png``.
        masks: folder of masks ``NAME_mask.png`` or ``NAME.png``; it may be the same.
        category: name of all objects; their label is 1.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: no image has a mask of its name.
    """
    image_folder, mask_folder = _existing_folder(images), _existing_folder(masks)
    found = LabelledImages(f"{images} with {masks}", {1: category}, folders=(image_folder, mask_folder))
    for image in find_images(image_folder, mask_folder, ImageList(None), BuildLog(found.dropped))[0]:
        assert image.mask is not None
        found.add(image.name, partial(_read_masks, image.path, image.mask), (image.path, image.mask))
    if not found.names:
        raise ValueError(f"no image of {images} has a mask in {masks}: " + found.rejections())
    return found


@dataclass(frozen=True)
class CocoFields:
    """Which optional fields the targets of a data set have."""

    masks: bool
    keypoint_count: int

    @classmethod
    def of(cls, coco: CocoAnnotations, objects: dict[Any, list[dict[str, Any]]], dropped: ReasonCounts) -> CocoFields:
        """Masks where all objects have one, keypoints where all categories that have some have the same number."""
        entries = [entry for group in objects.values() for entry in group]
        without = [entry for entry in entries if not has_mask(entry.get("segmentation"))]
        if without and len(without) < len(entries):
            reason = "mask, because other objects of the data set have none"
            dropped.add(reason, f"annotation {without[0].get('id')} has none", len(entries) - len(without))
        counts = {len(names) for category in coco.raw_categories.values() if (names := category.get("keypoints"))}
        if len(counts) > 1:
            dropped.add("category with keypoints, because their numbers differ", "keypoints", len(counts))
        return cls(bool(entries) and not without, counts.pop() if len(counts) == 1 else 0)


def _found(files: FileFinder, name: str) -> str:
    """The file's name on disk, which may differ in case or Unicode form; the given name if there is no clear match."""
    try:
        return files.find(name)[0]
    except LookupError:
        return name


def _objects_by_image(coco: CocoAnnotations, dropped: ReasonCounts) -> dict[Any, list[dict[str, Any]]]:
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for entry in coco.objects:
        where = f"annotation {entry.get('id')}"
        if not _among(entry.get("image_id"), coco.images):
            dropped.add("object of an image that is not in the JSON", where)
        elif not _among(entry.get("category_id"), coco.raw_categories):
            dropped.add("object of a category that is not in the JSON", where)
        elif entry.get("iscrowd"):
            dropped.add("crowd region, not one object (iscrowd)", where)
        elif entry.get("ignore"):
            dropped.add(IGNORED, where)
        else:
            groups[entry["image_id"]].append(entry)
    return groups


def _read_coco(
    path: Path, record: dict[str, Any], entries: Sequence[dict[str, Any]], fields: CocoFields, dropped: ReasonCounts
) -> Sample:
    height, width = (annotated_side(record, side, set()) for side in ("height", "width"))
    pixels = _read_pixels(path, height, width, is_embedded=EMBEDDED in record)
    rows = []
    for number, entry in enumerate(entries, 1):
        try:
            rows.append(_coco_object(repair_annotation(entry, set()), number, fields, pixels.shape[:2]))
        except RejectedObject as reason:
            dropped.add(f"object: {reason}", f"{path.name}#{entry.get('id')}")
    target: Target = {
        "boxes": torch.tensor([row["box"] for row in rows]).reshape(-1, 4),
        "labels": torch.tensor([row["label"] for row in rows], dtype=torch.int64),
        "ids": torch.tensor([row["id"] for row in rows], dtype=torch.int64),
    }
    if fields.masks:
        masks = np.stack([row["mask"] for row in rows]) if rows else np.zeros((0, *pixels.shape[:2]))
        target["masks"] = torch.from_numpy(masks.astype(bool))
    if fields.keypoint_count:
        points = torch.tensor([row["keypoints"] for row in rows], dtype=torch.float32)
        target["keypoints"] = points.reshape(len(rows), fields.keypoint_count, 3)
    return Sample(file_name(record), _as_image(pixels), target)


def _coco_object(entry: dict[str, Any], number: int, fields: CocoFields, size: tuple[int, ...]) -> dict[str, Any]:
    """One row of the target; ``number`` replaces an id that is not a whole number."""
    box, segmentation, mask = entry.get("bbox"), entry.get("segmentation"), None
    if fields.masks or (box is None and has_mask(segmentation)):
        mask = segmentation_to_mask(segmentation, size[0], size[1])
        box = list(tight_box(mask) or ()) if box is None else box
    if not _numbers(box, 4):
        raise RejectedObject("box is not x, y, width, height")
    left, top, width, height = box  # type: ignore[misc]  # _numbers checks it
    identity = entry.get("id")
    row: dict[str, Any] = {
        "box": [float(left), float(top), float(left + width), float(top + height)],
        "label": int(entry["category_id"]),
        "id": identity if isinstance(identity, int) and 0 <= identity < _LARGEST else number,
    }
    if fields.masks:
        row["mask"] = mask
    if fields.keypoint_count:
        points = entry.get("keypoints") or [0] * (3 * fields.keypoint_count)
        if not _numbers(points, 3 * fields.keypoint_count):
            raise RejectedObject("keypoints are not x, y, visibility for each name of the category")
        row["keypoints"] = points
    return row


def _read_masks(image: Path, mask: Path) -> Sample:
    try:
        numbered = read_index_mask(mask)
    except ValueError as error:
        raise RejectedObject("mask file cannot be read") from error
    pixels = _read_pixels(image, *numbered.shape)
    numbers = np.setdiff1d(numbered, 0)
    masks = numbered == numbers[:, None, None]
    boxes = [tight_box(one.astype(np.uint8)) or (0, 0, 0, 0) for one in masks]
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target = {
        "boxes": torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1),
        "labels": torch.ones(len(numbers), dtype=torch.int64),
        "ids": torch.from_numpy(numbers.astype(np.int64)),
        "masks": torch.from_numpy(masks),
    }
    return Sample(image.name, _as_image(pixels), target)


def _read_pixels(path: Path, height: int, width: int, is_embedded: bool = False) -> NDArray[np.uint8]:
    """An image, or the one in a JSON file of LabelMe, of the annotated size; 0 where no size is annotated."""
    try:
        data = embedded_image(path) if is_embedded else None
        pixels = read_image_like(path, height, width, data=data)
    except FileNotFoundError as error:
        raise RejectedObject(_MISSING) from error
    except (ValueError, KeyError, TypeError) as error:
        raise RejectedObject("image file cannot be read") from error
    if height and width and pixels.shape[:2] != (height, width):
        raise RejectedObject("image file has another size than its annotation")
    return pixels


def _as_image(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous().float() / 255


def _existing_folder(path: str | Path) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder at {folder}, found none")
    return folder


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, (int, float)) and abs(value) < _LARGEST for value in values)
    )


def _among(key: Any, mapping: Mapping[Any, Any]) -> bool:
    return isinstance(key, int | float | str) and key in mapping

"""The content of a COCO JSON: images, annotations and categories."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from terse_aug.bank.build.report import BuildLog, RejectedSample
from terse_aug.bank.inputs.coco_entries import (
    file_name,
    read_categories,
    read_entries,
    read_images,
    resolve_references,
)
from terse_aug.bank.inputs.image_list import NOT_LISTED, ImageList
from terse_aug.bank.inputs.masks import BOX_ONLY, NO_MASK, as_json, has_mask, segmentation_as_json
from terse_aug.bank.inputs.repair import Repairs, as_whole_number
from terse_aug.bank.selection import listed
from terse_aug.viz.text import printable

IGNORED = "object that is marked to be ignored (ignore)"
"""Reason to reject an object: MMDetection leaves it out, too."""

_LISTS = ("images", "annotations", "categories")
_CROWD = "crowd region, not one object (iscrowd)"
_SHOWN = (_CROWD, BOX_ONLY, NO_MASK)
"""Reasons whose rejected samples are shown; the others follow from the user's choice."""


@dataclass(frozen=True)
class CocoAnnotations:
    """The parts of a COCO JSON that a bank needs: images and categories by their ids, and objects with these ids.

    What was rejected and repaired in reading is in ``log``.
    """

    images: dict[Any, dict[str, Any]]
    objects: list[dict[str, Any]]
    raw_categories: dict[int, dict[str, Any]]
    log: BuildLog = field(default_factory=BuildLog)

    @classmethod
    def read(cls, path: Path) -> CocoAnnotations:
        """Read a file; ``FileNotFoundError`` if there is none, ``ValueError`` if it is no COCO JSON."""
        if not path.is_file():
            raise FileNotFoundError(f"expected a COCO JSON file at {path}, found none")
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"expected a COCO JSON file, got {path}, which is not JSON ({error})") from error
        return cls.parse(content, str(path))

    @classmethod
    def from_memory(cls, content: Any, name: str) -> CocoAnnotations:
        """As :meth:`parse`, of content that may hold numpy's numbers and arrays, tuples, bytes and bitmaps."""
        if not isinstance(content, Mapping):
            return cls.parse(content, name)
        lists = {key: list(entries) for key in _LISTS if isinstance(entries := content.get(key), list | tuple)}
        converted = {key: [as_json(_without_bitmap(entry)) for entry in entries] for key, entries in lists.items()}
        return cls.parse({**content, **converted}, name)

    @classmethod
    def parse(cls, content: Any, name: str) -> CocoAnnotations:
        """The content of a JSON file; error messages (``ValueError``) use the name."""
        lists = [content.get(key) if isinstance(content, Mapping) else None for key in _LISTS]
        if not all(isinstance(entries, list) for entries in lists):
            raise ValueError(
                f"expected a COCO JSON with lists of {', '.join(_LISTS)} (an instances or keypoints file), got {name}"
            )
        log = BuildLog()
        images, objects, categories = (read_entries(key, content[key], log) for key in _LISTS)
        image_by_id = read_images(images, log)
        category_by_id = read_categories(categories, log)
        if categories and not category_by_id:
            raise ValueError(f"{name}: no category has an id that is a number and a name")
        objects = resolve_references(objects, image_by_id, category_by_id, log)
        return cls(image_by_id, objects, category_by_id, log)

    @property
    def categories(self) -> dict[int, str]:
        """Name of each category id."""
        return {label: category["name"] for label, category in self.raw_categories.items()}

    def select_categories(self, names: Collection[str] | None, may_lack: bool = False) -> dict[int, str]:
        """Ids and names of the named categories, or of all.

        Args:
            names: of the categories; ``None`` for all.
            may_lack: whether some of them may be unknown.

        Raises:
            ValueError: a category is unknown, or none is given.
        """
        known = self.categories
        if names is None:
            return known
        names = [names] if isinstance(names, str) else list(names)
        unknown = [] if may_lack else [name for name in names if name not in known.values()]
        if unknown or not names:
            raise ValueError(
                f"no such categories: {listed(unknown) or '(none given)'}; "
                f"the JSON has {listed(sorted(known.values()))}"
            )
        return {label: name for label, name in known.items() if name in names}

    def keypoint_names(self, selected: dict[int, str]) -> tuple[str, ...]:
        """Keypoint names of the selected categories that have some; ``ValueError`` if they differ."""
        category_of = {
            tuple(printable(str(name)) for name in self.raw_categories[label]["keypoints"]): selected[label]
            for label in selected
            if self.raw_categories[label].get("keypoints")
        }
        if len(category_of) > 1:
            raise ValueError(
                f"the categories {listed(list(category_of.values()))} have different keypoints; "
                "build one bank each, choosing by categories (--category)"
            )
        return next(iter(category_of), ())

    def objects_by_image(
        self, selected: dict[int, str], image_list: ImageList, boxes: bool, log: BuildLog
    ) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Images with their usable objects, in the JSON's order; the other objects are counted.

        Args:
            selected: categories.
            image_list: images to use.
            boxes: whether objects with a box only are usable.
            log: counts the others.
        """
        on_list = {key: file_name(image) in image_list for key, image in self.images.items()}
        groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for entry in self.objects:
            image_id = entry.get("image_id")
            reason = self._rejection(entry, selected, on_list, boxes)
            if reason is None:
                groups[image_id].append(entry)
            else:
                where = self._place(entry)
                shown = rejected_sample(self.images[image_id], entry) if reason in _SHOWN else None
                log.drop(reason, where, shown=shown)
        image_list.report_unmatched(log)
        return [(image, groups[key]) for key, image in self.images.items() if key in groups]

    def _rejection(
        self, entry: dict[str, Any], selected: dict[int, str], on_list: dict[Any, bool], boxes: bool
    ) -> str | None:
        image_id, category_id = entry.get("image_id"), entry.get("category_id")
        if not isinstance(image_id, int | float | str) or image_id not in self.images:
            return "image is not in the JSON"
        if not isinstance(category_id, int | float) or category_id not in self.raw_categories:
            return "category is not in the JSON"
        if category_id not in selected:
            return "category is not in `categories`"
        if not on_list[image_id]:
            return NOT_LISTED
        if entry.get("ignore"):
            return IGNORED
        if entry.get("iscrowd"):
            return _CROWD
        if has_mask(entry.get("segmentation")) or (boxes and entry.get("bbox")):
            return None
        return BOX_ONLY if entry.get("bbox") else NO_MASK

    def _place(self, entry: Mapping[str, Any]) -> str:
        """Where a user finds an annotation: by file and class where its ids lead there."""
        image, category = entry.get("image_id"), entry.get("category_id")
        if not isinstance(image, int | float | str) or image not in self.images:
            return f"annotation {entry.get('id')} (image_id {image}, category_id {category})"
        name = f"category_id {category}"
        if isinstance(category, int | float) and category in self.raw_categories:
            name = self.raw_categories[int(category)]["name"]
        return f"{file_name(self.images[image])}#{entry.get('id')} ({name})"


def coco_content(
    images: Sequence[tuple[str, Mapping[str, Any], Sequence[Mapping[str, Any]]]],
    categories: Sequence[Mapping[str, Any]],
    description: str,
) -> tuple[dict[str, Any], Path]:
    """A framework's data set as the content of a COCO JSON.

    Args:
        images: for each its file name, its record, whose height and width are used, and its annotations.
        categories: in COCO's form.
        description: of the data set, written into the bank.

    Returns:
        The content, and the folder that its file names are relative to.
    """
    files = [Path(name).absolute() for name, _, _ in images]
    folder = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, ((_, record, own), file) in enumerate(zip(images, files, strict=True)):
        size = {key: record[key] for key in ("height", "width") if record.get(key)}
        entries.append({"id": number, "file_name": str(file.relative_to(folder)), **size})
        annotations += [{**entry, "id": len(annotations) + row, "image_id": number} for row, entry in enumerate(own)]
    content = {"images": entries, "annotations": annotations, "categories": list(categories)}
    return content | {"info": {"description": description}}, folder


def annotated_side(image: Mapping[str, Any], name: str, repairs: Repairs) -> int:
    """``height`` or ``width`` of an image in px as annotated; 0 where it is missing."""
    side = as_whole_number(image.get(name) or 0, repairs)
    if isinstance(side, int) and side >= 0:
        return side
    repairs.add("size of the image is no number: the file's size is used")
    return 0


def rejected_sample(image: Mapping[str, Any], entry: Mapping[str, Any]) -> RejectedSample:
    """An annotation on its image, for a contact sheet."""
    name, size = file_name(image), (annotated_side(image, "height", set()), annotated_side(image, "width", set()))
    return RejectedSample(name, f"{name}#{entry.get('id')}", entry.get("bbox"), entry.get("segmentation"), size)


def _without_bitmap(entry: Any) -> Any:
    """An annotation with an RLE instead of a bitmap, whose lists of numbers would look like polygons."""
    bitmap = entry.get("segmentation") if isinstance(entry, dict) else None
    if isinstance(bitmap, np.ndarray) and bitmap.ndim == 2 and bitmap.dtype in (bool, np.uint8):
        return entry | {"segmentation": segmentation_as_json(bitmap)}
    return entry

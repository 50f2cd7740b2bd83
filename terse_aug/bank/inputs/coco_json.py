"""What a COCO JSON holds. Imports the parts of this package only."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from terse_aug.bank.build.rejected_sample import RejectedSample
from terse_aug.bank.build.report import BuildLog
from terse_aug.bank.inputs.image_list import ImageList
from terse_aug.bank.inputs.masks import NO_MASK, as_json, has_mask, segmentation_as_json
from terse_aug.bank.inputs.repair import (
    TEXT_ID,
    Malformed,
    Notes,
    class_name,
    has_text,
    is_inexact,
    known_id,
    too_deep,
    whole,
)
from terse_aug.bank.selection import listed
from terse_aug.viz.text import printable


@dataclass(frozen=True)
class Coco:
    """The parts of a COCO JSON that a bank needs.

    Attributes:
        images: by their ids.
        objects: the annotations; their ids of images and categories are those of the others, where such are meant.
        raw_categories: by their ids.
        ledger: what could not be used in reading, and what was mended.
    """

    images: dict[Any, dict[str, Any]]
    objects: list[dict[str, Any]]
    raw_categories: dict[int, dict[str, Any]]
    ledger: BuildLog = field(default_factory=BuildLog)

    @classmethod
    def read(cls, path: Path) -> Coco:
        if not path.is_file():
            raise FileNotFoundError(f"expected a COCO JSON file at {path}, found none")
        try:
            content = _read_json(path)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"expected a COCO JSON file, got {path}, which is not JSON ({error})") from error
        return cls.of(content, str(path))

    @classmethod
    def in_memory(cls, content: Any, path: str) -> Coco:
        """What a JSON would hold, with numpy's numbers and arrays, tuples and bytes in it; messages call it by the
        path."""
        if not isinstance(content, Mapping):
            return cls.of(content, path)
        lists = {key: list(entries) for key in _LISTS if isinstance(entries := content.get(key), list | tuple)}
        plain = {key: [entry if too_deep(entry) else as_json(_drawn(entry)) for entry in lists[key]] for key in lists}
        return cls.of({**content, **plain}, path)

    @classmethod
    def of(cls, content: Any, path: str) -> Coco:
        """What a JSON holds; messages call it by the path."""
        lists = [content.get(key) if isinstance(content, Mapping) else None for key in _LISTS]
        if not all(isinstance(entries, list) for entries in lists):
            raise ValueError(
                f"expected a COCO JSON with lists of {', '.join(_LISTS)} (an instances or keypoints file), got {path}"
            )
        ledger = BuildLog()
        images, objects, categories = (_entries(key, content[key], ledger) for key in _LISTS)
        by_id = _images(images, ledger)
        known = _categories(categories, ledger)
        if categories and not known:
            raise ValueError(f"{path}: no category has an id that is a number and a name")
        texts = {entry["category_id"] for entry in objects if isinstance(entry.get("category_id"), str)}
        meanings = _meanings(texts, known)
        linked = (_linked(entry, by_id, known, meanings, ledger) for entry in objects)
        return cls(by_id, [entry for entry in linked if entry is not None], known, ledger)

    @property
    def categories(self) -> dict[int, str]:
        return {label: category["name"] for label, category in self.raw_categories.items()}

    def chosen(self, names: Collection[str]) -> dict[int, str]:
        names = [names] if isinstance(names, str) else list(names)
        known = self.categories
        unknown = [name for name in names if name not in known.values()]
        if unknown or not names:
            raise ValueError(
                f"no such categories: {listed(unknown) or '(none asked for)'}; "
                f"the JSON has {listed(sorted(known.values()))}"
            )
        return {label: name for label, name in known.items() if name in names}

    def keypoint_names(self, wanted: dict[int, str]) -> tuple[str, ...]:
        named_by = {
            tuple(printable(str(name)) for name in self.raw_categories[label]["keypoints"]): wanted[label]
            for label in wanted
            if self.raw_categories[label].get("keypoints")
        }
        if len(named_by) > 1:
            raise ValueError(
                f"the categories {listed(list(named_by.values()))} have different keypoints; "
                "build one bank each, choosing by categories (--category)"
            )
        return next(iter(named_by), ())

    def eligible(
        self, wanted: dict[int, str], image_list: ImageList, boxes: bool, ledger: BuildLog
    ) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Images with the objects worth a look, in the JSON's order; the others are counted."""
        included = {key: file_name(image) in image_list for key, image in self.images.items()}
        groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for entry in self.objects:
            image_id, category_id = entry.get("image_id"), entry.get("category_id")
            reason = self._reason_against(entry, wanted, included, boxes)
            if reason is None:
                groups[image_id].append(entry)
            else:
                where = f"annotation {entry.get('id')} (image {image_id}, category {category_id})"
                shown = exhibit(self.images[image_id], entry) if reason in _SHOWN else None
                ledger.drop(reason, where, shown=shown)
        image_list.report_unmatched(ledger)
        return [(image, groups[key]) for key, image in self.images.items() if key in groups]

    def _reason_against(
        self, entry: dict[str, Any], wanted: dict[int, str], included: dict[Any, bool], boxes: bool
    ) -> str | None:
        if not isinstance(entry.get("image_id"), int | float | str) or entry["image_id"] not in self.images:
            return "image is not in the JSON"
        category = entry.get("category_id")
        if not isinstance(category, int | float) or category not in self.raw_categories:
            return "category is not in the JSON"
        if entry["category_id"] not in wanted:
            return "category is not in `categories`"
        if not included[entry["image_id"]]:
            return "image is not in `image_list`"
        if entry.get("iscrowd"):
            return _CROWD
        return None if has_mask(entry.get("segmentation")) or (boxes and entry.get("bbox")) else NO_MASK


def _drawn(entry: Any) -> Any:
    """An annotation with a bitmap as an RLE: its lists of numbers would look like polygons."""
    bitmap = entry.get("segmentation") if isinstance(entry, dict) else None
    if isinstance(bitmap, np.ndarray) and bitmap.ndim == 2 and bitmap.dtype in (bool, np.uint8):
        return entry | {"segmentation": segmentation_as_json(bitmap)}
    return entry


_CROWD = "crowd region, not one object (iscrowd)"
_SHOWN = (_CROWD, NO_MASK)
"""Reasons of which there is something to see; the others follow from what was asked for."""
_LISTS = ("images", "annotations", "categories")


def file_name(image: Mapping[str, Any]) -> str:
    """Of an image; the end of its address where it has nothing else, as in LVIS."""
    return str(image.get("file_name") or PurePosixPath(str(image.get("coco_url", ""))).name)


def side_of(image: Mapping[str, Any], name: str, notes: Notes) -> int:
    """Of an image as its annotation has it, px; 0 where it does not say."""
    side = whole(image.get(name) or 0, notes)
    if isinstance(side, int) and side >= 0:
        return side
    notes.add("size of the image is no number: that of the file is taken")
    return 0


def exhibit(image: Mapping[str, Any], entry: Mapping[str, Any]) -> RejectedSample:
    """An annotation, to be looked at on its image."""
    name, size = file_name(image), (side_of(image, "height", set()), side_of(image, "width", set()))
    return RejectedSample(name, f"{name}#{entry.get('id')}", entry.get("bbox"), entry.get("segmentation"), size)


def _read_json(path: Path) -> Any:
    text = path.read_bytes()
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:  # a number of more digits than Python reads
        return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _MOST_DIGITS else digits)


_MOST_DIGITS = 300
_INT64 = range(-(2**63), 2**63)


def _entries(key: str, entries: list[Any], ledger: BuildLog) -> list[dict[str, Any]]:
    sound = []
    for position, entry in enumerate(entries):
        if too_deep(entry):
            ledger.drop(f"entry in {key} is nested too deeply", f"number {position}")
        elif not isinstance(entry, dict):
            ledger.drop(f"entry in {key} is no mapping", f"number {position}: {str(entry)[:100]}")
        elif any(_is_endless(entry.get(name)) for name in ("id", "image_id", "category_id")):
            ledger.drop(f"entry in {key} has an id of more than {_MOST_DIGITS} digits", f"number {position}")
        else:
            sound.append(entry)
    return sound


def _is_endless(number: Any) -> bool:
    return isinstance(number, int) and abs(number) >= 10**_MOST_DIGITS


def _images(entries: list[dict[str, Any]], ledger: BuildLog) -> dict[Any, dict[str, Any]]:
    """By id; an id of several files means none of them."""
    images: dict[Any, dict[str, Any]] = {}
    contradicted: Counter[Any] = Counter()
    for image in entries:
        key = image.get("id")
        if not isinstance(key, int | float | str) or is_inexact(key):
            ledger.drop("image without an id", file_name(image))
        elif key not in images:
            images[key] = image
        elif file_name(images[key]) == file_name(image):
            ledger.repair(["image listed twice"], file_name(image))
        else:
            contradicted[key] += 1
    for key, times in contradicted.items():
        ledger.drop("image id of several files", f"{key}: {file_name(images.pop(key))}", times + 1)
    return images


def _categories(entries: list[dict[str, Any]], ledger: BuildLog) -> dict[int, dict[str, Any]]:
    """By id, with their names as they are meant; an id of several names means none of them."""
    known: dict[int, dict[str, Any]] = {}
    contradicted: set[int] = set()
    for category in entries:
        notes: Notes = set()
        label = whole(category.get("id"), notes)
        try:
            name = class_name(category.get("name"), notes)
        except Malformed:
            name = ""
        if not isinstance(label, int) or not name:
            ledger.drop("category without a name or an id that is a number", str(category)[:100])
            continue
        if label not in _INT64:
            ledger.drop("category id is beyond 64 bits", f"{label} ({name})")
            continue
        if not isinstance(category.get("keypoints") or [], list):
            notes.add("names of keypoints that are no list were left out")
            category = category | {"keypoints": []}
        ledger.repair(notes, f"category {label} ({name})")
        if label in known and known[label]["name"] != name:
            contradicted.add(label)
            ledger.drop("category id of several names", f"{label}: {known[label]['name']}, {name}")
        known.setdefault(label, category | {"id": label, "name": name})
    return {label: category for label, category in known.items() if label not in contradicted}


_AMBIGUOUS = "category as text is the id of one and the name of another"


def _meanings(texts: Collection[str], categories: dict[int, dict[str, Any]]) -> dict[str, tuple[int, str] | None]:
    """The ids of categories that texts mean, and why; ``None`` for texts that are one's id and another's name.

    Such texts are read as all texts of the file can be, where that is as ids or as names, but not both. Texts that
    mean nothing are not in it.
    """
    by_id = {text: known_id(text, categories, set()) for text in texts}
    by_name = {text: _by_name(text, categories) for text in texts}
    contradicted = {text for text in texts if None not in (by_id[text], by_name[text]) and by_id[text] != by_name[text]}
    all_ids, all_names = None not in by_id.values(), None not in by_name.values()
    meanings: dict[str, tuple[int, str] | None] = {}
    for text in texts:
        own_id, own_name = by_id[text], by_name[text]
        if text in contradicted and all_ids == all_names:
            meanings[text] = None
        elif own_id is not None and (text not in contradicted or all_ids):
            meanings[text] = (own_id, TEXT_ID)
        elif own_name is not None:
            meanings[text] = (own_name, "category given by its name")
    return meanings


def _by_name(name: str, categories: dict[int, dict[str, Any]]) -> int | None:
    labels = [label for label, category in categories.items() if category["name"] == name.strip()]
    return labels[0] if len(labels) == 1 else None


def _linked(
    entry: dict[str, Any],
    images: dict[Any, Any],
    categories: dict[int, dict[str, Any]],
    meanings: dict[str, tuple[int, str] | None],
    ledger: BuildLog,
) -> dict[str, Any] | None:
    """An annotation with the ids of its image and category as these have them, and its mark of a crowd a number.

    ``None`` where it is not clear which category is meant.
    """
    image, category, crowd = entry.get("image_id"), entry.get("category_id"), entry.get("iscrowd", 0)
    odd_category = isinstance(category, str) or is_inexact(category)
    if not (_is_odd(image, images) or odd_category or has_text(crowd)):
        return entry
    notes: Notes = set()
    changed: dict[str, Any] = {}
    if _is_odd(image, images):
        meant = known_id(image, images, notes)
        if meant is not None or is_inexact(image):
            changed["image_id"] = meant
    if isinstance(category, str) and category in meanings:
        meaning = meanings[category]
        if meaning is None:
            ledger.drop(_AMBIGUOUS, f"annotation {entry.get('id')} (category {category})")
            return None
        changed["category_id"] = meaning[0]
        notes.add(meaning[1])
    elif is_inexact(category):
        changed["category_id"] = None
    if has_text(crowd):
        changed["iscrowd"] = whole(crowd, notes)
    ledger.repair(notes, f"annotation {entry.get('id')}")
    return entry | changed


def _is_odd(image: Any, images: dict[Any, Any]) -> bool:
    return isinstance(image, str) or is_inexact(image) or (isinstance(image, int | float) and image not in images)

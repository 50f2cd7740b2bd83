"""What a COCO JSON holds. Imports the parts of this package only."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from terse_aug._text import printable
from terse_aug.bank._exhibit import Exhibit
from terse_aug.bank._include import Include
from terse_aug.bank._mending import Malformed, Notes, class_name, has_text, known_id, whole
from terse_aug.bank._report import Ledger
from terse_aug.bank._segmentation import NO_MASK, has_mask
from terse_aug.bank._selection import listed


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
    ledger: Ledger = field(default_factory=Ledger)

    @classmethod
    def read(cls, path: Path) -> Coco:
        if not path.is_file():
            raise FileNotFoundError(f"expected a COCO JSON file at {path}, found none")
        try:
            content = json.loads(path.read_bytes())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"expected a COCO JSON file, got {path}, which is not JSON ({error})") from error
        return cls.of(content, str(path))

    @classmethod
    def of(cls, content: Any, path: str) -> Coco:
        """What a JSON holds; messages call it by the path."""
        lists = [content.get(key) if isinstance(content, Mapping) else None for key in _LISTS]
        if not all(isinstance(entries, list) for entries in lists):
            raise ValueError(
                f"expected a COCO JSON with lists of {', '.join(_LISTS)} (an instances or keypoints file), got {path}"
            )
        ledger = Ledger()
        images, objects, categories = (_entries(key, content[key], ledger) for key in _LISTS)
        by_id = _images(images, ledger)
        known = _categories(categories, ledger)
        if categories and not known:
            raise ValueError(f"{path}: no category has an id that is a number and a name")
        return cls(by_id, [_linked(entry, by_id, known, ledger) for entry in objects], known, ledger)

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
        self, wanted: dict[int, str], include: Include, boxes: bool, ledger: Ledger
    ) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Images with the objects worth a look, in the JSON's order; the others are counted."""
        included = {key: file_name(image) in include for key, image in self.images.items()}
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
        include.report_unmatched(ledger)
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
            return "image is not in `include`"
        if entry.get("iscrowd"):
            return _CROWD
        return None if has_mask(entry.get("segmentation")) or (boxes and entry.get("bbox")) else NO_MASK


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


def exhibit(image: Mapping[str, Any], entry: Mapping[str, Any]) -> Exhibit:
    """An annotation, to be looked at on its image."""
    name, size = file_name(image), (side_of(image, "height", set()), side_of(image, "width", set()))
    return Exhibit(name, f"{name}#{entry.get('id')}", entry.get("bbox"), entry.get("segmentation"), size)


def _entries(key: str, entries: list[Any], ledger: Ledger) -> list[dict[str, Any]]:
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            ledger.drop(f"entry in {key} is no mapping", f"number {position}: {str(entry)[:100]}")
    return [entry for entry in entries if isinstance(entry, dict)]


def _images(entries: list[dict[str, Any]], ledger: Ledger) -> dict[Any, dict[str, Any]]:
    """By id; an id of several files means none of them."""
    images: dict[Any, dict[str, Any]] = {}
    contradicted: Counter[Any] = Counter()
    for image in entries:
        key = image.get("id")
        if not isinstance(key, int | float | str):
            ledger.drop("image without an id", file_name(image))
        elif key not in images:
            images[key] = image
        elif file_name(images[key]) == file_name(image):
            ledger.mend(["image listed twice"], file_name(image))
        else:
            contradicted[key] += 1
    for key, times in contradicted.items():
        ledger.drop("image id of several files", f"{key}: {file_name(images.pop(key))}", times + 1)
    return images


def _categories(entries: list[dict[str, Any]], ledger: Ledger) -> dict[int, dict[str, Any]]:
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
        if not isinstance(category.get("keypoints") or [], list):
            notes.add("names of keypoints that are no list were left out")
            category = category | {"keypoints": []}
        ledger.mend(notes, f"category {label} ({name})")
        if label in known and known[label]["name"] != name:
            contradicted.add(label)
            ledger.drop("category id of several names", f"{label}: {known[label]['name']}, {name}")
        known.setdefault(label, category | {"id": label, "name": name})
    return {label: category for label, category in known.items() if label not in contradicted}


def _linked(
    entry: dict[str, Any], images: dict[Any, Any], categories: dict[int, dict[str, Any]], ledger: Ledger
) -> dict[str, Any]:
    """An annotation with the ids of its image and category as these have them, and its mark of a crowd a number."""
    image, category, crowd = entry.get("image_id"), entry.get("category_id"), entry.get("iscrowd", 0)
    if not (isinstance(image, str) or isinstance(category, str) or has_text(crowd) or _unknown(image, images)):
        return entry
    notes: Notes = set()
    changed: dict[str, Any] = {}
    for key, value, known in (("image_id", image, images), ("category_id", category, categories)):
        meant = known_id(value, known, notes)
        if meant is None and key == "category_id" and isinstance(value, str):
            meant = _by_name(value, categories, notes)
        if meant is not None:
            changed[key] = meant
    if has_text(crowd):
        changed["iscrowd"] = whole(crowd, notes)
    ledger.mend(notes, f"annotation {entry.get('id')}")
    return entry | changed


def _unknown(key: Any, images: dict[Any, Any]) -> bool:
    return isinstance(key, int | float) and key not in images


def _by_name(name: str, categories: dict[int, dict[str, Any]], notes: Notes) -> int | None:
    labels = [label for label, category in categories.items() if category["name"] == name.strip()]
    if len(labels) != 1:
        return None
    notes.add("category given by its name")
    return labels[0]

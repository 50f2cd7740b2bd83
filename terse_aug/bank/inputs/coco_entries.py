"""Checks the entries of a COCO JSON and the ids by which they refer to each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from terse_aug.bank.build.report import BuildLog
from terse_aug.bank.inputs.repair import (
    TEXT_ID,
    Malformed,
    Repairs,
    as_whole_number,
    class_name,
    contains_text,
    find_id,
)

_INT64 = range(-(2**63), 2**63)
_AMBIGUOUS = "category as text is the id of one and the name of another"

Entries = dict[Any, dict[str, Any]]
"""Images or categories by their ids."""


def file_name(image: Mapping[str, Any]) -> str:
    """File name of an image; the end of its URL if it has nothing else, as in LVIS."""
    return str(image.get("file_name") or PurePosixPath(str(image.get("coco_url", ""))).name)


def read_entries(key: str, entries: list[Any], log: BuildLog) -> list[dict[str, Any]]:
    """The entries of a list of the JSON that are mappings; the others are counted."""
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            log.drop(f"entry in {key} is no mapping", f"number {position}: {str(entry)[:100]}")
    return [entry for entry in entries if isinstance(entry, dict)]


def read_images(entries: list[dict[str, Any]], log: BuildLog) -> Entries:
    """Images by id; an id of several files is dropped."""
    images: Entries = {}
    ambiguous: Counter[Any] = Counter()
    for image in entries:
        key, name = image.get("id"), file_name(image)
        if not isinstance(key, int | float | str):
            log.drop("image without an id", name)
        elif key not in images:
            images[key] = image
        elif file_name(images[key]) == name:
            log.repair(["image listed twice"], name)
        else:
            ambiguous[key] += 1
    for key, times in ambiguous.items():
        log.drop("image id of several files", f"{key}: {file_name(images.pop(key))}", times + 1)
    return images


def read_categories(entries: list[dict[str, Any]], log: BuildLog) -> dict[int, dict[str, Any]]:
    """Categories by id, with repaired names; an id of several names is dropped."""
    known: dict[int, dict[str, Any]] = {}
    ambiguous: set[int] = set()
    for category in entries:
        repairs: Repairs = set()
        label = as_whole_number(category.get("id"), repairs)
        try:
            name = class_name(category.get("name"), repairs)
        except Malformed:
            name = ""
        if not isinstance(label, int) or label not in _INT64 or not name:
            log.drop("category without a name or an id that is a number of 64 bits", str(category)[:100])
            continue
        if not isinstance(category.get("keypoints") or [], list):
            repairs.add("names of keypoints that are no list were left out")
            category = category | {"keypoints": []}
        log.repair(repairs, f"category {label} ({name})")
        if label in known and known[label]["name"] != name:
            ambiguous.add(label)
            log.drop("category id of several names", f"{label}: {known[label]['name']}, {name}")
        known.setdefault(label, category | {"id": label, "name": name})
    return {label: category for label, category in known.items() if label not in ambiguous}


def resolve_references(
    objects: Iterable[dict[str, Any]], images: Entries, categories: dict[int, dict[str, Any]], log: BuildLog
) -> list[dict[str, Any]]:
    """Annotations with the ids that images and categories have, and with numbers for ``iscrowd`` and ``ignore``.

    An annotation whose category is ambiguous is counted and left out.
    """
    objects = list(objects)
    texts = {entry["category_id"] for entry in objects if isinstance(entry.get("category_id"), str)}
    meanings = _category_meanings(texts, categories)
    resolved = (_resolve(entry, images, meanings, log) for entry in objects)
    return [entry for entry in resolved if entry is not None]


def _category_meanings(
    texts: Collection[str], categories: dict[int, dict[str, Any]]
) -> dict[str, tuple[int, str] | None]:
    """The category ids that texts mean, and the repair; ``None`` for a text that is one's id and another's name.

    Such a text is read as all texts of the file can be: as ids or as names, if only one of these is possible. Texts
    that mean no category are left out.
    """
    by_id = {text: find_id(text, categories, set()) for text in texts}
    by_name = {text: _find_name(text, categories) for text in texts}
    all_ids, all_names = None not in by_id.values(), None not in by_name.values()
    meanings: dict[str, tuple[int, str] | None] = {}
    for text in texts:
        own_id, own_name = by_id[text], by_name[text]
        conflict = own_id is not None and own_name is not None and own_id != own_name
        if conflict and all_ids == all_names:
            meanings[text] = None
        elif own_id is not None and (not conflict or all_ids):
            meanings[text] = (own_id, TEXT_ID)
        elif own_name is not None:
            meanings[text] = (own_name, "category given by its name")
    return meanings


def _find_name(name: str, categories: dict[int, dict[str, Any]]) -> int | None:
    labels = [label for label, category in categories.items() if category["name"] == name.strip()]
    return labels[0] if len(labels) == 1 else None


def _resolve(
    entry: dict[str, Any], images: Entries, meanings: dict[str, tuple[int, str] | None], log: BuildLog
) -> dict[str, Any] | None:
    image, category = entry.get("image_id"), entry.get("category_id")
    repairs: Repairs = set()
    changed: dict[str, Any] = {}
    known = find_id(image, images, repairs)
    if known is not None and known is not image:
        changed["image_id"] = known
    if isinstance(category, str) and category in meanings:
        meaning = meanings[category]
        if meaning is None:
            log.drop(_AMBIGUOUS, f"annotation {entry.get('id')} (category {category})")
            return None
        changed["category_id"] = meaning[0]
        repairs.add(meaning[1])
    for flag in ("iscrowd", "ignore"):
        if contains_text(entry.get(flag)):
            changed[flag] = as_whole_number(entry[flag], repairs)
    log.repair(repairs, f"annotation {entry.get('id')}")
    return entry | changed if changed else entry

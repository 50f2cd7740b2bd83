"""COCO's panoptic format: a JSON, and a PNG of segment numbers for each image. Imports the standard library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from terse_aug.bank._report import Ledger
from terse_aug.bank._segmentation import MaskInFile
from terse_aug.bank.formats._reading import Reading


def read_panoptic(annotations: Path, masks: Path, images: Path) -> Reading:
    """Read panoptic annotations: things are objects, stuff is left out.

    Args:
        annotations: the JSON.
        masks: folder of the PNG files, whose colours are segment numbers R + 256 G + 65536 B.
        images: folder of the images.

    Raises:
        FileNotFoundError: the file or a folder does not exist.
        ValueError: it is no panoptic JSON, or has no things.
    """
    if not annotations.is_file():
        raise FileNotFoundError(f"expected a panoptic JSON at {annotations}, found none")
    for folder in (masks, images):
        if not folder.is_dir():
            raise FileNotFoundError(f"expected a folder at {folder}, found none")
    ledger = Ledger()
    try:
        content = json.loads(annotations.read_bytes())
        things = [category for category in content["categories"] if category.get("isthing", 1)]
        known = {category["id"]: category.get("isthing", 1) for category in content["categories"]}
        objects = [entry for group in content["annotations"] for entry in _objects(group, masks, known, ledger)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{annotations}: expected a panoptic JSON of COCO's form: {error!r}") from error
    if not objects:
        raise ValueError(f"{annotations}: expected objects (categories with isthing 1), found none")
    read = {"images": content["images"], "annotations": objects, "categories": things}
    return Reading("panoptic", annotations.name, read, images, ledger)


def _objects(group: Any, masks: Path, known: dict[Any, Any], ledger: Ledger) -> list[dict[str, Any]]:
    """The objects of an image; ``known`` says of each category whether it is of things."""
    segments = group.get("segments_info") if isinstance(group, dict) else None
    if not isinstance(segments, list) or not isinstance(group.get("file_name"), str) or "image_id" not in group:
        ledger.drop("image without segments or mask file", str(group)[:100])
        return []
    objects = []
    for segment in segments:
        where = f"{group['file_name']}, segment {segment.get('id') if isinstance(segment, dict) else segment}"
        if not isinstance(segment, dict) or not all(isinstance(segment.get(key), int) for key in ("id", "category_id")):
            ledger.drop("segment without an id or a category", where)
        elif segment["category_id"] not in known:
            ledger.drop("category is not in the JSON", where)
        elif not known[segment["category_id"]]:
            ledger.drop("stuff, not an object", where)
        else:
            shape = {"segmentation": MaskInFile(masks / group["file_name"], segment["id"], colours=True)}
            kept = {key: segment[key] for key in ("id", "category_id", "bbox", "iscrowd") if key in segment}
            objects.append(kept | shape | {"image_id": group["image_id"]})
    return objects

"""COCO's panoptic format: a JSON, and a PNG of segment numbers for each image. Imports the standard library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from terse_aug.bank._report import Dropped
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
    dropped = Dropped()
    try:
        content = json.loads(annotations.read_bytes())
        things = [category for category in content["categories"] if category.get("isthing", 1)]
        objects = [entry for group in content["annotations"] for entry in _objects(group, masks, things, dropped)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{annotations}: expected a panoptic JSON of COCO's form: {error!r}") from error
    if not objects:
        raise ValueError(f"{annotations}: expected objects (categories with isthing 1), found none")
    read = {"images": content["images"], "annotations": objects, "categories": things}
    return Reading("panoptic", annotations.name, read, images, dropped)


def _objects(
    group: dict[str, Any], masks: Path, things: list[dict[str, Any]], dropped: Dropped
) -> list[dict[str, Any]]:
    known = {category["id"] for category in things}
    path = masks / group["file_name"]
    objects = []
    for segment in group["segments_info"]:
        if segment["category_id"] not in known:
            dropped.add("stuff, not an object", f"{path.name}, segment {segment['id']}")
            continue
        objects.append(
            {
                "id": segment["id"],
                "image_id": group["image_id"],
                "category_id": segment["category_id"],
                "bbox": segment.get("bbox"),
                "iscrowd": segment.get("iscrowd", 0),
                "segmentation": MaskInFile(path, segment["id"], colours=True),
            }
        )
    return objects

"""COCO's panoptic format: a JSON, and a PNG of segment numbers for each image. Imports the standard library."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terse_aug.bank.build.report import BuildLog
from terse_aug.bank.inputs.file_names import Files
from terse_aug.bank.inputs.masks import MaskInFile
from terse_aug.bank.inputs.repair import Malformed, Notes, known_id, whole
from terse_aug.bank.readers.annotation_collector import Reading


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
    ledger = BuildLog()
    try:
        content = json.loads(annotations.read_bytes())
        things = [category for category in content["categories"] if category.get("isthing", 1)]
        known = {category["id"]: category.get("isthing", 1) for category in content["categories"]}
        groups = content["annotations"]
        names = [str(group.get("file_name")) for group in groups if isinstance(group, dict)]
        reader = _Reader(masks, Files(masks, names, pictures=False), known, ledger)
        objects = [entry for group in groups for entry in reader.objects(group)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{annotations}: expected a panoptic JSON of COCO's form: {error!r}") from error
    if not objects:
        raise ValueError(f"{annotations}: expected objects (categories with isthing 1), found none")
    read = {"images": content["images"], "annotations": objects, "categories": things}
    return Reading("panoptic", annotations.name, read, images, ledger)


@dataclass(frozen=True)
class _Reader:
    """Reads the objects of one image after the other.

    Attributes:
        folder: of the masks.
        files: the same, by the names that annotations have for them.
        known: whether each category, by its id, is of things.
        ledger: told of what is mended and left out.
    """

    folder: Path
    files: Files
    known: dict[Any, Any]
    ledger: BuildLog

    def objects(self, group: Any) -> list[dict[str, Any]]:
        """The objects of an image."""
        segments = group.get("segments_info") if isinstance(group, dict) else None
        if not isinstance(segments, list) or not isinstance(group.get("file_name"), str) or "image_id" not in group:
            self.ledger.drop("image without segments or mask file", str(group)[:100])
            return []
        mask = self.folder / self._found(group["file_name"])
        objects = []
        for segment in segments:
            where = f"{group['file_name']}, segment {segment.get('id') if isinstance(segment, dict) else segment}"
            try:
                objects.append(self._object(segment, mask, where) | {"image_id": group["image_id"]})
            except Malformed as reason:
                self.ledger.drop(str(reason), where)
        return objects

    def _found(self, name: str) -> str:
        try:
            found, difference = self.files.find(name)
        except LookupError:
            return name
        self.ledger.repair([f"mask: {difference}"] if difference else [], name)
        return found

    def _object(self, segment: Any, mask: Path, where: str) -> dict[str, Any]:
        notes: Notes = set()
        number = whole(segment.get("id"), notes) if isinstance(segment, dict) else None
        if not isinstance(number, int) or not isinstance(segment.get("category_id"), int | str):
            raise Malformed("segment without an id or a category")
        category = known_id(segment["category_id"], self.known, notes)
        if category is None:
            raise Malformed("category is not in the JSON")
        if not self.known[category]:
            raise Malformed("stuff, not an object")
        self.ledger.repair(notes, where)
        kept = {key: segment[key] for key in ("bbox", "iscrowd") if key in segment}
        return kept | {"id": number, "category_id": category, "segmentation": MaskInFile(mask, number, colours=True)}

"""COCO's panoptic format: a JSON, and a PNG of segment numbers for each image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terse_aug.bank.build.report import BuildLog, BuildReport
from terse_aug.bank.inputs.coco_json import CocoAnnotations
from terse_aug.bank.inputs.file_names import FileFinder
from terse_aug.bank.inputs.folders import check_folders
from terse_aug.bank.inputs.masks import MaskInFile
from terse_aug.bank.inputs.repair import Malformed, Repairs, as_whole_number, find_id
from terse_aug.bank.readers.annotated_images import AnnotationOptions, build_from_annotations
from terse_aug.bank.readers.other_formats import names_other_formats
from terse_aug.bank.readers.several_parts import Paths, as_path, takes_several


@takes_several(own_labels=True)
@names_other_formats
def build_from_panoptic(
    annotations: Paths, masks: Paths, images: Paths, out: str | Path, **options: Any
) -> BuildReport:
    """Build a bank from the things of COCO's panoptic format; stuff is rejected. Labels are the JSON's category ids.

    Args:
        annotations: the panoptic JSON.
        masks: folder of the PNG files, whose colours are segment numbers R + 256 G + 65536 B.
        images: folder of the images.
        out: the bank to write.
        options: see :class:`AnnotationOptions`.

    Raises:
        FileNotFoundError: the file or a folder does not exist.
        ValueError: it is no panoptic JSON, or has no things; and as :class:`AnnotationOptions`.
    """
    settings = AnnotationOptions.checked(out, options)
    annotations, masks, images = as_path(annotations), as_path(masks), as_path(images)
    if not annotations.is_file():
        raise FileNotFoundError(f"expected a panoptic JSON at {annotations}, found none")
    check_folders(masks, images)
    log = BuildLog()
    try:
        content = json.loads(annotations.read_bytes())
        things = [category for category in content["categories"] if category.get("isthing", 1)]
        is_thing = {category["id"]: category.get("isthing", 1) for category in content["categories"]}
        groups = content["annotations"]
        names = [str(group.get("file_name")) for group in groups if isinstance(group, dict)]
        reader = _SegmentReader(masks, FileFinder(masks, names, photographs=False), is_thing, log)
        objects = [entry for group in groups for entry in reader.read(group)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{annotations}: expected a panoptic JSON of COCO's form: {error!r}") from error
    if not objects:
        raise ValueError(f"{annotations}: expected objects (categories with isthing 1), found none")
    converted = {"images": content["images"], "annotations": objects, "categories": things}
    data = CocoAnnotations.parse(converted, annotations.name)
    record = {"from": "panoptic", "annotations": annotations.name}
    return build_from_annotations(data, images, out, record, settings, log)


@dataclass(frozen=True)
class _SegmentReader:
    """Reads the segments of one image after the other."""

    folder: Path
    files: FileFinder
    is_thing: dict[Any, Any]
    log: BuildLog

    def read(self, group: Any) -> list[dict[str, Any]]:
        """The objects of an image."""
        segments = group.get("segments_info") if isinstance(group, dict) else None
        if not isinstance(segments, list) or not isinstance(group.get("file_name"), str) or "image_id" not in group:
            self.log.drop("image without segments or mask file", str(group)[:100])
            return []
        mask = self.folder / self._find(group["file_name"])
        objects = []
        for segment in segments:
            where = f"{group['file_name']}, segment {segment.get('id') if isinstance(segment, dict) else segment}"
            try:
                objects.append(self._object(segment, mask, where) | {"image_id": group["image_id"]})
            except Malformed as reason:
                self.log.drop(str(reason), where)
        return objects

    def _find(self, name: str) -> str:
        try:
            found, difference = self.files.find(name)
        except LookupError:
            return name
        self.log.repair([f"mask: {difference}"] if difference else [], name)
        return found

    def _object(self, segment: Any, mask: Path, where: str) -> dict[str, Any]:
        repairs: Repairs = set()
        number = as_whole_number(segment.get("id"), repairs) if isinstance(segment, dict) else None
        if not isinstance(number, int) or not isinstance(segment.get("category_id"), int | str):
            raise Malformed("segment without an id or a category")
        category = find_id(segment["category_id"], self.is_thing, repairs)
        if category is None:
            raise Malformed("category is not in the JSON")
        if not self.is_thing[category]:
            raise Malformed("stuff, not an object")
        self.log.repair(repairs, where)
        kept = {key: segment[key] for key in ("bbox", "iscrowd", "ignore") if key in segment}
        return kept | {"id": number, "category_id": category, "segmentation": MaskInFile(mask, number, colors=True)}

"""COCO JSON, of instances or keypoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from terse_aug.bank.build.report import BuildReport
from terse_aug.bank.inputs.coco_json import CocoAnnotations
from terse_aug.bank.inputs.folders import check_folders
from terse_aug.bank.readers.annotated_images import AnnotationOptions, build_from_annotations
from terse_aug.bank.readers.other_formats import names_other_formats
from terse_aug.bank.readers.several_parts import Paths, as_path, takes_several


@takes_several(own_labels=True)
@names_other_formats
def build_from_coco(
    annotations: Paths | Mapping[str, Any], images: Paths, out: str | Path, **options: Any
) -> BuildReport:
    """Build a bank from a COCO JSON with masks (polygons or RLE), or with boxes.

    Labels are the JSON's category ids; :meth:`ForegroundBank.relabel` maps them to the detector's. Keypoints are kept.
    Objects that cannot be used are rejected, and oddities that can mean one thing only are repaired; both are counted
    by reason. ``annotations`` may also be the content of a JSON.

    Args:
        annotations: the JSON file.
        images: folder that the JSON's file names are relative to.
        out: the bank to write.
        options: see :class:`AnnotationOptions`.

    Raises:
        FileNotFoundError: the JSON or the folder does not exist.
        ValueError: the file is no COCO JSON of instances, or the categories have different keypoints; and as
            :class:`AnnotationOptions`.
    """
    settings = AnnotationOptions.checked(out, options)
    if isinstance(annotations, Mapping):
        info = annotations.get("info")
        name = str(info.get("description", "")) if isinstance(info, Mapping) else ""
        data = CocoAnnotations.from_memory(annotations, "the annotations")
    else:
        data, name = CocoAnnotations.read(as_path(annotations)), as_path(annotations).name
    folder = as_path(images)
    check_folders(folder, content="images")
    return build_from_annotations(data, folder, out, {"from": "coco", "annotations": name}, settings)

"""A bank from data sets that are registered with Detectron2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from terse_aug.bank import BuildReport, build_from_coco, segmentation_as_json
from terse_aug.bank.inputs.coco_json import coco_content


def build_from_detectron2(datasets: str | Sequence[str], out: str | Path, **options: Any) -> BuildReport:
    """Build a bank from registered data sets with masks (polygons or RLE), or from boxes with ``boxes=``.

    Labels are those of the data set, from 0 on, and the class names its ``thing_classes``; keypoints are kept if the
    metadata has ``keypoint_names``.

    Args:
        datasets: one name or several, of the same classes; as in ``cfg.DATASETS.TRAIN``.
        out: the bank to write.
        options: of :func:`terse_aug.bank.build_from_coco`.

    Raises:
        ValueError: a name is not registered, there are no class names or not the same, or no object was kept.
        FileExistsError: see :func:`terse_aug.bank.build_from_coco`.
        OSError: a file that the data set needs is missing; the disk is full or cannot be written.
    """
    names = [datasets] if isinstance(datasets, str) else list(datasets)
    if unknown := [name for name in names if name not in DatasetCatalog.list()]:
        raise ValueError(
            f"no such data sets: {', '.join(unknown)}; import the module that registers them. Known: "
            f"{', '.join(DatasetCatalog.list())}"
        )
    content, folder = as_coco(names)
    return build_from_coco(content, folder, out, **options)


def as_coco(names: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """Registered data sets as the content of a COCO JSON, and the folder that its file names are relative to.

    Raises:
        ValueError: there are no class names, or not the same; or a record is not in Detectron2's format.
    """
    records = [(name, record) for name in names for record in DatasetCatalog.get(name)]
    # After the data sets were read: the class names of a COCO JSON are known only then.
    metadata = [MetadataCatalog.get(name) for name in names]
    classes = {name: tuple(own.get("thing_classes") or ()) for name, own in zip(names, metadata, strict=True)}
    if len(set(classes.values())) != 1 or not all(classes.values()):
        raise ValueError(f"expected data sets with the same thing_classes in their metadata, got {classes}")
    keypoints = list(metadata[0].get("keypoint_names") or ())
    categories = [{"id": label, "name": name, "keypoints": keypoints} for label, name in enumerate(classes[names[0]])]
    images = [(record["file_name"], record, _annotations(name, record, bool(keypoints))) for name, record in records]
    return coco_content(images, categories, f"Detectron2: {', '.join(names)}")


def _annotations(name: str, record: dict[str, Any], with_keypoints: bool) -> list[dict[str, Any]]:
    try:
        return [_annotation(entry, with_keypoints) for entry in record.get("annotations", ())]
    except (KeyError, TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"data set {name}, {record['file_name']}: an annotation is not in Detectron2's format ({error!r})"
        ) from error


def _annotation(entry: dict[str, Any], with_keypoints: bool) -> dict[str, Any]:
    kept: dict[str, Any] = {"category_id": int(entry["category_id"]), "iscrowd": int(entry.get("iscrowd", 0))}
    if "bbox" in entry:
        corners = [float(value) for value in entry["bbox"]]
        kept["bbox"] = list(BoxMode.convert(corners, entry.get("bbox_mode", BoxMode.XYXY_ABS), BoxMode.XYWH_ABS))
    if (segmentation := segmentation_as_json(entry.get("segmentation"))) is not None:
        kept["segmentation"] = segmentation
    if with_keypoints and entry.get("keypoints") is not None:
        kept["keypoints"] = np.asarray(entry["keypoints"], dtype=float).flatten().tolist()
    return kept

"""A bank from data sets that are registered with Detectron2."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from terse_aug.bank import BoxMaskMethod, BoxMasks, BuildReport, ExtractionRules, build_from_coco, segmentation_as_json


def build_from_detectron2(
    datasets: str | Sequence[str],
    out: str | Path,
    *,
    categories: Collection[str] | None = None,
    image_list: Iterable[str] | str | Path | None = None,
    boxes: BoxMasks | str | BoxMaskMethod | None = None,
    rules: ExtractionRules | None = None,
    rejected_sheet: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    jobs: int | None = None,
) -> BuildReport:
    """Build a bank from registered data sets with masks (polygons or RLE), or with boxes only where a way is given.

    Labels are the data set's own, from 0 on, and the names are its ``thing_classes``; keypoints come along where the
    metadata has ``keypoint_names``. What is mended or left out, and counted,
    is as in :func:`terse_aug.bank.build_from_coco`.

    Args:
        datasets: one name or several, of the same classes; as in ``cfg.DATASETS.TRAIN``.
        out: the bank to write.
        categories: names to keep; all by default.
        include: image files to use, relative to the folder that all of them lie in; all by default.
        boxes: how objects of which only the box is known are cut out, see :func:`terse_aug.bank.build_from_coco`.
        rules: what is kept.
        drops: where to draw pictures of what was left out, likewise.
        overwrite: replace an existing bank, and pictures.
        progress: called with images done and in total.
        jobs: processes that cut objects out, see :func:`terse_aug.bank.build_from_coco`.

    Raises:
        ValueError: a name is not registered, there are no class names or not the same, or nothing was kept.
        FileExistsError: ``out`` or ``rejected_sheet`` exists and ``overwrite`` is false.
        OSError: a file that the data set needs is missing; the disk is full or cannot be written.
    """
    names = [datasets] if isinstance(datasets, str) else list(datasets)
    if unknown := [name for name in names if name not in DatasetCatalog.list()]:
        known = ", ".join(name for name in DatasetCatalog.list())
        raise ValueError(
            f"no such data sets: {', '.join(unknown)}; import the module that registers them. Known: {known}"
        )
    content, folder = as_coco(names)
    return build_from_coco(
        content,
        folder,
        out,
        categories=categories,
        image_list=image_list,
        boxes=boxes,
        rules=rules,
        rejected_sheet=rejected_sheet,
        overwrite=overwrite,
        progress=progress,
        jobs=jobs,
    )


def as_coco(names: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """Registered data sets as the content of a COCO JSON, and the folder that its file names are relative to.

    Raises:
        ValueError: there are no class names, or not the same; or a record is not in Detectron2's form.
    """
    records = [(name, record) for name in names for record in DatasetCatalog.get(name)]
    # A COCO JSON's names are known once it was read.
    metadata = [MetadataCatalog.get(name) for name in names]
    classes = {name: tuple(own.get("thing_classes") or ()) for name, own in zip(names, metadata, strict=True)}
    if len(set(classes.values())) != 1 or not all(classes.values()):
        raise ValueError(f"expected data sets with the same thing_classes in their metadata, got {classes}")
    keypoints = list(metadata[0].get("keypoint_names") or ())
    categories = [{"id": label, "name": name, "keypoints": keypoints} for label, name in enumerate(classes[names[0]])]
    files = [Path(record["file_name"]).absolute() for _, record in records]
    folder = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, ((name, record), file) in enumerate(zip(records, files, strict=True)):
        size = {key: record[key] for key in ("height", "width") if key in record}
        images.append({"id": number, "file_name": str(file.relative_to(folder)), **size})
        for entry in record.get("annotations", ()):
            try:
                own = _annotation(entry, bool(keypoints))
            except (KeyError, TypeError, ValueError, NotImplementedError) as error:
                raise ValueError(
                    f"data set {name}, {record['file_name']}: an annotation is not in Detectron2's form ({error!r})"
                ) from error
            annotations.append(own | {"id": len(annotations), "image_id": number})
    content = {"images": images, "annotations": annotations, "categories": categories}
    return content | {"info": {"description": f"Detectron2: {', '.join(names)}"}}, folder


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

"""A bank from data sets that are registered with Detectron2."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from terse_aug.bank import BuildReport, CutRules, build_from_coco


def build_from_detectron2(
    datasets: str | Sequence[str],
    out: str | Path,
    *,
    categories: Collection[str] | None = None,
    include: Iterable[str] | str | Path | None = None,
    rules: CutRules | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> BuildReport:
    """Build a bank from registered data sets with masks (polygons or RLE).

    Labels are the data set's own, from 0 on, and the names are its ``thing_classes``; keypoints come along where the
    metadata has ``keypoint_names``. What is left out and counted
    is as in :func:`terse_aug.bank.build_from_coco`.

    Args:
        datasets: one name or several, of the same classes; as in ``cfg.DATASETS.TRAIN``.
        out: the bank to write.
        categories: names to keep; all by default.
        include: image files to use, as the data set names them; all by default.
        rules: what is kept.
        overwrite: replace an existing bank.
        progress: called with images done and in total.

    Raises:
        ValueError: a name is not registered, there are no class names or not the same, or nothing was kept.
        FileExistsError: ``out`` exists and ``overwrite`` is false.
        OSError: a file that the data set needs is missing; the disk is full or cannot be written.
    """
    names = [datasets] if isinstance(datasets, str) else list(datasets)
    if unknown := [name for name in names if name not in DatasetCatalog.list()]:
        known = ", ".join(name for name in DatasetCatalog.list())
        raise ValueError(
            f"no such data sets: {', '.join(unknown)}; import the module that registers them. Known: {known}"
        )
    return build_from_coco(
        as_coco(names),
        "/",
        out,
        categories=categories,
        include=include,
        rules=rules,
        overwrite=overwrite,
        progress=progress,
    )


def as_coco(names: Sequence[str]) -> dict[str, Any]:
    """Registered data sets as the content of a COCO JSON, file names absolute.

    Raises:
        ValueError: there are no class names, or not the same.
    """
    classes = {name: tuple(MetadataCatalog.get(name).get("thing_classes") or ()) for name in names}
    if len(set(classes.values())) != 1 or not all(classes.values()):
        raise ValueError(f"expected data sets with the same thing_classes in their metadata, got {classes}")
    keypoints = list(MetadataCatalog.get(names[0]).get("keypoint_names") or ())
    categories = [{"id": label, "name": name, "keypoints": keypoints} for label, name in enumerate(classes[names[0]])]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in (record for name in names for record in DatasetCatalog.get(name)):
        number = len(images)
        size = {key: record[key] for key in ("height", "width") if key in record}
        images.append({"id": number, "file_name": str(Path(record["file_name"]).absolute()), **size})
        for entry in record.get("annotations", ()):
            annotations.append(_annotation(entry, bool(keypoints)) | {"id": len(annotations), "image_id": number})
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(entry: dict[str, Any], with_keypoints: bool) -> dict[str, Any]:
    box = BoxMode.convert([float(value) for value in entry["bbox"]], entry["bbox_mode"], BoxMode.XYWH_ABS)
    kept: dict[str, Any] = {"bbox": list(box), "category_id": entry["category_id"], "iscrowd": entry.get("iscrowd", 0)}
    if segmentation := entry.get("segmentation"):
        kept["segmentation"] = _as_json(segmentation)
    if with_keypoints and (keypoints := entry.get("keypoints")):
        kept["keypoints"] = keypoints
    return kept


def _as_json(segmentation: Any) -> Any:
    """What a JSON would hold: numbers in lists, and text for compressed runs."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        size = [int(value) for value in segmentation["size"]]
        return {"size": size, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
    return [[float(value) for value in polygon] for polygon in segmentation]

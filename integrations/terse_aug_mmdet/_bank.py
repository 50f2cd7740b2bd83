"""Banks from MMDetection's data sets, and with their classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from terse_aug import ForegroundBank
from terse_aug.bank import BuildReport, CutRules, build_from_coco


def open_bank(path: str | Path, classes: Sequence[str] | None, drop_unknown: bool) -> ForegroundBank:
    """A bank, with the data set's labels where its class names are given.

    Raises:
        ValueError: it cannot be opened, or has classes that the data set does not have.
    """
    bank = ForegroundBank.open(path)
    if classes is None:
        if drop_unknown:
            raise ValueError("drop_unknown_classes: expected classes=, the data set's class names, with it")
        return bank
    return bank.relabel(list(classes), unknown="drop" if drop_unknown else "error")


def build_from_mmdet(
    config: str | Path | Config | Mapping[str, Any],
    out: str | Path,
    *,
    categories: Collection[str] | None = None,
    include: Iterable[str] | str | Path | None = None,
    rules: CutRules | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> BuildReport:
    """Build a bank from the training data set of a config, which needs masks (polygons or RLE).

    Labels are the data set's own, from 0 on, and the names are those of its ``metainfo``. What is left out and counted
    is as in :func:`terse_aug.bank.build_from_coco`.

    Args:
        config: a config or its file, whose ``train_dataloader.dataset`` is meant; or the ``dataset`` itself.
        out: the bank to write.
        categories: names to keep; all by default.
        include: image files to use, relative to the folder that all of them lie in; all by default.
        rules: what is kept.
        overwrite: replace an existing bank.
        progress: called with images done and in total.

    Raises:
        ValueError: the config has no data set, it has no class names, or nothing was kept.
        OSError: a file is missing, or the disk is full or cannot be written.
    """
    content, folder = as_coco(_dataset(config))
    return build_from_coco(
        content,
        folder,
        out,
        categories=categories,
        include=include,
        rules=rules,
        overwrite=overwrite,
        progress=progress,
    )


def as_coco(dataset: Any) -> tuple[dict[str, Any], Path]:
    """A data set of MMDetection as the content of a COCO JSON, and the folder that its file names are relative to.

    Raises:
        ValueError: it has no class names.
    """
    names = dataset.metainfo.get("classes")
    if not names:
        raise ValueError("the data set has no classes in its metainfo; give it metainfo=dict(classes=(...))")
    records = [dataset.get_data_info(number) for number in range(len(dataset))]
    files = [Path(record["img_path"]).absolute() for record in records]
    folder = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (record, file) in enumerate(zip(records, files, strict=True)):
        size = {key: record[key] for key in ("height", "width") if record.get(key)}
        images.append({"id": number, "file_name": str(file.relative_to(folder)), **size})
        for entry in record.get("instances", ()):
            annotations.append(_annotation(entry) | {"id": len(annotations), "image_id": number})
    categories = [{"id": label, "name": name} for label, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return content | {"info": {"description": f"MMDetection: {type(dataset).__name__}"}}, folder


def _annotation(entry: Mapping[str, Any]) -> dict[str, Any]:
    left, top, right, bottom = (float(value) for value in entry["bbox"])
    kept: dict[str, Any] = {
        "bbox": [left, top, right - left, bottom - top],
        "category_id": entry["bbox_label"],
        "iscrowd": entry.get("ignore_flag", 0),
    }
    if mask := entry.get("mask"):
        kept["segmentation"] = _as_json(mask)
    return kept


def _as_json(mask: Any) -> Any:
    if isinstance(mask, Mapping):
        counts = mask["counts"]
        size = [int(value) for value in mask["size"]]
        return {"size": size, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
    return [[float(value) for value in polygon] for polygon in mask]


def _dataset(config: str | Path | Config | Mapping[str, Any]) -> Any:
    """The data set itself, under whatever repeats, concatenates or mixes it."""
    if isinstance(config, str | Path):
        config = Config.fromfile(str(config))
    init_default_scope(config.get("default_scope", "mmdet"))
    settings = config["train_dataloader"]["dataset"] if "train_dataloader" in config else config
    while "dataset" in settings:
        settings = settings["dataset"]
    if "type" not in settings:
        raise ValueError("the config has no train_dataloader.dataset, and is no data set either")
    return DATASETS.build({**settings, "pipeline": []})

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
from terse_aug.bank import BoxMaskMethod, BoxMasks, BuildReport, ExtractionRules, build_from_coco, segmentation_as_json
from terse_aug.data.class_mapping import check_distractors


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


def open_distractors(path: str | Path | None, classes: Sequence[str]) -> ForegroundBank | None:
    """The bank of distractors, or ``None``.

    Raises:
        ValueError: it cannot be opened, or has a class of the data set's.
    """
    if path is None:
        return None
    bank = ForegroundBank.open(path)
    check_distractors(bank, classes)
    return bank


def build_from_mmdet(
    config: str | Path | Config | Mapping[str, Any],
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
    """Build a bank from the training data set of a config, which has masks (polygons or RLE), or a way to make them.

    Labels are the data set's own, from 0 on, and the names are those of its ``metainfo``. What is mended or left
    out, and counted, is as in :func:`terse_aug.bank.build_from_coco`.

    Args:
        config: a config or its file, whose ``train_dataloader.dataset`` is meant; or the ``dataset`` itself.
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
        ValueError: the config has no data set, it has no class names, or nothing was kept.
        OSError: a file is missing, or the disk is full or cannot be written.
    """
    content, folder = as_coco(_datasets(config))
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


def class_names(metainfo: Any) -> tuple[str, ...]:
    """The class names of a data set; several that were concatenated tell their metainfo in a list.

    Raises:
        ValueError: there are none, or not the same.
    """
    each = metainfo if isinstance(metainfo, list | tuple) else [metainfo]
    names = {tuple(own.get("classes") or ()) for own in each}
    if len(names) != 1 or not all(names):
        raise ValueError(
            f"expected a data set with class names, metainfo=dict(classes=(...)), the same in all parts; got {names}"
        )
    return names.pop()


def as_coco(datasets: Sequence[Any]) -> tuple[dict[str, Any], Path]:
    """MMDetection's data sets as the content of a COCO JSON, and the folder that its file names are relative to.

    Raises:
        ValueError: they have no class names, or not the same.
    """
    names = class_names([dataset.metainfo for dataset in datasets])
    records = [dataset.get_data_info(number) for dataset in datasets for number in range(len(dataset))]
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
    kinds = sorted({type(dataset).__name__ for dataset in datasets})
    return content | {"info": {"description": f"MMDetection: {', '.join(kinds)}"}}, folder


def _annotation(entry: Mapping[str, Any]) -> dict[str, Any]:
    left, top, right, bottom = (float(value) for value in entry["bbox"])
    kept: dict[str, Any] = {
        "bbox": [left, top, right - left, bottom - top],
        "category_id": entry["bbox_label"],
        "iscrowd": entry.get("ignore_flag", 0),
    }
    if (segmentation := segmentation_as_json(entry.get("mask"))) is not None:
        kept["segmentation"] = segmentation
    return kept


def _datasets(config: str | Path | Config | Mapping[str, Any]) -> list[Any]:
    """The data sets themselves, under whatever repeats, concatenates or mixes them."""
    if isinstance(config, str | Path):
        config = Config.fromfile(str(config))
    init_default_scope(config.get("default_scope") or "mmdet")
    settings = config["train_dataloader"]["dataset"] if "train_dataloader" in config else config
    return [DATASETS.build({**own, "pipeline": []}) for own in _innermost(settings)]


def _innermost(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "datasets" in settings:
        return [inner for own in settings["datasets"] for inner in _innermost(own)]
    if "dataset" in settings:
        return _innermost(settings["dataset"])
    if "type" not in settings:
        raise ValueError("the config has no train_dataloader.dataset, and is no data set either")
    return [settings]

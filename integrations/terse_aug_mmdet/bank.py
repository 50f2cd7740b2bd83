"""Banks with the classes of MMDetection's data sets, and from their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

from terse_aug import ForegroundBank
from terse_aug.bank import BuildReport, build_from_coco, segmentation_as_json
from terse_aug.bank.inputs.coco_json import coco_content
from terse_aug.data.class_mapping import relabelled_for_framework


def open_bank(path: str | Path, classes: Sequence[str] | None, drop_unknown: bool) -> ForegroundBank:
    """A bank, with the data set's labels if its class names are given.

    Raises:
        ValueError: it cannot be opened, or has classes that the data set does not have.
    """
    bank = ForegroundBank.open(path)
    if classes is None:
        return bank
    return relabelled_for_framework(bank, list(classes), drop_unknown, "drop_unknown_classes=True")


def build_from_mmdet(config: str | Path | Config | Mapping[str, Any], out: str | Path, **options: Any) -> BuildReport:
    """Build a bank from the training data set of a config with masks (polygons or RLE), or from boxes with ``boxes=``.

    Labels are those of the data set, from 0 on, and the class names those of its ``metainfo``.

    Args:
        config: a config or its file, or the name of one that a package ships (``mmdet::faster_rcnn/...``), whose
            ``train_dataloader.dataset`` is used; or the ``dataset`` itself.
        out: the bank to write.
        options: of :func:`terse_aug.bank.build_from_coco`.

    Raises:
        ValueError: the config has no data set, it has no class names, or no object was kept.
        OSError: a file is missing, or the disk is full or cannot be written.
    """
    content, folder = as_coco(_datasets(config))
    return build_from_coco(content, folder, out, **options)


def class_names(metainfo: Any) -> tuple[str, ...]:
    """The class names of a data set; concatenated data sets have a list of metainfo.

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
    images = [(own["img_path"], own, [_annotation(entry) for entry in own.get("instances", ())]) for own in records]
    categories = [{"id": label, "name": name} for label, name in enumerate(names)]
    kinds = sorted({type(dataset).__name__ for dataset in datasets})
    return coco_content(images, categories, f"MMDetection: {', '.join(kinds)}")


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
    """The data sets inside whatever repeats, concatenates or mixes them."""
    if isinstance(config, str | Path):
        # `mmdet::faster_rcnn/...` is one of the configs that a package ships.
        config = get_config(str(config)) if "::" in str(config) else Config.fromfile(str(config))
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

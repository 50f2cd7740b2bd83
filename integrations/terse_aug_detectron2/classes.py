"""The bank's classes and keypoints as those of Detectron2's data sets."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from terse_aug import ForegroundBank
from terse_aug_detectron2.config import terse_node


def class_labels(datasets: Sequence[str]) -> dict[str, int] | None:
    """Label by class name of the training data sets; ``None`` if they have no names.

    Raises:
        ValueError: they do not have the same classes, or one is not registered.
    """
    named = [_names(name) for name in datasets]
    known = [list(names) for names in named if names]
    if not known:
        return None
    if any(names != known[0] for names in known):
        raise ValueError(f"the data sets {list(datasets)} have different classes: {known}")
    return {name: label for label, name in enumerate(known[0])}


def _names(dataset: str) -> list[str] | None:
    if dataset not in DatasetCatalog:
        raise ValueError(f"DATASETS.TRAIN: {dataset!r} is not registered; import the module that registers it")
    names: list[str] | None = MetadataCatalog.get(dataset).get("thing_classes")
    if names is None:
        DatasetCatalog.get(dataset)  # the class names of a COCO JSON are known after it was read
        names = MetadataCatalog.get(dataset).get("thing_classes")
    return names


def open_bank(cfg: CfgNode) -> ForegroundBank:
    """The bank of ``cfg.TERSE`` with the data set's labels.

    Raises:
        ValueError: no path, no bank there, no class names, classes that the data set does not have, or other
            keypoints than it has.
    """
    node = terse_node(cfg)
    if not node.BANK:
        raise ValueError("TERSE.BANK is empty: set it to the path of a bank, made by `terse-aug bank build ...`")
    bank, classes = ForegroundBank.open(node.BANK), class_labels(cfg.DATASETS.TRAIN)
    if classes is None:
        raise ValueError(
            "the data set has no class names, so those of the bank cannot be matched: set "
            "MetadataCatalog.get(name).thing_classes to the names, in the order of their labels"
        )
    keypoints = tuple(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("keypoint_names") or ())
    if cfg.MODEL.KEYPOINT_ON and bank.keypoint_names and bank.keypoint_names != keypoints:
        raise ValueError(
            f"the bank's keypoints are {bank.keypoint_names}, the data set's {keypoints}: build the bank from "
            "annotations with the same keypoints, in the same order"
        )
    return bank.relabel(classes, unknown="drop" if node.DROP_UNKNOWN_CLASSES else "error")


def keypoint_flips(cfg: CfgNode) -> list[tuple[str, str]] | None:
    """Pairs of keypoint names that are swapped in a flipped object, from the data set's ``keypoint_flip_map``.

    Like Detectron2, it ignores names that are no keypoints and duplicate pairs.
    """
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    flips, names = metadata.get("keypoint_flip_map"), set(metadata.get("keypoint_names") or ())
    if flips is None or not cfg.MODEL.KEYPOINT_ON:
        return None
    return sorted({(min(pair), max(pair)) for pair in flips if names.issuperset(pair)})

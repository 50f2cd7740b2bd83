"""The bank's classes as the labels of Detectron2's data sets."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from terse_aug import ForegroundBank
from terse_aug.data.class_mapping import check_distractors
from terse_aug_detectron2.config import terse_node


def class_labels(datasets: Sequence[str]) -> dict[str, int] | None:
    """Label by class name of the data sets that a detector is trained on; ``None`` where there are no names.

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
        DatasetCatalog.get(dataset)  # a COCO JSON's names are known once it was read
        names = MetadataCatalog.get(dataset).get("thing_classes")
    return names


def open_bank(cfg: CfgNode) -> ForegroundBank:
    """The bank of ``cfg.TERSE`` with the data set's labels.

    Raises:
        ValueError: no path, no bank there, no class names, classes that the data set does not have, or other
            keypoints than it has.
    """
    node = terse_node(cfg)
    path, drop_unknown, classes = node.BANK, node.DROP_UNKNOWN_CLASSES, class_labels(cfg.DATASETS.TRAIN)
    if not path:
        raise ValueError("TERSE.BANK is empty: set it to the path of a bank, made by `terse-aug bank build ...`")
    bank = ForegroundBank.open(path)
    if classes is None:
        raise ValueError(
            "the data set has no class names, so the bank's cannot be matched: set "
            "MetadataCatalog.get(name).thing_classes to their names, in the order of their labels"
        )
    keypoints = tuple(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("keypoint_names") or ())
    if cfg.MODEL.KEYPOINT_ON and bank.keypoint_names and bank.keypoint_names != keypoints:
        raise ValueError(
            f"the bank's keypoints are {bank.keypoint_names}, the data set's {keypoints}: build the bank from "
            "annotations with the same keypoints, in the same order"
        )
    return bank.relabel(classes, unknown="drop" if drop_unknown else "error")


def open_distractors(cfg: CfgNode) -> ForegroundBank | None:
    """The bank of distractors of ``cfg.TERSE``, or ``None``.

    Raises:
        ValueError: it cannot be opened, or has a class of the data set's.
    """
    path = terse_node(cfg).DISTRACTOR_BANK
    if not path:
        return None
    bank = ForegroundBank.open(path)
    check_distractors(bank, class_labels(cfg.DATASETS.TRAIN) or ())
    return bank


def keypoint_flips(cfg: CfgNode) -> list[tuple[str, str]] | None:
    """Names of keypoints that change places in a mirrored object, by the data set's ``keypoint_flip_map``.

    Names that are no keypoints of it, and pairs that are told twice, are passed over, as Detectron2 does.
    """
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    flips, names = metadata.get("keypoint_flip_map"), set(metadata.get("keypoint_names") or ())
    if flips is None or not cfg.MODEL.KEYPOINT_ON:
        return None
    pairs = {(min(pair), max(pair)) for pair in flips if names.issuperset(pair)}
    return sorted(pairs)

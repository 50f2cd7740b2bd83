"""The bank's classes and keypoints as those of Detectron2's data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from terse_aug import ForegroundBank
from terse_aug.data.class_mapping import relabelled_for_framework
from terse_aug_detectron2.config import terse_node


def class_names(datasets: Sequence[str]) -> list[str] | None:
    """Class names of the training data sets in the order of their labels; ``None`` if they have none.

    Raises:
        ValueError: they do not have the same classes, or one is not registered.
    """
    named = [_names(name) for name in datasets]
    known = [list(names) for names in named if names]
    if not known:
        return None
    if any(names != known[0] for names in known):
        raise ValueError(f"the data sets {list(datasets)} have different classes: {known}")
    return known[0]


def _names(dataset: str) -> list[str] | None:
    if dataset not in DatasetCatalog:
        raise ValueError(f"DATASETS.TRAIN: {dataset!r} is not registered; import the module that registers it")
    names: list[str] | None = MetadataCatalog.get(dataset).get("thing_classes")
    if names is None:
        DatasetCatalog.get(dataset)  # the class names of a COCO JSON are known after it was read
        names = MetadataCatalog.get(dataset).get("thing_classes")
    return names


class LabelledBank:
    """A bank with the labels of a data set that is not known yet.

    Args:
        bank: the foregrounds, or their path.
        classes: class names of the data set from label 0 on, a mapping from name to label, or ``None``: the bank's
            labels are those of the data set.

    Attributes:
        bank: with these labels.

    Raises:
        ValueError: it cannot be opened, or has classes that are not among these.
    """

    def __init__(self, bank: ForegroundBank | str, classes: Sequence[str] | Mapping[str, int] | None) -> None:
        opened = bank if isinstance(bank, ForegroundBank) else ForegroundBank.open(bank)
        self.bank = opened if classes is None else opened.relabel(classes)
        self._given = classes
        self._by_number = classes is None and not isinstance(bank, ForegroundBank)

    def check(self, trainer: Any) -> None:
        """Compare names label by label with those of a trainer's data sets.

        A config may name other data sets than the trainer's loader reads. So given names are compared with those of a
        data set that has the same names alone, perhaps in another order; a mapping is not compared at all.

        Args:
            trainer: with the config of a ``DefaultTrainer``, which names the data sets; others do not know them.

        Raises:
            ValueError: a label has another name in a data set; or the bank is from a file, and no names are known.
        """
        datasets = getattr(getattr(getattr(trainer, "cfg", None), "DATASETS", None), "TRAIN", ())
        known = {own: MetadataCatalog.get(own).get("thing_classes") for own in datasets if own in DatasetCatalog}
        compared = {own: [name.strip() for name in names] for own, names in known.items() if names}
        if self._by_number and not compared:
            raise ValueError(
                f"the trainer does not know the data set's class names, so those of the bank, {self.bank.categories}, "
                "cannot be matched: give TerseHook(classes=[...]) with the data set's class names in the order of "
                "their labels"
            )
        for dataset, names in compared.items():
            if self._given is not None and not self._is_order_of(names):
                continue
            theirs = dict(enumerate(names))
            wrong = {label: name for label, name in self.bank.categories.items() if theirs.get(label) != name.strip()}
            if wrong:
                raise ValueError(
                    f"the bank's labels are not the data set's: the bank has {wrong}, {dataset!r} of DATASETS.TRAIN "
                    f"{theirs}. Give TerseHook(classes=[...]) with the class names of the data that is trained on, "
                    "and those of the bank are matched with them; or classes={'name in the bank': label}, if names "
                    "are to differ"
                )

    def _is_order_of(self, names: Sequence[str]) -> bool:
        """Whether given names are those of a data set, in any order."""
        given = self._given
        return not isinstance(given, Mapping | None) and sorted(name.strip() for name in given) == sorted(names)


def open_bank(cfg: CfgNode) -> ForegroundBank:
    """The bank of ``cfg.TERSE`` with the data set's labels.

    Raises:
        ValueError: no path, no bank there, no class names, classes that the data set does not have, or other
            keypoints than it has.
    """
    node = terse_node(cfg)
    if not node.BANK:
        raise ValueError("TERSE.BANK is empty: set it to the path of a bank, made by `terse-aug bank build ...`")
    bank, classes = ForegroundBank.open(node.BANK), class_names(cfg.DATASETS.TRAIN)
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
    return relabelled_for_framework(bank, classes, node.DROP_UNKNOWN_CLASSES, "TERSE.DROP_UNKNOWN_CLASSES True")


def keypoint_flips(cfg: CfgNode) -> list[tuple[str, str]] | None:
    """Pairs of keypoint names that are swapped in a flipped object, from the data set's ``keypoint_flip_map``.

    Like Detectron2, it ignores names that are no keypoints and duplicate pairs.
    """
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    flips, names = metadata.get("keypoint_flip_map"), set(metadata.get("keypoint_names") or ())
    if flips is None or not cfg.MODEL.KEYPOINT_ON:
        return None
    return sorted({(min(pair), max(pair)) for pair in flips if names.issuperset(pair)})

"""A data set whose samples are processed where they are loaded, by their numbers in the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset

RECORD_KEY = "terse_record"
"""Key under which the data of an image carries the record of its composite from the workers to a hook."""


class NumberedDataset(Dataset[Any]):
    """A data set whose samples go through a function of the sample and its number in the run.

    It has the attributes of the wrapped data set, also to be set: frameworks read class names and switch pipelines.

    Args:
        dataset: with ``__getitem__`` and ``__len__``; indices are of a :class:`~terse_aug.NumberedSampler`.
        process: a picklable function of a sample and its number.
    """

    def __init__(self, dataset: Any, process: Callable[[Any, int], Any]) -> None:
        vars(self).update(dataset=dataset, process=process)

    def __getitem__(self, index: Any) -> Any:
        own = vars(self)
        return own["process"](own["dataset"][int(index)], index.number)

    def __len__(self) -> int:
        return len(vars(self)["dataset"])

    def __getattr__(self, name: str) -> Any:
        # Not the special methods: a loader would call the wrapped __getitems__, past the processing.
        if name.startswith("__") or "dataset" not in vars(self):
            raise AttributeError(name)
        return getattr(vars(self)["dataset"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["dataset"], name, value)

    def __deepcopy__(self, memo: Any) -> NumberedDataset:
        """Itself: MMEngine copies the settings of a data loader, and with them what is meant to be its data set."""
        return self

"""Samplers that number the samples of a run, so that what is drawn for a sample does not depend on who loads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import Sampler


class NumberedIndex(int):
    """An index into a data set that carries the number of the sample in the run.

    Attributes:
        number: from 0 on, counted over all epochs of this rank.
    """

    number: int

    def __new__(cls, index: int, number: int) -> NumberedIndex:
        """An index with a number."""
        own = super().__new__(cls, index)
        own.number = number
        return own

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]  # int's own has one value
        return int(self), self.number


class NumberedSampler(Sampler[Any]):
    """Wraps a sampler or batch sampler: its indices carry the number of the sample in the run.

    The number is the same for any number of workers, is another one in every epoch, and goes on in a resumed run::

        composer = terse.composer()

        class Composed(Dataset):
            def __getitem__(self, index):
                image, target = ...  # as before: the index is an int
                return composer(image, target, index.number)

        sampler = NumberedSampler(RandomSampler(data), lambda: terse.image_count)
        for images, targets, records in DataLoader(data, batch_size, sampler=sampler, num_workers=4, ...):
            images, targets = terse(images, targets, records)

    Everything else, such as ``set_epoch``, is that of the wrapped sampler. Data sets that compute with the index, such
    as ``Subset`` and ``ConcatDataset``, lose the number: compose outside of them.

    Args:
        sampler: yields indices, or lists of them.
        start: number of the first sample; or a function that gives it at the start of every epoch, such as the number
            of images that the run has composed. With a number, epochs are counted on as they are loaded, so each has
            to be loaded to its end.
    """

    def __init__(self, sampler: Any, start: int | Callable[[], int] = 0) -> None:
        self.sampler = sampler
        self._start, self._next = start, 0 if callable(start) else start

    def __iter__(self) -> Iterator[Any]:
        # Not counted in the sampler itself: Detectron2 iterates over one several times at once.
        number = self._start() if callable(self._start) else self._next
        for indices in self.sampler:
            if isinstance(indices, list | tuple):
                yield [NumberedIndex(index, number + row) for row, index in enumerate(indices)]
                number += len(indices)
            else:
                yield NumberedIndex(indices, number)
                number += 1
        self._next = number

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name == "sampler":  # before __init__, while it is unpickled
            raise AttributeError(name)
        return getattr(self.sampler, name)

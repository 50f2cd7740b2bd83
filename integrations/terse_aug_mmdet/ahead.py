"""Composites of MMEngine's training loops that a thread makes, one batch ahead."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from terse_aug import Terse
from terse_aug_mmdet.batch import put_back, sampled_foregrounds_of, to_samples


class LoopAhead:
    """Gives a training loop batches that are composed ahead.

    A loop by iterations gets another iterator. A loop by epochs iterates over its data loader, which other hooks know
    too: the loader gets another class until the loop has begun to iterate.

    Args:
        loop: of the runner's training.
        terse: composes.
    """

    def __init__(self, loop: Any, terse: Terse) -> None:
        self._loop, self._terse = loop, terse
        self._iterators: tuple[Iterator[Any], Generator[Any, None, None]] | None = None
        self._loader: tuple[Any, type[Any]] | None = None
        self._composed: Any = None

    def begin_epoch(self) -> None:
        """The loop is about to iterate, by iterations over the whole training."""
        self.end()
        loop = self._loop
        if hasattr(loop, "dataloader_iterator"):
            source = loop.dataloader_iterator
            loop.dataloader_iterator = self._batches(source, loop.iter)
            self._iterators = source, loop.dataloader_iterator
            return
        plain = type(loop.dataloader)

        def begin(loader: Any) -> Iterator[Any]:
            loader.__class__ = plain
            return self._batches(iter(loader), 0)

        self._loader = loop.dataloader, plain
        loop.dataloader.__class__ = type(plain.__name__, (plain,), {"__iter__": begin})

    def end(self) -> None:
        """Leave loop and data loader as they were, and end the thread."""
        if self._iterators is not None:
            self._loop.dataloader_iterator, composed = self._iterators
            composed.close()
            self._iterators = None
        if self._loader is not None:
            loader, plain = self._loader
            loader.__class__, self._loader = plain, None

    def is_composed(self, batch: Any) -> bool:
        """Whether this is the last batch that was composed ahead."""
        composed, self._composed = self._composed, None
        return composed is not None and batch is composed

    def _batches(self, source: Iterator[Any], trained: int) -> Generator[Any, None, None]:
        """Composed batches, after the first ones, which a resumed run has trained on and the loop skips."""
        yield from islice(source, trained)
        # Masks stay on the CPU: MMDetection's are arrays of numpy.
        yield from self._terse.ahead(source, _samples_of, self._put_back, on_cpu=("masks",))

    def _put_back(self, batch: dict[str, Any], images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]) -> Any:
        put_back(batch, images, targets, self._terse.replaced)
        self._composed = batch
        return batch


def _samples_of(batch: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of ``Terse.forward``, on the CPU."""
    return (*to_samples(batch, torch.device("cpu")), sampled_foregrounds_of(batch))

"""The iterator of a trainer's data loader, wrapped so that it returns composites."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

from terse_aug import Terse
from terse_aug.batch_composer import Split
from terse_aug_detectron2.batch import Item, from_samples


class PastingIterator(Iterator[list[Item]]):
    """A data loader's iterator that returns composites.

    Args:
        source: the iterator.
        ahead: its batches, composed ahead; ``None`` if they are not.
        finish: makes the batch for the model, of one composed ahead if there are such, else of one of the source.
    """

    def __init__(
        self,
        source: Iterator[list[Item]],
        ahead: Generator[list[Item], None, None] | None,
        finish: Callable[[list[Item]], list[Item]],
    ) -> None:
        self.source, self._ahead, self._finish = source, ahead, finish

    def __next__(self) -> list[Item]:
        return self._finish(next(self._ahead or self.source))

    def close(self) -> None:
        """End the thread that composes; the batch that it was given is dropped."""
        if self._ahead is not None:
            self._ahead.close()


def iterator_name(trainer: Any) -> str:
    """Where a trainer keeps the iterator of its loader: made when it is first used; in the release v0.6 at once."""
    return "_data_loader_iter_obj" if "_data_loader_iter_obj" in vars(trainer) else "_data_loader_iter"


def wrap_iterator(trainer: Any, terse: Terse | None, split: Split, finish: Callable[[list[Item]], list[Item]]) -> None:
    """Wrap the iterator of a trainer's loader, if it is there and not wrapped.

    Args:
        trainer: that runs the steps.
        terse: composes ahead; ``None`` if it does not.
        split: of a batch.
        finish: see :class:`PastingIterator`.
    """
    name = iterator_name(trainer)
    if name in vars(trainer) and not isinstance(vars(trainer)[name], PastingIterator):
        source = trainer._data_loader_iter
        ahead = None if terse is None else iter(terse.ahead(source, split, from_samples))
        setattr(trainer, name, PastingIterator(source, ahead, finish))


def unwrap_iterator(trainer: Any) -> None:
    """Give a trainer its iterator back."""
    name = iterator_name(trainer)
    if isinstance(wrapped := vars(trainer).get(name), PastingIterator):
        wrapped.close()
        setattr(trainer, name, wrapped.source)

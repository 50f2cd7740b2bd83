"""The iterator of a trainer's data loader, wrapped so that it returns composites."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

from terse_aug_detectron2.batch import Item


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

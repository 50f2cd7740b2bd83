"""Numbers dealt out so that all are dealt equally often. Imports torch and numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terse_aug.utils.random import generator_for


class BalancedStream:
    """Deals the numbers 0 to n - 1 in passes; in each pass every number comes once, in a fresh random order.

    So the numbers of times that two have been dealt differ by at most one, at any time. With several ranks each has a
    stream of its own of which that holds, and all of them are made of one: a pass is a random order cut into as many
    parts as there are ranks, of which a rank deals first the one of its own number, then the others in turn, each
    shuffled for it. As long as ranks keep step, no two deal from the same part.

    Args:
        count: n, at least 1.
        keys: what is dealt is a function of these and of the state.
    """

    def __init__(self, count: int, *keys: int | str) -> None:
        self._count, self._keys = count, keys
        self._pass, self._place, self._ranks = 0, 0, 1
        self._late: list[int] = []
        self._order: tuple[tuple[int, int, int], NDArray[np.int64]] | None = None

    def take(
        self, wanted: int, rank: int = 0, ranks: int = 1, allowed: Callable[[int], bool] = lambda number: True
    ) -> list[int]:
        """The next numbers, for one image.

        No number is among them twice if so many are allowed: one that would be is dealt late, to the next image. Dealt
        it is before its pass ends, even if it then is among them twice.

        Args:
            wanted: how many.
            rank: of this process.
            ranks: number of processes. Where it has changed, the pass that was begun is left, and another begins.
            allowed: the others are passed over, as if they had been dealt; at least one is allowed.
        """
        if ranks != self._ranks:
            self._begin(self._pass + bool(self._place), ranks)
        taken: list[int] = []
        here: set[int] = set()
        self._late = [number for number in self._late if allowed(number)]
        for _ in range(wanted):
            number = self._next(here, rank, allowed)
            taken.append(number)
            here.add(number)
        return taken

    def state(self) -> Tensor:
        """int64: pass, place in it, ranks, and the numbers that are late."""
        return torch.tensor([self._pass, self._place, self._ranks, *self._late])

    def restore(self, state: Tensor) -> None:
        """Take a state of :meth:`state`.

        Raises:
            ValueError: it is of another number of numbers.
        """
        values = state.tolist()
        if len(values) < 3 or values[2] < 1 or not all(0 <= number < self._count for number in values[3:]):
            raise ValueError("the state of the stream does not fit")
        if not 0 <= values[1] <= self._count:
            raise ValueError(f"the state is of a place {values[1]} among {self._count}")
        self._pass, self._place, self._ranks, *self._late = values

    def _next(self, here: set[int], rank: int, allowed: Callable[[int], bool]) -> int:
        for place, number in enumerate(self._late):
            if number not in here:
                return self._late.pop(place)
        while True:
            if self._place == self._count:
                if self._late:
                    return self._late.pop(0)
                self._begin(self._pass + 1, self._ranks)
            number = int(self._dealt(rank)[self._place])
            self._place += 1
            if not allowed(number):
                continue
            if number not in here:
                return number
            self._late.append(number)

    def _begin(self, number: int, ranks: int) -> None:
        self._pass, self._place, self._ranks, self._late = number, 0, ranks, []

    def _dealt(self, rank: int) -> NDArray[np.int64]:
        """The order of the pass that runs."""
        key = (self._pass, rank, self._ranks)
        if self._order is None or self._order[0] != key:
            whole = torch.randperm(self._count, generator=generator_for(*self._keys, "pass", self._pass))
            parts = [whole]
            if self._ranks > 1:
                cuts = [self._count * number // self._ranks for number in range(self._ranks + 1)]
                turns = [(rank + turn) % self._ranks for turn in range(self._ranks)]
                own = generator_for(*self._keys, "turns", self._pass, rank)
                parts = [_shuffled(whole[cuts[part] : cuts[part + 1]], own) for part in turns]
            self._order = (key, torch.cat(parts).numpy())
        return self._order[1]


def _shuffled(values: Tensor, generator: torch.Generator) -> Tensor:
    return values[torch.randperm(len(values), generator=generator)]

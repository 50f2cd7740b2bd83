"""Draws numbers so that all come equally often."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terse_aug.utils.random import generator_for


class BalancedStream:
    """Draws the numbers 0 to n - 1 in passes; in each pass every number comes once, in a fresh random order.

    So at any time the counts of two numbers differ by at most one. With several ranks this holds for each of them, and
    they share the order of a pass: it is split into as many parts as there are ranks, and each rank draws first the
    part of its own number, then the others in turn, each shuffled for this rank. Ranks that have drawn equally many
    numbers are never in the same part.

    Args:
        count: n, at least 1.
        keys: of the random generators; the draws are a function of these and the state.
    """

    def __init__(self, count: int, *keys: int | str) -> None:
        self._count, self._keys = count, keys
        self._pass, self._position, self._ranks = 0, 0, 1
        self._deferred: list[int] = []
        self._order: tuple[tuple[int, int, int], NDArray[np.int64]] | None = None

    def draw(
        self, count: int, rank: int = 0, ranks: int = 1, allowed: Callable[[int], bool] = lambda number: True
    ) -> list[int]:
        """Draw the numbers for one image.

        They are distinct if enough are allowed: a repeated one is deferred to the next image, not beyond the end of
        its pass.

        Args:
            count: numbers to draw.
            rank: of this process.
            ranks: number of processes. When it changes, the current pass is abandoned.
            allowed: the other numbers are skipped as if they had been drawn; at least one is allowed.
        """
        if ranks != self._ranks:
            self._start_pass(self._pass + bool(self._position), ranks)
        drawn: list[int] = []
        self._deferred = [number for number in self._deferred if allowed(number)]
        distinct: set[int] = set()
        for _ in range(count):
            drawn.append(self._next(distinct, rank, allowed))
            distinct.add(drawn[-1])
        return drawn

    def state(self) -> Tensor:
        """int64: pass, position in it, ranks, and the deferred numbers."""
        return torch.tensor([self._pass, self._position, self._ranks, *self._deferred])

    def load_state(self, state: Tensor) -> None:
        """Load what :meth:`state` returned.

        Raises:
            ValueError: the state is of a stream of another length.
        """
        values = state.tolist()
        if len(values) < 3 or values[2] < 1 or not all(0 <= number < self._count for number in values[3:]):
            raise ValueError("the state of the stream does not fit")
        if not 0 <= values[1] <= self._count:
            raise ValueError(f"the state is of position {values[1]} among {self._count}")
        self._pass, self._position, self._ranks, *self._deferred = values

    def _next(self, drawn: set[int], rank: int, allowed: Callable[[int], bool]) -> int:
        for place, number in enumerate(self._deferred):
            if number not in drawn:
                return self._deferred.pop(place)
        while True:
            if self._position == self._count:
                if self._deferred:
                    return self._deferred.pop(0)
                self._start_pass(self._pass + 1, self._ranks)
            number = int(self._pass_order(rank)[self._position])
            self._position += 1
            if not allowed(number):
                continue
            if number not in drawn:
                return number
            self._deferred.append(number)

    def _start_pass(self, number: int, ranks: int) -> None:
        self._pass, self._position, self._ranks, self._deferred = number, 0, ranks, []

    def _pass_order(self, rank: int) -> NDArray[np.int64]:
        """The order of the current pass for a rank."""
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

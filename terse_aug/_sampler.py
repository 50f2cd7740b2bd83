"""Which cut-outs are drawn from a bank. Imports torch and numpy.

Shape letters: M pastes, K cut-outs offered for each.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Sampler:
    """Draws cut-outs uniformly from those that are allowed.

    Args:
        labels: int ``[n]``, the class of each cut-out, n at least 1.
    """

    def __init__(self, labels: NDArray[np.int64]) -> None:
        self._labels = labels
        self._only: list[int] | None = None
        self._allowed: Tensor | None = None
        self._grouped: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def allowed_labels(self) -> list[int] | None:
        """What :meth:`only` has said; ``None`` for all."""
        return self._only

    def only(self, labels: Iterable[int] | None) -> None:
        """Allow cut-outs of some classes, or of all.

        Raises:
            ValueError: no cut-out has any of them.
        """
        wanted = None if labels is None else sorted(set(labels))
        if wanted == self._only:
            return
        allowed = None if wanted is None else torch.from_numpy(np.flatnonzero(np.isin(self._labels, wanted)))
        if allowed is not None and len(allowed) == 0:
            raise ValueError(f"no cut-out in the bank has any of the labels {wanted}")
        self._only, self._allowed = wanted, allowed

    def draw(self, count: int, offers: int, generator: torch.Generator, any_class: bool = False) -> list[int]:
        """Positions of ``count * offers`` cut-outs, with replacement; each ``offers`` in a row are offered together.

        The first of a row is drawn from all that are allowed, the others from its class: whichever of a row is taken,
        classes are as frequent as with one offer. With ``any_class`` the others are drawn from all, too.
        """
        total = len(self._labels) if self._allowed is None else len(self._allowed)
        if any_class:
            count, offers = count * offers, 1
        first = torch.randint(total, (count,), generator=generator)
        if self._allowed is not None:
            first = self._allowed[first]
        if offers == 1:
            positions: list[int] = first.tolist()
            return positions
        order, starts, group = self._by_class()
        own = group[first]
        sizes = (starts[1:] - starts[:-1])[own]
        places = (torch.rand(count, offers - 1, generator=generator, dtype=torch.float64) * sizes[:, None]).long()
        others = order[starts[own][:, None] + places.minimum(sizes[:, None] - 1)]
        rows: list[int] = torch.cat([first[:, None], others], 1).flatten().tolist()
        return rows

    def _by_class(self) -> tuple[Tensor, Tensor, Tensor]:
        """Positions sorted by class, where each class begins among them (and the end), and each position's class."""
        if self._grouped is None:
            group = np.unique(self._labels, return_inverse=True)[1].reshape(-1)
            order = np.argsort(group, kind="stable")
            starts = np.concatenate([[0], np.cumsum(np.bincount(group))])
            self._grouped = (torch.from_numpy(order), torch.from_numpy(starts), torch.from_numpy(group))
        return self._grouped

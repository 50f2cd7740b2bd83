"""Every cut-out as often as any other."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from terse_aug.samplers.base import DrawRequest, Sampler


class UniformSampler(Sampler):
    """Draws uniformly from the cut-outs that are allowed, with replacement: classes are as frequent as in the bank."""

    def __init__(self) -> None:
        super().__init__()
        self._allowed: Tensor | None = None

    def restrict(self, labels: Iterable[int] | None) -> None:
        """See :meth:`Sampler.restrict`."""
        before = self._only
        super().restrict(labels)
        if self._only != before:
            chosen = None if self._only is None else np.flatnonzero(np.isin(self.cutouts.labels, self._only))
            self._allowed = None if chosen is None else torch.from_numpy(chosen)

    def draw(self, demand: DrawRequest, generator: torch.Generator) -> list[int]:
        """See :meth:`Sampler.draw`."""
        total = len(self.cutouts) if self._allowed is None else len(self._allowed)
        wanted = demand.pastes * (demand.foreground_candidates if demand.mix_classes else 1)
        first = torch.randint(total, (wanted,), generator=generator)
        if self._allowed is not None:
            first = self._allowed[first]
        if demand.mix_classes:
            positions: list[int] = first.tolist()
            return positions
        return self._to_rows(first, demand, generator)

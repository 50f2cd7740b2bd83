"""Sampler ``uniform``: every foreground is drawn equally often."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from terse_aug.samplers.base import DrawRequest, Sampler


class UniformSampler(Sampler):
    """Draws uniformly from the allowed foregrounds, with replacement: classes are as frequent as in the bank."""

    def __init__(self) -> None:
        super().__init__()
        self._allowed: Tensor | None = None

    def restrict(self, labels: Iterable[int] | None) -> None:
        """See :meth:`Sampler.restrict`."""
        before = self._allowed_labels
        super().restrict(labels)
        if self._allowed_labels is None:
            self._allowed = None
        elif self._allowed_labels != before:
            allowed = np.isin(self.foregrounds.labels, self._allowed_labels)
            self._allowed = torch.from_numpy(np.flatnonzero(allowed))

    def draw(self, request: DrawRequest, generator: torch.Generator) -> list[int]:
        """See :meth:`Sampler.draw`."""
        total = len(self.foregrounds) if self._allowed is None else len(self._allowed)
        draws = request.pastes * (request.foreground_candidates if request.mix_classes else 1)
        first = torch.randint(total, (draws,), generator=generator)
        if self._allowed is not None:
            first = self._allowed[first]
        return self._with_candidates(first, request, generator)

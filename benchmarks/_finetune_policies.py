"""Policies under test in :mod:`benchmarks.finetune` that need no forward of the detector.

Shape letters: C candidates, M pastes, P transform parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks._finetune_measures import Density
from terse_aug.policies import Policy, PolicyContext, Proposal
from terse_aug.transforms import PARAMETERS

_KEPT = 2000
"""Random candidates whose boxes are kept, to know how random boxes are distributed."""
_LEAST_SIDE = 1e-3


class Matched(Policy):
    """Of several random candidates one, so that the boxes of pastes are distributed like those of real objects.

    Sampling importance resampling (Rubin, 1987): a candidate is chosen with probability proportional to the density of
    its box among real ones, divided by that among random candidates.

    Args:
        real: boxes of real objects, see :func:`box_features`.
        columns: of the features that are matched.
        candidates: C.
    """

    uses_views = True

    def __init__(self, real: Tensor, columns: tuple[int, ...], candidates: int = 16) -> None:
        super().__init__()
        self._columns, self._candidates = list(columns), candidates
        self._real = Density(real[:, self._columns])
        self._random = torch.zeros(0, len(columns))

    def propose(self, context: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        """See :meth:`terse_aug.policies.Policy.propose`."""
        assert context.views is not None
        units = torch.rand(self._candidates, len(context.image_of), len(PARAMETERS), generator=generator)
        draw = torch.rand(len(context.image_of), generator=generator)
        if not len(draw):
            return Proposal(units[0], draw)
        numbers = context.views(units).numbers[..., len(PARAMETERS) :]
        center, size = (numbers[..., :2] + 1) / 2, numbers[..., 2:]
        features = _features(center[..., 0], center[..., 1] + size[..., 1] / 2, size)[..., self._columns]
        flat = features.flatten(0, 1)
        self._random = torch.cat([flat, self._random])[:_KEPT]
        # The same bandwidth for both, so that their bias is the same.
        random = self._real.of(self._random)
        weight = (self._real.log(flat) - random.log(flat)).view(units.shape[:2]).softmax(0)
        chosen = (weight.cumsum(0) < draw).sum(0).clamp(max=self._candidates - 1)
        return Proposal(units[chosen, torch.arange(len(draw))], torch.zeros(len(draw)))


def box_features(samples: Any) -> Tensor:
    """Logarithms of width and height, center across and foot down, relative to the image, of all objects ``[n, 4]``.

    Args:
        samples: pairs of image and target.
    """
    found = []
    for image, target in samples:
        boxes = target["boxes"] / torch.tensor(image.shape[-2:]).flip(0).repeat(2)
        found.append(_features((boxes[:, 0] + boxes[:, 2]) / 2, boxes[:, 3], boxes[:, 2:] - boxes[:, :2]))
    return torch.cat(found)


def _features(across: Tensor, foot: Tensor, size: Tensor) -> Tensor:
    return torch.cat([size.clamp(min=_LEAST_SIDE).log(), torch.stack([across, foot], -1)], -1)

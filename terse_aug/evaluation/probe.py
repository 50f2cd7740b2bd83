"""How hard are a policy's composites for a detector, and how diverse? Imports torch only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terse_aug.evaluation.diversity import REDUCED, nearest_neighbour_distances, std_ratios_by_class
from terse_aug.models import ModelAdapter, as_model
from terse_aug.policies import Policy
from terse_aug.structures.annotations import Target
from terse_aug.training.metrics import std_ratios

if TYPE_CHECKING:
    from terse_aug.terse import Terse

MISSED_BELOW = 0.5
"""An object counts as missed where the detector's probability of it is below this (TERSE, CVPR 2019, section 4)."""


@dataclass(frozen=True)
class Probe:
    """Hardness and diversity of labelled pastes.

    Attributes:
        scores: float ``[n]`` in [0, 1], the detector's probability of each pasted object of which it tells one; its
            hardness is one minus this.
        unit: float ``[n, P]``, the transforms in the unit cube.
        labels: int64 ``[n]``, the classes.
        composites: float ``[b, 3, 32, 32]``, the composites with a pasted object, reduced.
    """

    scores: Tensor
    unit: Tensor
    labels: Tensor
    composites: Tensor

    @property
    def missed_share(self) -> float:
        """Share of the pasted objects that the detector misses; NaN where there are none."""
        return float((self.scores < MISSED_BELOW).float().mean())

    @property
    def spread(self) -> dict[str, float]:
        """Standard deviation of each transform parameter relative to uniform: 1 random, 0 collapsed."""
        return std_ratios(self.unit)

    @property
    def std_ratios_by_class(self) -> dict[int, dict[str, float]]:
        """The same within each class; a transform for each class is collapsed here and not there."""
        return std_ratios_by_class(self.unit, self.labels)

    @property
    def neighbour_distance(self) -> float:
        """Mean distance of a composite to the one that is most like it, see
        :func:`terse_aug.evaluation.diversity.nearest_neighbour_distances`; NaN for fewer than two.

        To be compared with that of ``"random"`` on the same batches.
        """
        if len(self.composites) < 2:
            return float("nan")
        return float(nearest_neighbour_distances(self.composites).mean())

    def histogram(self, bins: int = 20) -> list[float]:
        """Share of the pasted objects by hardness, in equal bins from 0 to 1."""
        counts = torch.histc(1 - self.scores.float(), bins, 0, 1)
        shares: list[float] = (counts / max(len(self.scores), 1)).tolist()
        return shares


def probe(
    terse: Terse,
    detector: nn.Module | ModelAdapter,
    batches: Iterable[tuple[Sequence[Tensor], Sequence[Target]]],
    policy: str | Policy | None = None,
    seed: int = 0,
) -> Probe:
    """Compose batches and ask a detector for every pasted object. No state moves, nothing is learned.

    Args:
        terse: gives bank, settings and, by default, the policy.
        detector: as for ``Terse(target=...)``; it is left as it was.
        batches: ``(images, targets)`` as for :meth:`Terse.forward`.
        policy: the policy to probe; ``"random"`` for the reference that others are compared with.
        seed: what is drawn is a function of it, so that two policies meet the same cut-outs.
    """
    target = as_model(detector)
    scores: list[Tensor] = []
    units: list[Tensor] = []
    labels: list[int] = []
    reduced: list[Tensor] = []
    for number, (images, targets) in enumerate(batches):
        composites = terse.compose(images, targets, policy, seed=seed + number)
        by_image = target.object_scores(composites.images, composites.targets)
        for image, own_scores, pastes in zip(composites.images, by_image, composites.pastes, strict=True):
            known = (~own_scores.isnan()).tolist()
            labelled = [
                paste for paste in pastes if paste.row is not None and paste.number is not None and known[paste.row]
            ]
            if labelled:
                reduced.append(F.adaptive_avg_pool2d(terse.pixel_format.decode(image.detach().float()), REDUCED).cpu())
            labels += [paste.label for paste in labelled]
            scores.append(own_scores[[paste.row for paste in labelled]].float().cpu())
            units += [paste.unit for paste in labelled]
    return Probe(
        torch.cat([torch.zeros(0), *scores]),
        torch.stack(units) if units else torch.zeros(0, 0),
        torch.tensor(labels, dtype=torch.long),
        torch.stack(reduced) if reduced else torch.zeros(0, 3, REDUCED, REDUCED),
    )

"""Measures how hard and how diverse a policy's composites are for a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terse_aug.evaluation.diversity import REDUCED_SIDE, nearest_neighbour_distances, std_ratios_by_class
from terse_aug.models import ModelAdapter, as_model
from terse_aug.policies import Policy
from terse_aug.structures.annotations import Target
from terse_aug.training.metrics import std_ratios
from terse_aug.transforms import PARAMETERS

if TYPE_CHECKING:
    from terse_aug.terse import Terse

DETECTED_AT = (0.5,)
"""A detection belongs to an object from this overlap on."""
MISSED_BELOW = 0.5
"""An object counts as missed where the model's score of it is below this (TERSE, CVPR 2019, section 4)."""


@dataclass(frozen=True)
class Probe:
    """Hardness and diversity of the labelled pastes for which the model gives a score.

    Attributes:
        scores: float ``[n]`` in [0, 1], the model's score of each pasted object; its hardness is one minus this.
        unit: float ``[n, P]``, the transforms in the unit cube.
        labels: int64 ``[n]``, the classes.
        composites: float ``[b, 3, 32, 32]``, the composites with such a paste, reduced.
        columns: names of the P columns of a transform.
    """

    scores: Tensor
    unit: Tensor
    labels: Tensor
    composites: Tensor
    columns: tuple[str, ...] = PARAMETERS

    @property
    def missed_fraction(self) -> float:
        """Fraction of the pasted objects that the model misses; NaN where there are none."""
        return float((self.scores < MISSED_BELOW).float().mean())

    @property
    def std_ratios(self) -> dict[str, float]:
        """Standard deviation of each transform parameter relative to uniform: 1 as diverse as random, 0 collapsed."""
        return std_ratios(self.unit, self.columns)

    @property
    def std_ratios_by_class(self) -> dict[int, dict[str, float]]:
        """The same by class; lower than over all classes where each class has its own transform."""
        return std_ratios_by_class(self.unit, self.labels, self.columns)

    @property
    def neighbour_distance(self) -> float:
        """Mean of :func:`~terse_aug.evaluation.diversity.nearest_neighbour_distances`; NaN for fewer than two.

        Compare it with that of the policy ``random`` on the same batches.
        """
        if len(self.composites) < 2:
            return float("nan")
        return float(nearest_neighbour_distances(self.composites).mean())

    def histogram(self, bins: int = 20) -> list[float]:
        """Fraction of the pasted objects by hardness, in equal bins from 0 to 1."""
        counts = torch.histc(1 - self.scores.float(), bins, 0, 1)
        fractions: list[float] = (counts / max(len(self.scores), 1)).tolist()
        return fractions


def probe(
    terse: Terse,
    model: nn.Module | ModelAdapter,
    batches: Iterable[tuple[Sequence[Tensor], Sequence[Target]]],
    policy: str | Policy | None = None,
    seed: int = 0,
) -> Probe:
    """Compose batches and score every pasted object by a model. No state changes and nothing is learned.

    Args:
        terse: has bank, settings and, by default, the policy.
        model: as for ``Terse(model=...)``; it is left as it was. The score of a detector that is no adapter is its
            probability at an overlap of one half, as in the paper.
        batches: ``(images, targets)`` as for :meth:`terse_aug.Terse.forward`.
        policy: the policy to probe; ``"random"`` for the reference that others are compared with.
        seed: what is drawn is a function of it: two policies get the same foregrounds.
    """
    adapter = as_model(model, DETECTED_AT)
    scores = [torch.zeros(0)]
    labels: list[int] = []
    units: list[Tensor] = []
    reduced: list[Tensor] = []
    for number, (images, targets) in enumerate(batches):
        composites = terse.compose(images, targets, policy, seed=seed + number)
        by_image = adapter.object_scores(composites.images, composites.targets)
        for image, own_scores, pastes in zip(composites.images, by_image, composites.pastes, strict=True):
            known = (~own_scores.isnan()).tolist()
            # The policy does not place occludees, which have no number.
            scored = [
                paste for paste in pastes if paste.row is not None and paste.number is not None and known[paste.row]
            ]
            if scored:
                small = F.adaptive_avg_pool2d(terse.pixel_format.decode(image.detach().float()), REDUCED_SIDE)
                reduced.append(small.cpu())
            labels += [paste.label for paste in scored]
            scores.append(own_scores[[paste.row for paste in scored]].float().cpu())
            units += [paste.unit for paste in scored]
    return Probe(
        torch.cat(scores),
        torch.stack(units) if units else torch.zeros(0, 0),
        torch.tensor(labels, dtype=torch.long),
        torch.stack(reduced) if reduced else torch.zeros(0, 3, REDUCED_SIDE, REDUCED_SIDE),
        terse.paste.columns,
    )

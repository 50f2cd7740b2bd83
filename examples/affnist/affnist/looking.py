"""What the composites of an arm are like: how hard, and how different from one another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from affnist.data import CANVAS
from terse_aug import Terse
from terse_aug.evaluation.diversity import nearest_neighbour_distances, std_ratios_by_class
from terse_aug.lockstep import HardExampleCache
from terse_aug.models import ClassifierAdapter, class_of

BINS = 20
"""Bins of the histogram of hardness over [0, 1]."""
_BATCHES, _BATCH = 8, 64
_COMPARED = 1500


def empty_canvases(side: int, count: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """A batch to paste digits on: black, with nothing on it."""
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)} for _ in range(count)]
    return torch.zeros(count, 3, side, side), empty


def hardness_figures(hardness: Tensor) -> dict[str, Any]:
    """Share missed and histogram of hardness float ``[n]``, one minus the probability of the true class."""
    if not len(hardness):
        return {}
    histogram = torch.histc(hardness.float(), BINS, 0, 1) / len(hardness)
    return {"missed share": float((hardness > 0.5).float().mean()), "hardness histogram": histogram.tolist()}


def look_at(terse: Terse, target: ClassifierAdapter, cache: HardExampleCache | None = None) -> dict[str, Any]:
    """Hardness of fresh composites for the classifier as it is, and diversity of these and of what was kept."""
    images, units, labels, hardness = [], [], [], []
    for number in range(_BATCHES):
        canvases, targets = empty_canvases(CANVAS, _BATCH)
        made = terse.compose(list(canvases), targets, seed=number)
        images += made.images
        hardness += [1 - own for own in target.object_scores(made.images, made.targets)]
        units += [paste.unit for pastes in made.pastes for paste in pastes]
        labels.append(class_of(made.targets))
    label = torch.cat(labels)
    spreads = std_ratios_by_class(torch.stack(units), label)
    distance = nearest_neighbour_distances(torch.stack(images), label)
    figures = hardness_figures(torch.cat(hardness)) | {
        "spread of a class": sum(sum(own.values()) / len(own) for own in spreads.values()) / len(spreads),
        "neighbour distance": float(distance.mean()),
    }
    if cache is not None and len(cache):
        newest = [cache[-1 - position] for position in range(min(len(cache), _COMPARED))]
        kept = torch.stack([image for image, _ in newest])
        distance = nearest_neighbour_distances(kept, class_of([own for _, own in newest]))
        figures["neighbour distance of the kept"] = float(distance.mean())
    return figures

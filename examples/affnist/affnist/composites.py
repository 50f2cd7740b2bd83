"""Hardness and diversity of the composites of an arm."""

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
BATCHES, BATCH_SIZE = 8, 64
_COMPARED = 1500


def empty_canvases(side: int, count: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """A batch to paste digits on: black images without objects."""
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)} for _ in range(count)]
    return torch.zeros(count, 3, side, side), empty


def hardness_of_composites(hardness: Tensor) -> dict[str, Any]:
    """Fraction missed and histogram of hardness float ``[n]``, one minus the probability of the true class."""
    if not len(hardness):
        return {}
    histogram = torch.histc(hardness.float(), BINS, 0, 1) / len(hardness)
    return {"missed fraction": float((hardness > 0.5).float().mean()), "hardness histogram": histogram.tolist()}


def measure_composites(terse: Terse, model: ClassifierAdapter, cache: HardExampleCache | None = None) -> dict[str, Any]:
    """Hardness of fresh composites for the classifier, and diversity of these and of the mined images."""
    images, units, labels, hardness = [], [], [], []
    for number in range(BATCHES):
        canvases, targets = empty_canvases(CANVAS, BATCH_SIZE)
        made = terse.compose(list(canvases), targets, seed=number)
        images += made.images
        hardness += [1 - own for own in model.object_scores(made.images, made.targets)]
        units += [paste.unit for pastes in made.pastes for paste in pastes]
        labels.append(class_of(made.targets))
    label = torch.cat(labels)
    std_ratios = std_ratios_by_class(torch.stack(units), label)
    distance = nearest_neighbour_distances(torch.stack(images), label)
    results = hardness_of_composites(torch.cat(hardness)) | {
        "std ratio within a class": sum(sum(own.values()) / len(own) for own in std_ratios.values()) / len(std_ratios),
        "neighbour distance": float(distance.mean()),
    }
    if cache is not None and len(cache):
        newest = [cache[-1 - position] for position in range(min(len(cache), _COMPARED))]
        kept = torch.stack([image for image, _ in newest])
        distance = nearest_neighbour_distances(kept, class_of([own for _, own in newest]))
        results["neighbour distance of mined images"] = float(distance.mean())
    return results

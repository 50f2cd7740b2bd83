"""Live training: every iteration has fresh composites, made for the classifier as it is at that moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from affnist.arms import make_terse
from affnist.data import CANVAS, AffineRanges, Digits
from affnist.models import NETWORKS, accuracy
from terse_aug import ForegroundBank, Terse
from terse_aug.targets import class_of

BINS = 20
"""Bins of the histogram of hardness over [0, 1]."""


@dataclass(frozen=True)
class Schedule:
    """How the classifier is trained, the same in all arms.

    Attributes:
        iterations: in all.
        readings: iterations between two measurements on the test set.
        batch_size: real digits, and as many composites, in an iteration.
        learning_rate: of SGD with momentum 0.9 and weight decay 5e-4.
    """

    iterations: int = 2000
    readings: int = 400
    batch_size: int = 64
    learning_rate: float = 0.01


@dataclass
class _Tally:
    """What came of the composites of the last fifth of a run."""

    missed: int = 0
    seen: int = 0
    hardness: list[Tensor] = field(default_factory=list)

    def take(self, logits: Tensor, labels: Tensor) -> None:
        self.missed += int((logits.argmax(1) != labels).sum())
        self.seen += len(labels)
        self.hardness.append(1 - logits.softmax(1).gather(1, labels[:, None])[:, 0])

    def figures(self) -> dict[str, Any]:
        if not self.seen:
            return {}
        histogram = torch.histc(torch.cat(self.hardness), BINS, 0, 1) / self.seen
        return {"missed share": self.missed / self.seen, "hardness histogram": histogram.tolist()}


def train_live(
    arm: str,
    network: str,
    digits: Digits,
    bank: ForegroundBank,
    test: tuple[Tensor, Tensor],
    ranges: AffineRanges,
    schedule: Schedule,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Train a classifier with the composites of an arm.

    Returns:
        Accuracy (per cent) on the test set at every reading, and what the composites of the last fifth were like.
    """
    torch.manual_seed(seed)
    model = NETWORKS[network]().train()
    optimizer = torch.optim.SGD(model.parameters(), schedule.learning_rate, momentum=0.9, weight_decay=5e-4)
    terse = make_terse(arm, bank, model, ranges, seed)
    order = torch.Generator().manual_seed(seed)
    real, labels = digits.padded(), digits.labels
    readings, tally, started = [], _Tally(), time.process_time()
    for iteration in range(schedule.iterations):
        rows = torch.randint(len(digits), (schedule.batch_size,), generator=order)
        images, wanted = real[rows], labels[rows]
        if terse is not None:
            composites, classes, targets = _composites(terse, schedule.batch_size)
            images, wanted = torch.cat([images, composites]), torch.cat([wanted, classes])
        logits = model(images)
        losses = F.cross_entropy(logits, wanted, reduction="none")
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        if terse is not None:
            own = logits[-schedule.batch_size :].detach()
            if terse.policy.learns_from == "hardness":
                terse.observe(_hardness(own, targets))
            # The composites are a part of the batch whose mean is the loss.
            terse.step(losses.detach().mean(), loss_scale=schedule.batch_size / len(images))
            if iteration + 1 > 0.8 * schedule.iterations:
                tally.take(own, classes)
        if (iteration + 1) % schedule.readings == 0:
            readings.append({"iteration": iteration + 1, "accuracy": accuracy(model, *test)})
        progress(iteration + 1)
    figures: dict[str, Any] = {"arm": arm, "seed": seed, "network": network, "readings": readings}
    figures |= {"processor seconds": time.process_time() - started} | tally.figures()
    return figures | ({"metrics": terse.metrics()} if terse is not None else {})


def _composites(terse: Terse, count: int) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Fresh composites ``[count, 1, CANVAS, CANVAS]``, their classes and their targets."""
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)} for _ in range(count)]
    images, targets = terse(torch.zeros(count, 3, CANVAS, CANVAS), empty)
    assert isinstance(images, Tensor)
    return images[:, :1], class_of(targets), targets


def _hardness(logits: Tensor, targets: list[dict[str, Tensor]]) -> list[Tensor]:
    """One minus the probability of the class of each object."""
    return [1 - own[target["labels"]] for own, target in zip(logits.softmax(1), targets, strict=True)]

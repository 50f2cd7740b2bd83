"""Live training: every iteration has fresh composites, made for the current classifier."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from affnist.arms import CLASSES, Arm, make_terse
from affnist.composites import empty_canvases, hardness_of_composites
from affnist.data import CANVAS, AffineRanges, Digits
from affnist.models import NETWORKS, accuracy, averaged
from terse_aug import ForegroundBank, Terse
from terse_aug.models import ClassifierAdapter, class_of


@dataclass(frozen=True)
class Schedule:
    """How the classifier is trained, the same in all arms.

    Attributes:
        iterations: in all.
        evaluate_every: iterations between two evaluations on the test set.
        batch_size: real digits, and as many composites, in an iteration.
        learning_rate: of SGD with momentum 0.9 and weight decay 5e-4.
        decay: whether it falls to 0 along half a cosine; else it is constant.
    """

    iterations: int = 2000
    evaluate_every: int = 400
    batch_size: int = 64
    learning_rate: float = 0.01
    decay: bool = False

    def rate(self, iteration: int) -> float:
        """Learning rate of an iteration, counted from 0."""
        fall = (1 + math.cos(math.pi * iteration / self.iterations)) / 2 if self.decay else 1.0
        return self.learning_rate * fall


def train_live(
    arm: Arm,
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
        Accuracy (per cent) of the averaged weights on the test set at every evaluation; hardness of the composites in
        the last fifth of the iterations.
    """
    torch.manual_seed(seed)
    model = NETWORKS[network]().train()
    average = averaged(model)
    optimizer = torch.optim.SGD(model.parameters(), schedule.learning_rate, momentum=0.9, weight_decay=5e-4)
    terse = make_terse(arm, bank, ClassifierAdapter(model, CLASSES), ranges, seed) if arm.policy else None
    order = torch.Generator().manual_seed(seed)
    real, labels = digits.padded(), digits.labels
    evaluations, late, started = [], [torch.zeros(0)], time.process_time()
    for iteration in range(schedule.iterations):
        rows = torch.randint(len(digits), (schedule.batch_size,), generator=order)
        images, wanted = real[rows], labels[rows]
        if terse is not None:
            composites, classes, targets = _composites(terse, schedule.batch_size)
            images, wanted = torch.cat([images, composites]), torch.cat([wanted, classes])
        logits = model(images)
        losses = F.cross_entropy(logits, wanted, reduction="none")
        optimizer.param_groups[0]["lr"] = schedule.rate(iteration)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        average.update_parameters(model)
        if terse is not None:
            own = logits[-schedule.batch_size :].detach()
            if terse.policy.learns_from == "hardness":
                terse.observe(class_probabilities=_class_probabilities(own, targets))
            # The composites are a part of the batch whose mean is the loss.
            terse.step(losses.detach().mean(), loss_scale=schedule.batch_size / len(images))
            if iteration + 1 > 0.8 * schedule.iterations:
                late.append(1 - own.softmax(1).gather(1, classes[:, None])[:, 0])
        if (iteration + 1) % schedule.evaluate_every == 0:
            images_so_far = (iteration + 1) * schedule.batch_size
            count = {"images wanted": images_so_far, "images": images_so_far}
            evaluations.append(count | {"accuracy": accuracy(average, *test)})
        progress(iteration + 1)
    results: dict[str, Any] = {"evaluations": evaluations, "CPU seconds": time.process_time() - started}
    results |= hardness_of_composites(torch.cat(late))
    return results | ({"metrics": terse.metrics()} if terse is not None else {})


def _composites(terse: Terse, count: int) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Fresh composites ``[count, 1, CANVAS, CANVAS]``, their classes and their targets."""
    images, targets = terse(*empty_canvases(CANVAS, count))
    assert isinstance(images, Tensor)
    return images[:, :1], class_of(targets), targets


def _class_probabilities(logits: Tensor, targets: list[dict[str, Tensor]]) -> list[Tensor]:
    """The class probabilities of each image, for each of its objects, which is one or none."""
    return [own.expand(len(target["labels"]), -1) for own, target in zip(logits.softmax(1), targets, strict=True)]

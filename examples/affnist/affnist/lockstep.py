"""Training in lock-step, the paper's schedule: hard-example mining against the frozen classifier, then training."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from affnist.arms import CLASSES, Arm, make_terse
from affnist.composites import empty_canvases, measure_composites
from affnist.data import CANVAS, AffineRanges, Digits
from affnist.models import NETWORKS, accuracy, averaged
from terse_aug import ForegroundBank
from terse_aug.lockstep import HardExampleCache, HardExampleMiner, LockStep, MiningReport, mix_batches
from terse_aug.models import ClassifierAdapter, class_of

_RIVAL_MARGIN = 0.05
"""An example is hard where another class exceeds its own by this probability: our setting, unverified in the paper."""


@dataclass(frozen=True)
class LockStepSchedule:
    """How the classifier is trained, the same in all arms.

    Attributes:
        rounds: of mining and training.
        wanted: synthetic images of a round, as many of each class.
        budget: images that may pass through the classifier in a mining phase.
        warm_up: iterations on MNIST's own digits before the first round.
        iterations: of training in a round.
        batch_size: half of it real digits, half from the cache.
        learning_rate: of SGD with momentum 0.9 and weight decay 5e-4.
    """

    rounds: int = 6
    wanted: int = 1500
    budget: int = 60_000
    warm_up: int = 400
    iterations: int = 400
    batch_size: int = 64
    learning_rate: float = 0.01


class _Evaluations:
    """Results after every round, and CPU time; saved with the classifier.

    The time that an interrupted run spent in an unfinished round is not counted.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._before, self._started = 0.0, time.process_time()

    @property
    def seconds(self) -> float:
        """CPU seconds of this and earlier processes."""
        return self._before + time.process_time() - self._started

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows), "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.rows, self._before, self._started = list(state["rows"]), state["seconds"], time.process_time()


class _Classifier:
    """The classifier and its training."""

    def __init__(self, network: str, digits: Digits, schedule: LockStepSchedule, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = NETWORKS[network]().train()
        self.average = averaged(self.model)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), schedule.learning_rate, momentum=0.9, weight_decay=5e-4
        )
        self._real, self._labels = digits.padded(), digits.labels
        self._schedule, self._seed = schedule, seed

    def train(self, number: int, iterations: int, cache: HardExampleCache | None) -> None:
        """Train on real digits and, if there are any, on as many mined ones; a function of the number."""
        torch.manual_seed(1000 * self._seed + number)  # of the dropout
        batches = itertools.islice(self._batches(number), iterations)
        if cache is not None and len(cache):
            batches = mix_batches(batches, cache, fraction=0.5, seed=self._seed, epoch=number)
        for images, targets in batches:
            loss = F.cross_entropy(self.model(torch.stack(images)), class_of(targets))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.average.update_parameters(self.model)

    def _batches(self, number: int) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
        order = torch.Generator().manual_seed(1000 * self._seed + number)
        while True:
            rows = torch.randint(len(self._labels), (self._schedule.batch_size,), generator=order)
            images = self._real[rows].expand(-1, 3, -1, -1)
            yield list(images), [{"boxes": torch.zeros(1, 4), "labels": label[None]} for label in self._labels[rows]]


def train_in_lock_step(
    arm: Arm,
    network: str,
    digits: Digits,
    bank: ForegroundBank,
    test: tuple[Tensor, Tensor],
    ranges: AffineRanges,
    schedule: LockStepSchedule,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """Train a classifier in rounds with the composites of an arm; resumes an interrupted run in the folder.

    Returns:
        Accuracy (per cent) on the test set after every round, of the averaged weights and of the last ones, which the
        next mining phase uses; reports of the mining, hardness and diversity of composites and mined images at the end.
    """
    classifier, evaluations = _Classifier(network, digits, schedule, seed), _Evaluations()
    classifier.train(999, schedule.warm_up, None)

    def evaluate(number: int, images: int) -> None:
        wanted = schedule.wanted * (number + 1)
        evaluations.rows.append(
            {
                "images wanted": wanted,
                "images": images,
                "accuracy": accuracy(classifier.average, *test),
                "accuracy of last weights": accuracy(classifier.model, *test),
            }
        )

    if arm.policy is None:
        for number in range(schedule.rounds):
            classifier.train(number, schedule.iterations, None)
            evaluate(number, 0)
        return {"evaluations": evaluations.rows, "CPU seconds": evaluations.seconds}

    folder.mkdir(parents=True, exist_ok=True)
    model = ClassifierAdapter(classifier.model, CLASSES)
    terse = make_terse(arm, bank, model, ranges, seed)
    with HardExampleCache(folder / "cache", capacity=schedule.rounds * schedule.wanted) as cache:
        hardness = {"rival_margin": _RIVAL_MARGIN} if arm.filtered else {"hard_below": 1.0}
        wanted = dict.fromkeys(range(CLASSES), schedule.wanted // CLASSES)
        mining = HardExampleMiner(terse, model, cache, wanted, schedule.budget, **hardness)
        learners = {"model": classifier.model, "average": classifier.average, "optimizer": classifier.optimizer}
        cycle = LockStep(mining, folder, learners | {"evaluations": evaluations})

        def train(number: int, reports: list[MiningReport]) -> None:
            classifier.train(number, schedule.iterations, cache)
            evaluate(number, sum(sum(report.found.values()) for report in reports))

        reports = cycle.run(
            schedule.rounds, lambda number: itertools.repeat(empty_canvases(CANVAS, schedule.batch_size)), train, False
        )
        measured = measure_composites(terse, model, cache)
    mined = [asdict(report) | {"yield per forward": report.yield_per_forward} for report in reports]
    results = {"evaluations": evaluations.rows, "filtered": arm.filtered, "mining": mined, "metrics": terse.metrics()}
    return results | {"CPU seconds": evaluations.seconds} | measured

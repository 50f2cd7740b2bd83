"""Trains the small detector once: without pasting, with the policy random, or with the policy critic."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from terse_aug import ForegroundBank, PasteConfig, Probe, Terse, TransformRanges, probe
from terse_demo.data import CLASSES, SIZE, test_images, training_images
from terse_demo.detector import build_detector
from terse_demo.measurement import Evaluator, Sample, ScoredImage, Stopwatch, hardest_pairs, score_composites

ARMS = ("none", "random", "critic")
"""The policy of each arm; initial weights, batches and schedule are the same in all."""

RANGES = TransformRanges(rotation=(-30, 30), shear=(-0.15, 0.15), scale=(0.6, 1.7))
"""How far a pasted digit may be turned, slanted and scaled; it may lie anywhere in the image."""

LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2
WARM_UP = 0.1

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


@dataclass(frozen=True)
class Settings:
    """What the demo is run with.

    Attributes:
        seed: of initial weights, order of the images, and pasting.
        iterations: of each arm.
        batch_size: images per iteration.
        train_images: images to train on.
        test_images: images to measure on.
        measurements: how often AP and hardness are measured, at equal intervals, the last time at the end.
        probe_rounds: composites of each training image that hardness is measured on.
        shown_images: images shown of a measurement.
    """

    seed: int = 0
    iterations: int = 720
    batch_size: int = 8
    train_images: int = 32
    test_images: int = 100
    measurements: int = 6
    probe_rounds: int = 2
    shown_images: int = 6

    def measured_at(self) -> list[int]:
        """Iterations after which AP and hardness are measured."""
        return [round(self.iterations * number / self.measurements) for number in range(1, self.measurements + 1)]


@dataclass(frozen=True)
class Measurement:
    """Results after some iterations.

    Attributes:
        iteration: how many.
        average_precision: per cent, by name.
        missed: pasted objects that the detector misses, per cent, by the policy that pasted them.
        hardness: per cent of the pasted objects in each fifth of 0 to 1, by policy.
        neighbour_distance: mean distance of a composite to its nearest neighbour, by policy.
        std_ratio: of each transform parameter, 1 as diverse as random.
    """

    iteration: int
    average_precision: dict[str, float]
    missed: dict[str, float]
    hardness: dict[str, list[float]]
    neighbour_distance: dict[str, float]
    std_ratio: dict[str, float]


@dataclass
class ArmResult:
    """Results of an arm.

    Attributes:
        arm: which.
        measurements: as training went on.
        metrics: ``terse.metrics()`` at the end.
        seconds: CPU seconds per iteration, and of the whole training.
        pairs: by iteration, random composites beside those of the arm's policy.
        tests: some test images.
    """

    arm: str
    measurements: list[Measurement] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    pairs: dict[int, list[tuple[ScoredImage, ScoredImage]]] = field(default_factory=dict)
    tests: list[ScoredImage] = field(default_factory=list)


def train(arm: str, settings: Settings, bank: Path, progress: Callable[[int], None]) -> ArmResult:
    """Train and measure one arm."""
    samples = [image.tensors() for image in training_images(settings.train_images)]
    detector = build_detector(len(CLASSES), SIZE, settings.seed).train()
    optimizer = torch.optim.AdamW(detector.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: rate_factor(done, settings.iterations))
    terse = build_terse(arm, bank, settings, detector)
    monitor = ArmMonitor(arm, settings, samples)

    for iteration, (images, targets) in enumerate(batches(samples, settings), 1):
        torch.manual_seed(settings.seed * 1_000_003 + iteration)  # the detector samples its proposals at random
        with monitor.stopwatch:
            images, targets = terse(images, targets)
            losses = detector(images, targets)
            sum(losses.values()).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            terse.step(losses)
        progress(iteration)
        if iteration in settings.measured_at():
            monitor.measure(iteration, terse, detector)
    return monitor.finish(terse, detector)


def build_terse(arm: str, bank: Path, settings: Settings, detector: nn.Module) -> Terse:
    """The augmentation of an arm. That of ``none`` is in evaluation mode: batches pass through unchanged."""
    terse = Terse(
        ForegroundBank.open(bank),
        policy="critic" if arm == "critic" else "random",
        paste=PasteConfig(ranges=RANGES, flip_probability=0.0),
        seed=settings.seed,
        classes=CLASSES,
        model=detector,
    )
    return terse.train(arm != "none")


def rate_factor(done: int, iterations: int) -> float:
    """Learning rate of the iteration after ``done`` ones, relative to the highest: a linear rise, half a cosine."""
    rise = max(round(WARM_UP * iterations), 1)
    if done < rise:
        return (done + 1) / rise
    return (1 + math.cos(math.pi * (done - rise) / max(iterations - rise, 1))) / 2


def batches(samples: Sequence[Sample], settings: Settings) -> Iterator[Batch]:
    """Batches in an order that is a function of the seed alone; every image once before any comes again."""
    rng = np.random.default_rng(settings.seed)
    waiting: list[int] = []
    for _ in range(settings.iterations):
        while len(waiting) < settings.batch_size:
            waiting += rng.permutation(len(samples)).tolist()
        chosen, waiting = waiting[: settings.batch_size], waiting[settings.batch_size :]
        yield [samples[number][0] for number in chosen], [samples[number][1] for number in chosen]


class ArmMonitor:
    """Measures an arm while it trains, and collects its results."""

    def __init__(self, arm: str, settings: Settings, samples: Sequence[Sample]) -> None:
        self.stopwatch = Stopwatch()
        self._settings = settings
        self._samples = samples
        self._evaluator = Evaluator(test_images(settings.test_images))
        self._result = ArmResult(arm)

    def measure(self, iteration: int, terse: Terse, detector: nn.Module) -> None:
        """Measure after this iteration."""
        if self._result.arm == "critic":
            self._compare(iteration, terse, detector)
        probes = self._probe(terse, detector)
        self._result.measurements.append(
            Measurement(
                iteration,
                average_precision=self._evaluator.measure(detector),
                missed={name: 100 * found.missed_fraction for name, found in probes.items()},
                hardness={name: [100 * part for part in found.histogram(bins=5)] for name, found in probes.items()},
                neighbour_distance={name: found.neighbour_distance for name, found in probes.items()},
                std_ratio=_std_ratios(terse),
            )
        )

    def finish(self, terse: Terse, detector: nn.Module) -> ArmResult:
        """The results, when training is over."""
        result = self._result
        result.metrics = terse.metrics()
        result.seconds = {
            "cpu_per_iteration": self.stopwatch.cpu / self._settings.iterations,
            "cpu_of_training": self.stopwatch.cpu,
            "terse_fraction": terse.seconds / self.stopwatch.wall,
        }
        result.tests = self._evaluator.score_examples(detector, self._settings.shown_images)
        return result

    def _probe(self, terse: Terse, detector: nn.Module) -> dict[str, Probe]:
        batch = tuple(zip(*self._samples, strict=True))
        rounds = [batch] * self._settings.probe_rounds
        return {name: probe(terse, detector, rounds, policy) for name, policy in _PROBED[self._result.arm].items()}

    def _compare(self, iteration: int, terse: Terse, detector: nn.Module) -> None:
        by_random = score_composites(terse, detector, self._samples, "random", seed=0)
        by_critic = score_composites(terse, detector, self._samples, None, seed=0)
        self._result.pairs[iteration] = hardest_pairs(by_random, by_critic, self._settings.shown_images)


_PROBED: dict[str, dict[str, str | None]] = {
    "none": {},
    "random": {"random": None},
    "critic": {"random": "random", "critic": None},
}
"""The policies that hardness is measured for, by arm and name; ``None`` is the policy in use."""


def _std_ratios(terse: Terse) -> dict[str, float]:
    prefix = "std_ratio/"
    return {name.removeprefix(prefix): value for name, value in terse.metrics().items() if name.startswith(prefix)}

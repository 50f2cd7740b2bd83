"""Cost of terse-aug in a training step of a torchvision detector: none, random, and learned policies.

``python -m benchmarks.step --json F [--cycles 10] [--detector mobilenet] [--arms random pgd_1 pgd_3]``

One Faster R-CNN at 320 px on batches of four images, with boxes only, as most detection data are; ``Terse`` has its
default settings. All arms train the same detector with a learning rate of 0, so that all have the same work, and take
turns step by step.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models import detection

from benchmarks._drawn_images import draw_image
from benchmarks._timing import Times, interleaved, surroundings, write_json
from benchmarks._training_steps import CYCLE, OBJECTS, POLICIES, report_steps, step_bank, step_parser
from terse_aug import Robustness, Terse
from terse_aug.bank import ForegroundBank

_BATCHES = 4
MAKERS = {
    "mobilenet": detection.fasterrcnn_mobilenet_v3_large_320_fpn,
    "resnet50": detection.fasterrcnn_resnet50_fpn,
}

_IN_WORKERS = "random_in_workers"

ARMS: dict[str, dict[str, Any]] = {name: {"policy": policy} for name, policy in POLICIES.items()} | {
    _IN_WORKERS: {"policy": "random"},
    "pgd_1": {"robustness": Robustness()},
    "pgd_3": {"robustness": Robustness(steps=3)},
}
"""Arguments of ``Terse`` by arm: the policies, robustness training with one and three gradient steps, and batches that
were composed before the step, as the data loader's workers do."""

Batch = tuple[Any, ...]
"""Images, targets, and records if it is composed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with the arguments of the command line."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = MAKERS[options.detector](
        weights=None, weights_backbone=None, num_classes=3, min_size=options.side, max_size=options.side
    ).train()
    batches = make_batches(options.side, options.batch)
    with tempfile.TemporaryDirectory() as folder:
        steps = _steps(model, step_bank(Path(folder)), options.arms)
        arms = {name: (partial(step.prepared, batches), step) for name, step in steps.items()}
        times = interleaved(arms, CYCLE * options.cycles, CYCLE * options.warmup)
    inside = {name: step.terse_seconds() for name, step in steps.items()}
    _report(times, inside, options)


class _Step:
    """A training step with or without ``Terse``."""

    def __init__(self, model: nn.Module, terse: Terse | None, in_workers: bool = False) -> None:
        self._model, self._terse = model, terse
        self._composer = terse.composer() if terse is not None and in_workers else None
        self._optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
        self._calls = 0

    def prepared(self, batches: Sequence[Batch], turn: int) -> tuple[int, Batch]:
        """What the data loader gives; not timed."""
        batch = batches[turn % len(batches)]
        if self._composer is None:
            return turn, batch
        numbers = range(turn * len(batch[0]), (turn + 1) * len(batch[0]))
        samples = [self._composer(*sample, number) for *sample, number in zip(*batch, numbers, strict=True)]
        return turn, tuple(zip(*samples, strict=True))

    def __call__(self, prepared: tuple[int, Batch]) -> None:
        turn, (images, targets, *records) = prepared
        torch.manual_seed(turn)  # the detector's own sampling is then the same in every arm
        if self._terse is not None:
            images, targets = self._terse(images, targets, *records)
        losses = self._model(list(images), list(targets))
        torch.stack(list(losses.values())).sum().backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._terse is not None:
            self._terse.step(losses)
        self._calls += 1

    def terse_seconds(self) -> float:
        """Seconds of a step inside ``Terse``, by its own clock."""
        return 0.0 if self._terse is None else self._terse.seconds / max(self._calls, 1)


def _steps(model: nn.Module, bank: ForegroundBank, arms: Sequence[str]) -> dict[str, _Step]:
    """The arm without terse-aug, and the chosen ones."""
    terse = {arm: Terse(bank, **ARMS[arm], model=model) for arm in arms}
    return {"none": _Step(model, None)} | {arm: _Step(model, own, arm == _IN_WORKERS) for arm, own in terse.items()}


def make_batches(side: int, size: int) -> list[Batch]:
    """Batches of float images with boxes."""
    generator = np.random.default_rng(0)
    batches: list[Batch] = []
    for _ in range(_BATCHES):
        drawn = [draw_image(side, OBJECTS, generator) for _ in range(size)]
        images = [torch.from_numpy(one.image).permute(2, 0, 1).contiguous().float() / 255 for one in drawn]
        targets = [{"boxes": torch.from_numpy(one.boxes), "labels": torch.from_numpy(one.labels)} for one in drawn]
        batches.append((images, targets))
    return batches


def _report(times: dict[str, Times], inside: dict[str, float], options: argparse.Namespace) -> None:
    title = f"{options.detector}, {options.side} px, batch {options.batch}, {options.cycles} cycles of {CYCLE} steps"
    content = report_steps(title, times, {"in Terse": {name: 1e3 * value for name, value in inside.items()}})
    content |= {
        "seconds_in_terse": {name: round(value, 6) for name, value in inside.items()},
        "detector": options.detector,
        "side": options.side,
        "batch": options.batch,
    }
    write_json(options.json, content | surroundings())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = step_parser(__doc__, batch=4, cycles=10)
    made.add_argument("--detector", choices=sorted(MAKERS), default="mobilenet")
    made.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(POLICIES), help="beside none")
    made.add_argument("--warmup", type=int, default=1, help="cycles before the timed ones")
    return made.parse_args(arguments)


if __name__ == "__main__":
    main()

"""A framework that trains real models of its own on a tiny data set, and what is recorded of a training."""

from __future__ import annotations

import hashlib
import logging
import random
import resource
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from terse_aug import Terse

KEPT_BATCHES = 10
"""Batches of a run that are kept."""


@dataclass(frozen=True)
class Seen:
    """An image from the data loader or into the model: RGB float ``[3, H, W]`` in [0, 1], labels from 0."""

    image: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None


@dataclass
class Run:
    """A training.

    Attributes:
        losses: of every iteration.
        weights: of the detector at the end.
        loaded: the first batches from the data loader.
        entered: the first batches into the model.
        terse: the module that pastes, if terse-aug was on.
        resident: megabytes of memory in use, at every iteration.
        draws: state of the global random generators before and after each part of the adapter in an iteration.
        warned: messages of terse-aug in the framework's log.
    """

    losses: list[float] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    loaded: list[list[Seen]] = field(default_factory=list)
    entered: list[list[Seen]] = field(default_factory=list)
    terse: Terse | None = None
    resident: list[float] = field(default_factory=list)
    draws: list[tuple[str, str]] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float]:
        assert self.terse is not None
        return self.terse.metrics()


@dataclass(frozen=True)
class Training:
    """What to train; everything drawn, except by terse-aug, is a function of the iteration.

    Attributes:
        out: folder for checkpoints.
        iterations: where training ends.
        start: resume from the checkpoint that was saved there; 0 for none.
        terse: settings of terse-aug as of :func:`settings`; ``None`` trains without the adapter.
        save_at: save a checkpoint after so many iterations, and continue.
        not_finite_at: the loss of this iteration is infinite, without a gradient.
        model: ``masks``, one with masks; ``plain``, the cheapest that a trainer accepts.
    """

    out: Path
    iterations: int = 3
    start: int = 0
    terse: dict[str, Any] | None = None
    save_at: int | None = None
    not_finite_at: int | None = None
    model: str = "masks"


class Framework(ABC):
    """A framework with a tiny data set of two classes: images of several sizes, some without objects."""

    classes: tuple[str, ...]
    """Names of the labels from 0 on, in another order than the bank's."""
    pool: str
    """Key of the folder of backgrounds."""

    def train(self, out: Path, iterations: int = 3, **options: Any) -> Run:
        """Train, see :class:`Training`; checks that the run was recorded."""
        out.mkdir(exist_ok=True)
        training = Training(out, iterations, **options)
        run = self.run(training)
        count = iterations - training.start
        assert len(run.losses) == len(run.resident) == count
        assert len(run.loaded) == len(run.entered) == min(count, KEPT_BATCHES)
        return run

    @abstractmethod
    def run(self, training: Training) -> Run:
        """Train a model of the framework."""

    @abstractmethod
    def bank_source(self, folder: Path, boxes_only: bool = False) -> tuple[Callable[..., Any], list[str]]:
        """A function that builds a bank from the data set, and flags of ``terse-aug bank build`` that do the same."""


class LogRecorder(logging.Handler):
    """Records the messages of a logger."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def generator_states() -> str:
    """A digest of the global random generators of torch, numpy and Python."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - what the frameworks draw from
    state = (torch.get_rng_state().numpy().tobytes(), kind, np.asarray(keys).tobytes(), rest, random.getstate())
    return hashlib.blake2b(repr(state).encode()).hexdigest()


def resident_megabytes() -> float:
    """Memory that this process holds now, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

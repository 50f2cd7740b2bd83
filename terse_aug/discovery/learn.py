"""Learn a cutter from photographs without masks."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from terse_aug.discovery.cutter import Cutter
from terse_aug.discovery.data import Photographs, read_photographs
from terse_aug.discovery.health import Health, measure_health
from terse_aug.discovery.run_folder import CUTTER, SHOWN, RunFolder
from terse_aug.discovery.settings import DiscoverySettings
from terse_aug.discovery.training import CHUNK, DiscoveryTraining
from terse_aug.utils.random import generator_for

Progress = Callable[[str, int, int], None]
"""Called with a description, the number of steps done, and their total."""
_HEALTH_SAMPLES = 512


@dataclass(frozen=True)
class Intervals:
    """After how many steps something is written.

    Attributes:
        metrics: means of losses and measures.
        layers: a picture of the layers, and the health checks; a multiple of ``metrics``.
        checkpoint: what a run resumes from; a multiple of ``metrics``.

    Raises:
        ValueError: an interval is below 1, or no multiple of ``metrics``.
    """

    metrics: int = 50
    layers: int = 500
    checkpoint: int = 250

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1 step, got {value!r}")
            if value % self.metrics:
                raise ValueError(f"{name}: expected a multiple of metrics, {self.metrics} steps, got {value}")


def learn_cutter(
    images: str | Path | Iterable[NDArray[np.uint8]],
    settings: DiscoverySettings | None = None,
    *,
    out: str | Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    intervals: Intervals | None = None,
) -> Cutter:
    """Learn to cut out foregrounds; a run that was stopped resumes.

    On a CPU, with the same number of threads, the result is then that of a run that was not stopped, to the bit.

    Args:
        images: a folder of photographs, read at any depth, or arrays uint8 ``[H, W, 3]`` RGB. Each shows one object,
            about in the middle.
        settings: of networks and training; ``PRESETS`` has some.
        out: folder of the run: checkpoint, metrics, TensorBoard's log, pictures of the layers, ``cutter.pt``.
        seed: of everything random.
        device: of the training.
        progress: called after each step.
        intervals: when something is written.

    Returns:
        The cutter; its ``collapsed`` names the health checks that failed.

    Raises:
        FileNotFoundError: there is no folder ``images``.
        MissingPackageError: a package of ``terse-aug[learn]`` is not installed.
        ValueError: too few photographs, ``out`` holds another run or other files, or lies in ``images``.
    """
    settings, every = settings or DiscoverySettings(), intervals or Intervals()
    if isinstance(images, str | Path) and Path(out).resolve().is_relative_to(Path(images).resolve()):
        raise ValueError(f"{out} lies in {images}: pictures of the run would be learned from; give a folder outside it")
    with closing(RunFolder(out)) as folder:
        photographs = read_photographs(images, settings.size, progress)
        run = {**settings.plain(), "seed": seed, "images": _digest(photographs)}
        state = folder.load_checkpoint(run)
        training = DiscoveryTraining(photographs.images, settings, seed, device)
        if state is None:
            folder.save_checkpoint(run, training.state())  # from here on, the folder is known as that of a run
        else:
            training.load_state(state)
        _train(training, photographs, folder, run, every, progress)
        health = generator_health(training)
        source = {"settings": settings.plain(), "seed": seed, "images": run["images"], "health": health.plain()}
        cutter = Cutter(training.chosen, settings.size, health.collapsed, source)
        cutter.save(folder.path / CUTTER)
        folder.write_summary(_summary(training, photographs, health) | {"fingerprint": cutter.fingerprint})
    return cutter


def generator_health(training: DiscoveryTraining) -> Health:
    """Health of the averaged generator."""
    layers, category = training.sample(_HEALTH_SAMPLES, "health")
    logits = None
    if training.settings.gamma_mi:
        draw = generator_for(training.seed, "health", "noise")
        training.mask_classifier.eval()
        with torch.no_grad():
            logits = torch.cat([training.group_logits(own, draw) for own in torch.split(layers.generated_mask, CHUNK)])
        training.mask_classifier.train()
    return measure_health(layers, category // training.settings.group_size, logits)


def _train(
    training: DiscoveryTraining,
    photographs: Photographs,
    folder: RunFolder,
    run: Mapping[str, Any],
    every: Intervals,
    progress: Progress | None,
) -> None:
    total = training.settings.total_steps
    window: dict[str, list[float]] = defaultdict(list)
    while training.done < total:
        for name, value in training.step().items():
            window[name].append(value)
        done = training.done
        if done % every.metrics == 0 or done == total:
            means = {name: math.fsum(values) / len(values) for name, values in window.items()}
            _check_finite(means, done)
            window.clear()
            if done % every.layers == 0 or done == total:
                folder.add_layers(done, training.sample(SHOWN, "shown")[0])
                health = generator_health(training)
                means |= {f"health/{name}": value for name, value in health.plain().items()}
                folder.write_summary(_summary(training, photographs, health))
            folder.add_metrics(done, means)
        if done % every.checkpoint == 0 or done == total:
            folder.save_checkpoint(run, training.state())
        if progress is not None:
            progress("learning to cut out", done, total)


def _check_finite(means: Mapping[str, float], done: int) -> None:
    for name, value in means.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value} after {done} steps: training diverged; try a lower learning_rate")


def _summary(training: DiscoveryTraining, photographs: Photographs, health: Health) -> dict[str, Any]:
    return {
        "settings": training.settings.plain(),
        "seed": training.seed,
        "steps": training.done,
        "total_steps": training.settings.total_steps,
        "fingerprint": "",
        "photographs": len(photographs.images),
        "left_out": dict(photographs.left_out),
        "health": health.plain(),
        "collapsed": list(health.collapsed),
        "segmenter_iou_on_generated": training.chosen_iou,
    }


def _digest(photographs: Photographs) -> str:
    return hashlib.blake2b(photographs.images.numpy().tobytes(), digest_size=16).hexdigest()

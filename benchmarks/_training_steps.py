"""What the benchmarks of training steps share: arguments, policies, a bank, ratios over whole cycles, tables, JSON."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from benchmarks._drawn_images import DrawnImage, draw_image, make_foreground, write_bank
from benchmarks._timing import Summary, Times, interleaved, parser, show, surroundings, write_json
from terse_aug import ForegroundBank
from terse_aug.config import Adversarial, BestOfN, Critic, PolicySettings, Random

CYCLE = 4
"""Steps of a cycle: a policy with an update interval of 4 is updated once in it."""

POLICIES: dict[str, PolicySettings] = {
    "random": Random(),
    "best_of_n": BestOfN(),
    "critic_k1": Critic(update_interval=1),
    "critic_k4": Critic(update_interval=CYCLE),
    "adversarial_k1": Adversarial(update_interval=1),
    "adversarial_k4": Adversarial(update_interval=CYCLE),
}
"""Arms by name; ``k`` is the update interval."""

SOURCE_SIDE = 640
"""Side of the images that the foregrounds come from, pixels."""

OBJECTS, IMAGES = 3, 8
"""Objects on an image of the data set, and images in it."""

_FOREGROUNDS = 32
_PASSES = 8
"""Timed passes through a data loader."""

Load = tuple[Callable[[int], Any], Callable[[Any], Any]]
"""From a number to what is loaded, and what loads it."""


def step_parser(description: str | None, batch: int, cycles: int) -> argparse.ArgumentParser:
    """The parser of a benchmark of training steps."""
    made = parser(description)
    made.add_argument("--side", type=int, default=320, help="of the images, pixels; the shorter one in Detectron2")
    made.add_argument("--batch", type=int, default=batch, help="images per step")
    made.add_argument("--cycles", type=int, default=cycles, help=f"timed cycles of {CYCLE} steps")
    made.add_argument("--threads", type=int, default=0, help="torch's threads; 0: all cores")
    return made


def framework_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of a benchmark of a framework."""
    made = step_parser(description, batch=2, cycles=4)
    made.add_argument("--loading-only", action="store_true", help="no training steps")
    made.add_argument("--loaded", type=int, default=64, help="images of a pass through a data loader")
    made.add_argument("--workers", type=int, default=2, help="of the data loaders whose throughput is measured")
    return made


def write_photographs(folder: Path) -> list[tuple[Path, DrawnImage]]:
    """The images of the data set as files, and what is on them."""
    generator = np.random.default_rng(0)
    drawn = [draw_image(SOURCE_SIDE, OBJECTS, generator) for _ in range(IMAGES)]
    files = [folder / f"{number}.jpg" for number in range(IMAGES)]
    for file, own in zip(files, drawn, strict=True):
        cv2.imwrite(str(file), own.image[:, :, ::-1])
    return list(zip(files, drawn, strict=True))


def step_bank(folder: Path) -> ForegroundBank:
    """Foregrounds of many sizes, as a data set of photographs has them; most are reduced when pasted."""
    generator = np.random.default_rng(1)
    radii = SOURCE_SIDE * np.exp(generator.uniform(np.log(0.03), np.log(0.2), _FOREGROUNDS))
    return write_bank(folder / "step.bank", [make_foreground(radius, generator) for radius in radii], SOURCE_SIDE)


def report_steps(
    title: str, times: Mapping[str, Times], more: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, Any]:
    """Print times of steps beside those of the arm ``none``, and return them for JSON.

    Args:
        title: of the table.
        times: by arm.
        more: other columns by title, milliseconds by arm.
    """
    more = more or {}
    wall = {name: cycle_mean(arm.wall) for name, arm in times.items()}
    cpu = {name: cycle_mean(arm.cpu) for name, arm in times.items()}
    ratios, cpu_ratios = _ratios(wall), _ratios(cpu)
    spread = {name: Summary.of(arm.wall) for name, arm in times.items()}
    rows = [
        (
            name,
            f"{1e3 * value:.1f}",
            f"{spread[name].low:.1f} to {spread[name].high:.1f}",
            *(f"{column[name]:.1f}" for column in more.values()),
            f"{ratios.get(name, 1.0):.3f}",
            f"{cpu_ratios.get(name, 1.0):.3f}",
        )
        for name, value in wall.items()
    ]
    show(title, ("", "ms per step", "quartiles", *more, "ratio", "ratio, CPU"), rows)
    return {
        "ratios": ratios,
        "cpu_ratios": cpu_ratios,
        "seconds_per_step": {name: round(value, 6) for name, value in wall.items()},
        "spread_ms": {name: summary.spread() for name, summary in spread.items()},
    }


class _Loaded(Dataset[Any]):
    """A data set of what is loaded."""

    def __init__(self, load: Load, images: int) -> None:
        (self._prepare, self._load), self._images = load, images

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: int) -> Any:
        return self._load(self._prepare(index))


def _same(loader: DataLoader[Any], turn: int) -> DataLoader[Any]:
    return loader


def _pass(loader: DataLoader[Any]) -> None:
    for _ in loader:
        pass


def time_loading(loaders: Mapping[str, Load], options: argparse.Namespace) -> dict[str, Times]:
    """Time passes through data loaders with workers, which live from pass to pass, in turn; seconds of one image.

    Args:
        loaders: by name.
        options: of :func:`framework_parser`.
    """
    arms: dict[str, tuple[Callable[[int], Any], Callable[[Any], Any]]] = {}
    for name, load in loaders.items():
        data, workers = _Loaded(load, options.loaded), options.workers
        loader: DataLoader[Any] = DataLoader(
            data, options.batch, num_workers=workers, persistent_workers=workers > 0, collate_fn=list
        )
        arms[name] = partial(_same, loader), _pass
    times = interleaved(arms, _PASSES, 1)
    return {name: Times([value / options.loaded for value in arm.wall], arm.cpu) for name, arm in times.items()}


def report_framework(
    detector: str,
    steps: Mapping[str, Times],
    loading: Mapping[str, Times],
    throughput: Mapping[str, Times],
    inside: Mapping[str, float],
    options: argparse.Namespace,
    more: Mapping[str, Any],
) -> None:
    """Print and write what the benchmark of a framework has measured.

    Args:
        detector: for the title.
        steps: by arm.
        loading: times of loading an image, by what loads it.
        throughput: likewise, with workers.
        inside: milliseconds of a step by Terse's own clock, by arm.
        options: of the command line.
        more: for JSON.
    """
    title = f"{detector}, {options.side} px, batch {options.batch}, {options.cycles} cycles of {CYCLE} steps"
    content = report_steps(title, steps, {"in Terse": inside}) if steps else {}
    summaries = {name: Summary.of(arm.wall) for name, arm in loading.items()}
    rows = [(name, f"{own.median:.2f}", f"{own.low:.2f} to {own.high:.2f}") for name, own in summaries.items()]
    show("Loading an image in one process", ("", "ms", "quartiles"), rows)
    content["loading_ms"] = {name: {"median": round(own.median, 4)} | own.spread() for name, own in summaries.items()}
    summaries = {name: Summary.of(arm.wall) for name, arm in throughput.items()}
    rows = [
        (name, f"{1e3 / own.median:.1f}", f"{1e3 / own.high:.1f} to {1e3 / own.low:.1f}")
        for name, own in summaries.items()
    ]
    show(f"Loading with {options.workers} workers", ("", "images a second", "quartiles"), rows)
    content["images_per_second"] = {name: round(1e3 / own.median, 2) for name, own in summaries.items()}
    content["ms_in_terse"] = {name: round(value, 4) for name, value in inside.items()}
    content |= {**more, "side": options.side, "batch": options.batch}
    write_json(options.json, content | surroundings())


def cycle_mean(seconds: Sequence[float]) -> float:
    """Mean over the positions in a cycle of the median at each position; robust to outliers."""
    return float(np.median(np.reshape(seconds, (-1, CYCLE)), axis=0).mean())


def _ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value / seconds["none"], 4) for name, value in seconds.items() if name != "none"}

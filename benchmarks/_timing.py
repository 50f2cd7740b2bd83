"""What the benchmarks share: interleaved timing, the machine, tables and JSON. Imports torch, numpy, OpenCV, rich."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "opencv-python",
    "mmdet",
    "mmengine",
    "mmcv",
    "detectron2",
    "segpaste",
    "terse-aug",
)


@dataclass
class Times:
    """Seconds of each call of one arm.

    Attributes:
        wall: by the clock.
        processor: that the process, all its threads together, spent on a processor. On a machine of one's own it
            equals the clock's; on one that others use it leaves out the time they had.
    """

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """Times of one arm in milliseconds: the median, the quartiles and the fastest."""

    median: float
    low: float
    high: float
    fastest: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Summary:
        """Summarise times in seconds."""
        milliseconds = np.asarray(seconds) * 1e3
        low, median, high = np.percentile(milliseconds, (25, 50, 75)).tolist()
        return cls(median, low, high, float(milliseconds.min()), len(milliseconds))

    def spread(self) -> dict[str, float]:
        """The JSON of everything but the median."""
        return {
            "q25": round(self.low, 4),
            "q75": round(self.high, 4),
            "fastest": round(self.fastest, 4),
            "repeats": self.repeats,
        }


def run_in_one_thread() -> None:
    """Start this very command again where the environment would let a library use more threads than one.

    The variables are read when the libraries load, so that setting them here would be too late.
    """
    if all(os.environ.get(name) == "1" for name in _THREAD_VARIABLES):
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        return
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def interleaved(
    arms: Mapping[str, tuple[Callable[[int], Any], Callable[[Any], Any]]], rounds: int, warmup: int
) -> dict[str, Times]:
    """Time several ways of doing the same job, one call of each per round.

    Whatever else runs on the machine meanwhile then slows all of them alike. The order is drawn anew each round, since
    what a call leaves behind in caches and in the allocator is the next one's cost.

    Args:
        arms: by name: what makes the input of a round (not timed), and what is timed.
        rounds: timed calls of each arm.
        warmup: calls of each before that, not timed.

    Returns:
        The times of each, by name.
    """
    times = {name: Times() for name in arms}
    generator = np.random.default_rng(0)
    for turn in range(warmup + rounds):
        for name in generator.permutation(list(arms)).tolist():
            prepare, work = arms[name]
            prepared = prepare(turn)
            wall, processor = time.perf_counter(), time.process_time()
            result = work(prepared)
            processor, wall = time.process_time() - processor, time.perf_counter() - wall
            del result, prepared
            if turn >= warmup:
                times[name].wall.append(wall)
                times[name].processor.append(processor)
    return times


def resident_megabytes() -> float:
    """Memory that this process holds now, in MB (where the system does not tell, its peak)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1e6 if sys.platform == "darwin" else 1e3)
    return pages * resource.getpagesize() / 1e6


def surroundings() -> dict[str, Any]:
    """The machine, its load and the versions of what is measured."""
    return {
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "load_average": [round(value, 2) for value in os.getloadavg()],
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def write_json(path: str | None, content: Mapping[str, Any]) -> None:
    """Write the figures to ``path``, if there is one."""
    if path is not None:
        Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

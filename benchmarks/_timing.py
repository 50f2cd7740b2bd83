"""What the benchmarks share: arguments, interleaved timing, memory, the machine, tables and JSON."""

from __future__ import annotations

import argparse
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
_OTHERS = ("mmdet", "mmengine", "mmcv", "detectron2", "segpaste", "terse-aug")
_PACKAGES = ("torch", "torchvision", "numpy", "opencv-python", *_OTHERS)


@dataclass
class Times:
    """Seconds of each call of one arm: by the clock, and CPU time of this process and of its ended children."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


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
        """All but the median, for JSON."""
        own = {"q25": self.low, "q75": self.high, "fastest": self.fastest}
        return {name: round(value, 4) for name, value in own.items()} | {"repeats": self.repeats}


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with defaults, below the module's docstring as it is."""


def parser(description: str | None, json_required: bool = False) -> argparse.ArgumentParser:
    """The parser of a benchmark, with ``--json``."""
    made = argparse.ArgumentParser(description=description, formatter_class=_Formatter)
    made.add_argument("--json", metavar="F", required=json_required, help="write the results there")
    return made


def coco_pair(text: str) -> tuple[Path, Path]:
    """The value of an option ``JSON=DIR``: annotations and the folder of their images."""
    annotations, separator, images = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected JSON=DIR, got {text}")
    return Path(annotations), Path(images)


def run_in_one_thread() -> None:
    """Restart this command with one thread for every library, unless the environment has that already.

    The variables are read when the libraries load, so that setting them here would be too late.
    """
    if all(os.environ.get(name) == "1" for name in _THREAD_VARIABLES):
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        return
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def interleaved(
    arms: Mapping[str, tuple[Callable[[int], Any], Callable[[Any], Any]]],
    rounds: int,
    warmup: int = 0,
    announce: bool = False,
    stop: Callable[[int], bool] = lambda turn: False,
) -> dict[str, Times]:
    """Time several implementations of the same job, one call of each per round.

    Other processes on the machine then slow all of them alike. The order is random in each round, as a call affects the
    caches and the allocator that the next one finds.

    Args:
        arms: by name: a function that prepares the input of a round (not timed), and the one that is timed.
        rounds: timed calls of each arm.
        warmup: calls of each before that, not timed.
        announce: print each time.
        stop: called before each round with its number, from 0 on in the warm-up; true if it is not to be run.
    """
    times = {name: Times() for name in arms}
    generator = np.random.default_rng(0)
    for turn in range(warmup + rounds):
        if stop(turn):
            break
        for name in generator.permutation(list(arms)).tolist():
            prepare, work = arms[name]
            prepared = prepare(turn)
            wall, cpu = time.perf_counter(), _cpu_seconds()
            result = work(prepared)
            cpu, wall = _cpu_seconds() - cpu, time.perf_counter() - wall
            del result, prepared
            if turn >= warmup:
                times[name].wall.append(wall)
                times[name].cpu.append(cpu)
            if announce:
                print(f"round {turn + 1}: {name} {wall:.1f} s, CPU {cpu:.1f} s", flush=True)
    return times


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def own_megabytes() -> float:
    """Memory of this process without the pages of mapped files, which the system shares, MB.

    Where the system does not report it, the peak of the whole.
    """
    try:
        _, resident, shared = map(int, Path("/proc/self/statm").read_text().split()[:3])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1e6 if sys.platform == "darwin" else 1e3)
    return (resident - shared) * resource.getpagesize() / 1e6


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
    """Write the results to ``path``, if there is one."""
    if path is not None:
        Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def show(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=width).print(table)


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

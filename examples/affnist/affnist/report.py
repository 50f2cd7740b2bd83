"""Table and figures of the runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

_KEPT = "neighbour distance of the kept"


def by_arm(runs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Runs by arm, in the order in which arms first came."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        arms.setdefault(run["arm"], []).append(run)
    return arms


def print_table(runs: Sequence[dict[str, Any]]) -> None:
    """Mean and range of the accuracy at every reading, and what the composites were like."""
    readings = [reading["wanted"] for reading in runs[0]["readings"]]
    table = Table(
        "arm", "seeds", *map(str, readings), "hard per forward", "missed", "diversity", "neighbour", "seconds"
    )
    for arm, own in by_arm(runs).items():
        cells = [_spread([run["readings"][row]["accuracy"] for run in own]) for row in range(len(readings))]
        table.add_row(
            arm,
            str(len(own)),
            *cells,
            _spread([hunt_yield(run) for run in own if run.get("filtered")], 3),
            _spread([100 * run["missed share"] for run in own if "missed share" in run]),
            _spread([run["metrics"]["diversity"] for run in own if "metrics" in run], 2),
            _spread([run[_KEPT] for run in own if _KEPT in run], 3),
            _spread([run["processor seconds"] for run in own], 0),
        )
    Console(width=220).print(table)


def hunt_yield(run: dict[str, Any], past: float = 85.0) -> float:
    """Hard examples per image passed through the classifier, in the hunts that met one better than ``past`` per cent.

    What a hunt meets are the last weights. NaN if they were never that good before a hunt.
    """
    before = [0.0, *(reading["of the last weights"] for reading in run["readings"])]
    late = [hunt for hunt, accuracy in zip(run["hunts"], before, strict=False) if accuracy > past]
    forwards = sum(hunt["model_forwards"] for hunt in late)
    return sum(sum(hunt["found"].values()) for hunt in late) / forwards if forwards else math.nan


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy against the number of synthetic images, and the histogram of hardness, as PNG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    for arm, own in by_arm(runs).items():
        images = [reading["wanted"] for reading in own[0]["readings"]]
        values = [[run["readings"][row]["accuracy"] for run in own] for row in range(len(images))]
        (line,) = left.plot(images, [statistics.fmean(each) for each in values], marker="o", label=arm)
        left.fill_between(images, list(map(min, values)), list(map(max, values)), alpha=0.15, color=line.get_color())
        histograms = [run["hardness histogram"] for run in own if "hardness histogram" in run]
        if histograms:
            mean = [statistics.fmean(column) for column in zip(*histograms, strict=True)]
            right.stairs(mean, [edge / len(mean) for edge in range(len(mean) + 1)], label=arm, color=line.get_color())
    left.set(xlabel="synthetic images (in lock-step: wanted)", ylabel="accuracy on AffNIST test digits, %")
    right.set(xlabel="hardness, 1 - p of the true class", ylabel="share of composites", yscale="log")
    left.legend()
    if right.has_data():
        right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _spread(values: Sequence[float], digits: int = 1) -> str:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    return f"{statistics.fmean(known):.{digits}f} ({min(known):.{digits}f}..{max(known):.{digits}f})"

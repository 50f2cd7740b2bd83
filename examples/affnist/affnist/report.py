"""Table and chart of the runs."""

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

_MINED = "neighbour distance of mined images"


def by_arm(runs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Runs by arm, in the order in which arms first came."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        arms.setdefault(run["arm"], []).append(run)
    return arms


def print_table(runs: Sequence[dict[str, Any]]) -> None:
    """Mean and range of the accuracy at every evaluation, and hardness and diversity of the composites."""
    evaluations = [evaluation["images wanted"] for evaluation in runs[0]["evaluations"]]
    table = Table(
        "arm", "seeds", *map(str, evaluations), "hard per forward", "missed", "diversity", "neighbour", "CPU seconds"
    )
    for arm, own in by_arm(runs).items():
        accuracies = zip(*([one["accuracy"] for one in run["evaluations"]] for run in own), strict=True)
        cells = [_mean_and_range(values) for values in accuracies]
        table.add_row(
            arm,
            str(len(own)),
            *cells,
            _mean_and_range([mining_yield(run) for run in own if run.get("filtered")], 3),
            _mean_and_range([100 * run["missed fraction"] for run in own if "missed fraction" in run]),
            _mean_and_range([run["metrics"]["diversity"] for run in own if "metrics" in run], 2),
            _mean_and_range([run[_MINED] for run in own if _MINED in run], 3),
            _mean_and_range([run["CPU seconds"] for run in own], 0),
        )
    Console(width=220).print(table)


def mining_yield(run: dict[str, Any], past: float = 85.0) -> float:
    """Hard examples per image passed through the classifier, in mining phases with an accuracy above ``past`` per cent.

    The accuracy is that accuracy of last weights before the phase. NaN if there is no such phase.
    """
    before = [0.0, *(evaluation["accuracy of last weights"] for evaluation in run["evaluations"])]
    late = [report for report, accuracy in zip(run["mining"], before, strict=False) if accuracy > past]
    forwards = sum(report["model_forwards"] for report in late)
    return sum(sum(report["found"].values()) for report in late) / forwards if forwards else math.nan


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy against the number of synthetic images, and the histogram of hardness, as PNG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    for arm, own in by_arm(runs).items():
        images = [evaluation["images wanted"] for evaluation in own[0]["evaluations"]]
        values = [[run["evaluations"][row]["accuracy"] for run in own] for row in range(len(images))]
        (line,) = left.plot(images, [statistics.fmean(each) for each in values], marker="o", label=arm)
        left.fill_between(images, list(map(min, values)), list(map(max, values)), alpha=0.15, color=line.get_color())
        histograms = [run["hardness histogram"] for run in own if "hardness histogram" in run]
        if histograms:
            mean = [statistics.fmean(column) for column in zip(*histograms, strict=True)]
            right.stairs(mean, [edge / len(mean) for edge in range(len(mean) + 1)], label=arm, color=line.get_color())
    left.set(xlabel="synthetic images (in lock-step: wanted)", ylabel="accuracy on AffNIST test digits, %")
    right.set(xlabel="hardness, 1 - p of the true class", ylabel="fraction of composites", yscale="log")
    left.legend()
    if right.has_data():
        right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _mean_and_range(values: Sequence[float], digits: int = 1) -> str:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    return f"{statistics.fmean(known):.{digits}f} ({min(known):.{digits}f}..{max(known):.{digits}f})"

"""What the benchmarks of training steps share: a bank, ratios over whole cycles, tables and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._scenes import make_cutout, write_bank
from benchmarks._timing import Summary, Times, show
from terse_aug import ForegroundBank

CYCLE = 4
"""Steps in which an arm with k = 4 moves once; the mean over whole cycles counts."""

SOURCE_SIDE = 640
"""Pixels of a side of the photographs that the cut-outs come from."""

_CUTOUTS = 32


def step_bank(folder: Path) -> ForegroundBank:
    """Cut-outs as a data set of photographs gives them: of all sizes, most of them larger than they will be shown."""
    generator = np.random.default_rng(1)
    radii = SOURCE_SIDE * np.exp(generator.uniform(np.log(0.03), np.log(0.2), _CUTOUTS))
    return write_bank(folder / "step.bank", [make_cutout(radius, generator) for radius in radii], SOURCE_SIDE)


def report_steps(
    title: str, times: Mapping[str, Times], more: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, Any]:
    """Print times of steps beside those of the arm ``none``, and give them as JSON.

    Args:
        title: of the table.
        times: by arm.
        more: other columns by title, milliseconds by arm.
    """
    more = more or {}
    wall = {name: _cycle_mean(arm.wall) for name, arm in times.items()}
    processor = {name: _cycle_mean(arm.processor) for name, arm in times.items()}
    ratios, by_processor = _ratios(wall), _ratios(processor)
    spread = {name: Summary.of(arm.wall) for name, arm in times.items()}
    rows = [
        (
            name,
            f"{1e3 * value:.1f}",
            f"{spread[name].low:.1f} to {spread[name].high:.1f}",
            *(f"{column[name]:.1f}" for column in more.values()),
            f"{ratios.get(name, 1.0):.3f}",
            f"{by_processor.get(name, 1.0):.3f}",
        )
        for name, value in wall.items()
    ]
    show(title, ("", "ms per step", "quartiles", *more, "ratio", "ratio, processor"), rows)
    return {
        "ratios": ratios,
        "processor_ratios": by_processor,
        "seconds_per_step": {name: round(value, 6) for name, value in wall.items()},
        "spread_ms": {name: summary.spread() for name, summary in spread.items()},
    }


def report_loading(title: str, times: Mapping[str, Times]) -> dict[str, Any]:
    """Print times of loading, and give them as JSON: milliseconds."""
    loading = {name: Summary.of(arm.wall) for name, arm in times.items()}
    show(
        title,
        ("", "ms", "quartiles"),
        [(name, f"{own.median:.2f}", f"{own.low:.2f} to {own.high:.2f}") for name, own in loading.items()],
    )
    return {"loading_ms": {name: {"median": round(own.median, 4)} | own.spread() for name, own in loading.items()}}


def _cycle_mean(seconds: Sequence[float]) -> float:
    """Mean over the places of a cycle of the median at each place: a mean that outliers do not move."""
    return float(np.median(np.reshape(seconds, (-1, CYCLE)), axis=0).mean())


def _ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value / seconds["none"], 4) for name, value in seconds.items() if name != "none"}

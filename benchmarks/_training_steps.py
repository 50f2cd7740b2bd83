"""What the benchmarks of training steps share: policies, a bank, ratios over whole cycles, tables and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._drawn_images import make_foreground, write_bank
from benchmarks._timing import Summary, Times, show
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

_FOREGROUNDS = 32


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
    wall = {name: _cycle_mean(arm.wall) for name, arm in times.items()}
    cpu = {name: _cycle_mean(arm.cpu) for name, arm in times.items()}
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


def report_loading(title: str, times: Mapping[str, Times]) -> dict[str, Any]:
    """Print times of loading, and return them for JSON, in milliseconds."""
    loading = {name: Summary.of(arm.wall) for name, arm in times.items()}
    show(
        title,
        ("", "ms", "quartiles"),
        [(name, f"{own.median:.2f}", f"{own.low:.2f} to {own.high:.2f}") for name, own in loading.items()],
    )
    return {"loading_ms": {name: {"median": round(own.median, 4)} | own.spread() for name, own in loading.items()}}


def _cycle_mean(seconds: Sequence[float]) -> float:
    """Mean over the positions in a cycle of the median at each position; robust to outliers."""
    return float(np.median(np.reshape(seconds, (-1, CYCLE)), axis=0).mean())


def _ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value / seconds["none"], 4) for name, value in seconds.items() if name != "none"}

"""The measures of foregrounds that pages show as histograms, and the scales of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from terse_aug.bank.analysis.statistics import BankStatistics
from terse_aug.bank.analysis.templates import percent

_MAX_BINS = 24
_BINS_PER_OCTAVE = 2


class Chart(NamedTuple):
    """A chart with its title and caption."""

    title: str
    svg: Markup
    caption: str


class Scale(NamedTuple):
    """Edges of the bins of a histogram, and the numbers below it."""

    edges: Sequence[float]
    ticks: Sequence[float]


class Measure(NamedTuple):
    """A measure of every foreground.

    Attributes:
        title: its name.
        values: float ``[n]`` of a bank.
        scale: the scale that shows the values of one bank or more, of each nearly all.
        note: what is said in front of the median.
    """

    title: str
    values: Callable[[BankStatistics], NDArray[Any]]
    scale: Callable[..., Scale]
    note: Callable[[NDArray[Any]], str] = lambda _: ""


def spread(values: NDArray[Any]) -> str:
    """Median and the middle 90 % as text."""
    low, median, high = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
    return f"median {median:.3g}, 90 % from {low:.3g} to {high:.3g}"


def _octaves(*banks: NDArray[Any]) -> Scale:
    low = np.floor(np.log2(min(values.min() for values in banks)))
    high = np.floor(np.log2(max(values.max() for values in banks))) + 1
    edges = 2.0 ** (np.arange(low * _BINS_PER_OCTAVE, high * _BINS_PER_OCTAVE + 1) / _BINS_PER_OCTAVE)
    return Scale(edges.tolist(), (2.0 ** np.arange(low, high + 1, np.ceil((high - low) / 8))).tolist())


def _unit_interval(*_: NDArray[Any]) -> Scale:
    return _linear(np.arange(0, 1.01, 0.05))


def _round(step: float, *banks: NDArray[Any]) -> Scale:
    """Bins of a round width up to the largest 99th percentile of a bank; larger values go to the last bin."""
    low = min(float(values.min()) for values in banks)
    high = max(float(np.quantile(values, 0.99)) for values in banks)
    width = step
    factors = [2, 2.5, 2] if step == 1 else [2, 2, 2.5]
    while (high - low) / width > _MAX_BINS:
        width *= factors[0]
        factors = factors[1:] + factors[:1]
    start = np.floor(low / width) * width
    return _linear(start + width * np.arange(max(int(np.ceil((high - start) / width)), 1) + 1))


def _linear(edges: NDArray[np.float64]) -> Scale:
    return Scale(edges.tolist(), edges[:: max(len(edges) // 5, 1)].round(6).tolist())


MEASURES = (
    Measure("Larger side, px", lambda bank: bank.sizes.max(1).astype(np.float64), _octaves),
    Measure(
        "Relative size",
        lambda bank: bank.relative_sizes,
        _unit_interval,
        lambda _: "larger side over the square root of the image's area; ",
    ),
    Measure(
        "Width over height",
        lambda bank: bank.sizes[:, 1] / bank.sizes[:, 0].astype(np.float64),
        _octaves,
        lambda ratios: f"{percent((ratios < 1).mean())} taller than wide; ",
    ),
    Measure("Fraction of the box that is object", lambda bank: bank.fill, _unit_interval),
    Measure("Corners of the outline", lambda bank: bank.corners, lambda *corners: _round(1.0, *corners)),
    Measure(
        "Length of the outline",
        lambda bank: bank.length,
        lambda *lengths: _round(0.25, *lengths),
        lambda _: "in sides of the box; ",
    ),
)

"""Two banks side by side, such as a generated one beside one of real photographs, as one HTML page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from terse_aug.bank.analysis.charts import compared_histogram, density
from terse_aug.bank.analysis.distributions import MEASURES, Chart, spread
from terse_aug.bank.analysis.statistics import MIN_FOR_MEAN_SHAPES, BankStatistics, ClassStatistics
from terse_aug.bank.analysis.templates import by_count, percent, render, thousands


@dataclass(frozen=True)
class FeatureDistance:
    """Fréchet distance of two banks in the features of a network of the user's.

    Attributes:
        value: 0 for equal means and covariances of the features.
        network: its name, for a person.
        features: their number.
        images: foregrounds of each bank.
        side: of their images in px.
    """

    value: float
    network: str
    features: int
    images: tuple[int, int]
    side: int


class _Row(NamedTuple):
    """A measure of both banks, and how far their distributions are apart where it is one of every foreground."""

    title: str
    values: tuple[str, str]
    gap: float | None = None


class _Side(NamedTuple):
    """What the page shows of one bank beside charts and classes."""

    name: str
    statistics: BankStatistics
    mask_sources: list[tuple[str, int]] | None
    rejected: list[tuple[str, int]] | None


def render_comparison(first: BankStatistics, second: BankStatistics, distance: FeatureDistance | None = None) -> str:
    """An HTML page of two banks that needs no other file and runs no script.

    Classes are matched by their names. Names and texts from the data are escaped.

    Args:
        first: such as those of foregrounds cut out of real photographs.
        second: such as those of generated ones.
        distance: of their features; shown with the name of its network.
    """
    sides: list[dict[str, list[ClassStatistics]]] = [{}, {}]
    for side, bank in zip(sides, (first, second), strict=True):
        for one in bank.classes:  # two may have one name
            side.setdefault(one.name, []).append(one)
    names = sorted({**sides[0], **sides[1]}, key=lambda name: not all(name in side for side in sides))
    return render(
        "comparison.html.jinja",
        sides=_sides(first, second),
        distance=distance,
        rows=_rows(first, second),
        charts=[_compared(first, second, *measure) for measure in MEASURES],
        center_charts=[_center_chart(bank) for bank in (first, second)],
        classes=[
            (name, [(index, one) for index, side in enumerate(sides) for one in side.get(name, ())]) for name in names
        ],
        in_both=len(sides[0].keys() & sides[1].keys()),
        min_for_mean_shapes=MIN_FOR_MEAN_SHAPES,
    )


def largest_gap(first: ArrayLike, second: ArrayLike) -> float:
    """Largest difference of the cumulative distributions of two samples ``[n]`` and ``[m]``, in [0, 1].

    The statistic of Kolmogorov and Smirnov: 0 for equal distributions, 1 for such that do not overlap.
    """
    samples = np.sort(np.ravel(first)), np.sort(np.ravel(second))
    every = np.concatenate(samples)
    fractions = [np.searchsorted(sample, every, "right") / len(sample) for sample in samples]
    return float(np.abs(fractions[0] - fractions[1]).max())


def _sides(*banks: BankStatistics) -> list[_Side]:
    paths = [Path(bank.info["path"]) for bank in banks]
    short = [path.name for path in paths]
    names = short if len(set(short)) == len(short) else list(map(str, paths))
    built = [bank.info["built"] for bank in banks]
    return [
        _Side(name, bank, by_count(own.get("mask_sources")), by_count(own.get("rejected")))
        for name, bank, own in zip(names, banks, built, strict=True)
    ]


def _rows(first: BankStatistics, second: BankStatistics) -> list[_Row]:
    def counted(title: str, value: Callable[[BankStatistics], str]) -> _Row:
        return _Row(title, (value(first), value(second)))

    rows = [
        counted("Foregrounds", lambda bank: thousands(len(bank.sizes))),
        counted("Classes", lambda bank: thousands(len(bank.classes))),
        *(_measured(title, values(first), values(second)) for title, values, *_ in MEASURES),
    ]
    for axis, title in enumerate(("Center, across the image", "Center, down the image")):
        rows.append(_measured(title, first.centers[:, axis], second.centers[:, axis]))
    shared = {one.name for one in first.classes if one.diversity}
    shared &= {one.name for one in second.classes if one.diversity}
    if shared:
        in_both = "Diversity of outlines, mean of the classes in both"
        rows.append(counted(in_both, lambda bank: f"{_mean_diversity(bank, shared):.3f}"))
    return [
        *rows,
        counted("In several parts", lambda bank: percent(_fraction(bank, lambda one: one.several_parts))),
        counted("With holes", lambda bank: percent(_fraction(bank, lambda one: one.with_holes))),
        counted("Exact copies", lambda bank: thousands(bank.copies)),
        counted("Near duplicates", lambda bank: thousands(sum(map(len, bank.near_duplicates.groups)))),
    ]


def _measured(title: str, first: NDArray[Any], second: NDArray[Any]) -> _Row:
    texts = tuple(spread(values).removeprefix("median ") if len(values) else "unknown" for values in (first, second))
    return _Row(title, (texts[0], texts[1]), largest_gap(first, second) if len(first) and len(second) else None)


def _mean_diversity(bank: BankStatistics, names: set[str]) -> float:
    return float(np.mean([one.diversity.mean for one in bank.classes if one.diversity and one.name in names]))


def _fraction(bank: BankStatistics, of_class: Callable[[ClassStatistics], float]) -> float:
    return sum(one.count * of_class(one) for one in bank.classes) / sum(one.count for one in bank.classes)


def _compared(first: BankStatistics, second: BankStatistics, title: str, values: Any, scale: Any, note: Any) -> Chart:
    own, other = values(first), values(second)
    edges, ticks = scale(own, other)
    beyond = "; the last bar counts all above" if max(own.max(), other.max()) > edges[-1] else ""
    svg = compared_histogram(own, other, edges, ticks, f"{title} of both banks")
    return Chart(title, svg, f"per cent of each bank{beyond}")


def _center_chart(bank: BankStatistics) -> Chart | None:
    if not len(bank.centers):
        return None
    x, y = np.median(bank.centers, axis=0).tolist()
    known = f"{thousands(len(bank.centers))} of {thousands(len(bank.sizes))}"
    svg: Markup = density(bank.centers, "number of centers by position in the image")
    return Chart("", svg, f"{known}; median {x:.2f} of the width, {y:.2f} of the height")

"""The report of a bank: its statistics as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from terse_aug.bank.analysis.charts import density, histogram, scatter
from terse_aug.bank.analysis.distributions import MEASURES, Chart, spread
from terse_aug.bank.analysis.near_duplicates import MAX_HASH_DISTANCE
from terse_aug.bank.analysis.statistics import MIN_FOR_MEAN_SHAPES, BankStatistics
from terse_aug.bank.analysis.templates import by_count, render, thousands

_MAX_DOTS = 1500
_SHOWN_BY_COUNT = ("rejected", "repaired", "mask_sources")


def render_report(statistics: BankStatistics) -> str:
    """An HTML page that needs no other file and runs no script.

    Names and texts from the data are escaped. The same statistics give the same text.
    """
    built = statistics.info["built"]
    return render(
        "page.html.jinja",
        statistics=statistics,
        info=statistics.info,
        built={name: _plain(_short(value)) for name, value in built.items() if name not in _SHOWN_BY_COUNT},
        rejected=by_count(built.get("rejected")),
        repaired=by_count(built.get("repaired")),
        mask_sources=by_count(built.get("mask_sources")),
        charts=_charts(statistics),
        center_charts=_center_charts(statistics),
        largest_count=max(one.count for one in statistics.classes),
        largest_diversity=max((one.diversity.mean for one in statistics.classes if one.diversity), default=0.0) or 1.0,
        min_for_mean_shapes=MIN_FOR_MEAN_SHAPES,
        complete_distance=statistics.near_duplicates.complete_distance,
        is_complete=statistics.near_duplicates.complete_distance == MAX_HASH_DISTANCE,
        in_groups=sum(len(group) for group in statistics.near_duplicates.groups),
    )


def _charts(statistics: BankStatistics) -> list[Chart]:
    charts = []
    for title, values_of, scale_of, note in MEASURES:
        values = values_of(statistics)
        scale = scale_of(values)
        beyond = "; the last bar counts all above" if values.max() > scale.edges[-1] else ""
        charts.append(Chart(title, histogram(values, *scale, title), note(values) + spread(values) + beyond))
    return charts


def _center_charts(statistics: BankStatistics) -> list[Chart]:
    centers = statistics.centers
    if not len(centers):
        return []
    drawn = centers
    if len(centers) > _MAX_DOTS:
        generator = np.random.default_rng([statistics.seed, len(centers)])
        drawn = centers[generator.choice(len(centers), _MAX_DOTS, replace=False)]
    number = "each" if len(drawn) == len(centers) else f"{thousands(len(drawn))} drawn of {thousands(len(centers))}"
    x, y = np.median(centers, axis=0).tolist()
    where = f"all {thousands(len(centers))}; median {x:.2f} of the width, {y:.2f} of the height"
    return [
        Chart(
            "Centers of the objects", scatter(drawn, "centers of the objects in their images"), f"one dot for {number}"
        ),
        Chart("Density of the centers", density(centers, "number of centers by position in the image"), where),
    ]


def _short(value: Any) -> Any:
    """Without the records of banks that a bank was merged from."""
    if not isinstance(value, list):
        return value
    return [{k: v for k, v in own.items() if k != "built"} if isinstance(own, Mapping) else own for own in value]


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(own)}" for name, own in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ("; " if any(isinstance(own, Mapping) for own in value) else ", ").join(map(_plain, value))
    return str(value)

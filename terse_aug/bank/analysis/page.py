"""The report of a bank: its statistics as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from terse_aug.bank.analysis.charts import density, histogram, scatter
from terse_aug.bank.analysis.near_duplicates import MAX_HASH_DISTANCE
from terse_aug.bank.analysis.statistics import MIN_FOR_MEAN_SHAPES, BankStatistics

_MAX_DOTS = 1500
_MAX_BINS = 24
_BINS_PER_OCTAVE = 2
_SHOWN_BY_COUNT = ("rejected", "repaired", "mask_sources")


@dataclass(frozen=True)
class _Chart:
    """A chart with its title and caption."""

    title: str
    svg: Markup
    caption: str


def render_report(statistics: BankStatistics) -> str:
    """An HTML page that needs no other file and runs no script.

    Names and texts from the data are escaped. The same statistics give the same text.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(webp=_webp, mask=_mask, percent=_percent, thousands=_thousands)
    template = environment.from_string(
        resources.files("terse_aug.bank.analysis").joinpath("page.html.jinja").read_text(encoding="utf-8")
    )
    built = statistics.info["built"]
    page = template.render(
        statistics=statistics,
        info=statistics.info,
        built={name: _plain(value) for name, value in built.items() if name not in _SHOWN_BY_COUNT},
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
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _charts(statistics: BankStatistics) -> list[_Chart]:
    height, width = statistics.sizes.T.astype(np.float64)
    larger = np.maximum(height, width)
    upright = (width < height).mean()
    by_area = "larger side over the square root of the image's area; "
    return [
        _log_chart("Larger side, px", larger),
        _chart("Relative size", statistics.relative_sizes, np.arange(0, 1.01, 0.05), by_area),
        _log_chart("Width over height", width / height, f"{_percent(upright)} taller than wide; "),
        _chart("Fraction of the box that is object", statistics.fill, np.arange(0, 1.01, 0.05)),
        _chart("Corners of the outline", statistics.corners, _edges(statistics.corners, 1.0)),
        _chart("Length of the outline", statistics.length, _edges(statistics.length, 0.25), "in sides of the box; "),
    ]


def _chart(title: str, values: NDArray[Any], edges: NDArray[np.float64], note: str = "") -> _Chart:
    ticks = edges[:: max(len(edges) // 5, 1)].round(6).tolist()
    beyond = "; the last bar counts all above" if values.max() > edges[-1] else ""
    return _Chart(title, histogram(values, edges.tolist(), ticks, title), note + _spread(values) + beyond)


def _log_chart(title: str, values: NDArray[np.float64], note: str = "") -> _Chart:
    low, high = np.floor(np.log2(values.min())), np.floor(np.log2(values.max())) + 1
    edges = 2.0 ** (np.arange(low * _BINS_PER_OCTAVE, high * _BINS_PER_OCTAVE + 1) / _BINS_PER_OCTAVE)
    ticks = (2.0 ** np.arange(low, high + 1, np.ceil((high - low) / 8))).tolist()
    return _Chart(title, histogram(values, edges.tolist(), ticks, title), note + _spread(values))


def _edges(values: NDArray[Any], step: float) -> NDArray[np.float64]:
    """Bins of a round width up to the 99th percentile; larger values go to the last bin."""
    low, high = float(values.min()), float(np.quantile(values, 0.99))
    width = step
    factors = [2, 2.5, 2] if step == 1 else [2, 2, 2.5]
    while (high - low) / width > _MAX_BINS:
        width *= factors[0]
        factors = factors[1:] + factors[:1]
    start = np.floor(low / width) * width
    return np.asarray(start + width * np.arange(max(int(np.ceil((high - start) / width)), 1) + 1))


def _spread(values: NDArray[Any]) -> str:
    low, median, high = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
    return f"median {median:.3g}, 90 % from {low:.3g} to {high:.3g}"


def _center_charts(statistics: BankStatistics) -> list[_Chart]:
    centers = statistics.centers
    if not len(centers):
        return []
    drawn = centers
    if len(centers) > _MAX_DOTS:
        generator = np.random.default_rng([statistics.seed, len(centers)])
        drawn = centers[generator.choice(len(centers), _MAX_DOTS, replace=False)]
    number = "each" if len(drawn) == len(centers) else f"{_thousands(len(drawn))} drawn of {_thousands(len(centers))}"
    x, y = np.median(centers, axis=0).tolist()
    where = f"all {_thousands(len(centers))}; median {x:.2f} of the width, {y:.2f} of the height"
    return [
        _Chart(
            "Centers of the objects", scatter(drawn, "centers of the objects in their images"), f"one dot for {number}"
        ),
        _Chart("Density of the centers", density(centers, "number of centers by position in the image"), where),
    ]


def by_count(counts: Any) -> list[tuple[str, int]] | None:
    """Counts by name, the largest first.

    ``None`` for anything else: a bank may have been written by another program.
    """
    if not isinstance(counts, Mapping) or not all(isinstance(count, int) for count in counts.values()):
        return None
    return sorted(((str(name), count) for name, count in counts.items()), key=lambda item: -item[1])


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return str(value)


def _webp(file: bytes) -> Markup:
    return Markup("data:image/webp;base64," + base64.b64encode(file).decode("ascii"))


def _mask(mean: NDArray[np.float32]) -> Markup:
    """A mean mask as an image, the object white on black."""
    file = io.BytesIO()
    Image.fromarray(np.rint(mean * 255).astype(np.uint8)).save(file, "PNG", optimize=True)
    return Markup("data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii"))


def _percent(fraction: float) -> str:
    if 0 < fraction < 0.01:
        return "below 1 %"
    if 0.99 < fraction < 1:
        return "above 99 %"
    return f"{100 * fraction:.0f} %"


def _thousands(number: int) -> str:
    return f"{number:,}"

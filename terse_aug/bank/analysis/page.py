"""A survey as one self-contained HTML page. Imports jinja2, numpy, pillow and the charts."""

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
from terse_aug.bank.analysis.measures import CERTAIN_DISTANCE
from terse_aug.bank.analysis.statistics import MEAN_SHAPES_FROM, BankStatistics

_DOTS = 1500
_MOST_BINS = 24
_PER_OCTAVE = 2
_TOLD_APART = ("rejected", "repaired", "mask_sources")


@dataclass(frozen=True)
class _Chart:
    """A chart with what is written below it."""

    title: str
    svg: Markup
    caption: str


def render_report(survey: BankStatistics) -> str:
    """The survey as a page that needs no other file and runs no script.

    Names and texts from the data are escaped. The same survey gives the same text.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(webp=_webp, mask=_mask, percent=_percent, thousands=_thousands)
    template = environment.from_string(
        resources.files("terse_aug.bank.analysis").joinpath("page.html.jinja").read_text(encoding="utf-8")
    )
    built = survey.info["built"]
    page = template.render(
        survey=survey,
        info=survey.info,
        built={name: _plain(value) for name, value in built.items() if name not in _TOLD_APART},
        rejected=by_count(built.get("rejected")),
        repaired=by_count(built.get("repaired")),
        mask_sources=by_count(built.get("mask_sources")),
        charts=_charts(survey),
        places=_places(survey),
        many=max(one.count for one in survey.classes),
        most_diverse=max((one.diversity.mean for one in survey.classes if one.diversity), default=0.0) or 1.0,
        shapes_from=MEAN_SHAPES_FROM,
        certain=survey.alike.certain,
        whole=survey.alike.certain == CERTAIN_DISTANCE,
        in_groups=sum(len(group) for group in survey.alike.groups),
    )
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _charts(survey: BankStatistics) -> list[_Chart]:
    height, width = survey.sizes.T.astype(np.float64)
    larger = np.maximum(height, width)
    upright = (width < height).mean()
    return [
        _log_chart("Larger side, px", larger),
        _chart("Natural size", survey.extents, np.arange(0, 1.01, 0.05), "larger side over the image's side; "),
        _log_chart("Width over height", width / height, f"{_percent(upright)} upright; "),
        _chart("Part of the box that is object", survey.fill, np.arange(0, 1.01, 0.05)),
        _chart("Corners of the outline", survey.corners, _edges(survey.corners, 1.0)),
        _chart("Length of the outline", survey.length, _edges(survey.length, 0.25), "in sides of the box; "),
    ]


def _chart(title: str, values: NDArray[Any], edges: NDArray[np.float64], note: str = "") -> _Chart:
    ticks = edges[:: max(len(edges) // 5, 1)].round(6).tolist()
    beyond = "; the last bar has all above" if values.max() > edges[-1] else ""
    return _Chart(title, histogram(values, edges.tolist(), ticks, title), note + _spread(values) + beyond)


def _log_chart(title: str, values: NDArray[np.float64], note: str = "") -> _Chart:
    low, high = np.floor(np.log2(values.min())), np.floor(np.log2(values.max())) + 1
    edges = 2.0 ** (np.arange(low * _PER_OCTAVE, high * _PER_OCTAVE + 1) / _PER_OCTAVE)
    ticks = (2.0 ** np.arange(low, high + 1, np.ceil((high - low) / 8))).tolist()
    return _Chart(title, histogram(values, edges.tolist(), ticks, title), note + _spread(values))


def _edges(values: NDArray[Any], step: float) -> NDArray[np.float64]:
    """Bins of a round width for all values but the last hundredth, which goes to the last bin."""
    low, high = float(values.min()), float(np.quantile(values, 0.99))
    width = step
    factors = [2, 2.5, 2] if step == 1 else [2, 2, 2.5]
    while (high - low) / width > _MOST_BINS:
        width *= factors[0]
        factors = factors[1:] + factors[:1]
    start = np.floor(low / width) * width
    return np.asarray(start + width * np.arange(max(int(np.ceil((high - start) / width)), 1) + 1))


def _spread(values: NDArray[Any]) -> str:
    low, median, high = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
    return f"median {median:.3g}, nine in ten from {low:.3g} to {high:.3g}"


def _places(survey: BankStatistics) -> list[_Chart]:
    centers = survey.centers
    if not len(centers):
        return []
    drawn = centers
    if len(centers) > _DOTS:
        generator = np.random.default_rng([survey.seed, len(centers)])
        drawn = centers[generator.choice(len(centers), _DOTS, replace=False)]
    number = "each" if len(drawn) == len(centers) else f"{_thousands(len(drawn))} drawn of {_thousands(len(centers))}"
    x, y = np.median(centers, axis=0).tolist()
    where = f"all {_thousands(len(centers))}; median {x:.2f} of the width, {y:.2f} of the height"
    return [
        _Chart(
            "Middles of the objects", scatter(drawn, "middles of the objects in their images"), f"a dot for {number}"
        ),
        _Chart("How many there", density(centers, "number of middles by place in the image"), where),
    ]


def by_count(counts: Any) -> list[tuple[str, int]] | None:
    """Counts by name, the largest first.

    What a bank says of itself may be of another program: ``None`` for anything else.
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
    """A mean mask as a picture: the object white on black, as masks are shown."""
    file = io.BytesIO()
    Image.fromarray(np.rint(mean * 255).astype(np.uint8)).save(file, "PNG", optimize=True)
    return Markup("data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii"))


def _percent(part: float) -> str:
    if 0 < part < 0.01:
        return "below 1 %"
    if 0.99 < part < 1:
        return "above 99 %"
    return f"{100 * part:.0f} %"


def _thousands(number: int) -> str:
    return f"{number:,}"

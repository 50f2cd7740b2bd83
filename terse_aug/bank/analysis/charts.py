"""Charts as inline SVG, in one color, which the page's style sets for light and dark. Pure functions.

Not by matplotlib: its SVG has fixed colors and no tooltips, and is many times larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 16, 10, 24
_SQUARE, _EDGE = 240, 22


def histogram(values: ArrayLike, edges: Sequence[float], ticks: Sequence[float], name: str, unit: str = "") -> Markup:
    """Bars of equal width, one for each bin; values beyond the edges are counted in the outermost bins.

    Args:
        values: ``[n]``, numbers, at least one.
        edges: ascending; bin ``i`` is from ``edges[i]`` to below ``edges[i + 1]``.
        ticks: numbers below the scale; those beyond the edges are left out.
        name: what is shown, for screen readers.
        unit: of the values.
    """
    numbers = np.asarray(values, np.float64)
    bins = np.clip(np.searchsorted(edges, numbers, "right") - 1, 0, len(edges) - 2)
    counts = np.bincount(bins, minlength=len(edges) - 1)
    step = _step(int(counts.max()))
    top = step * math.ceil(counts.max() / step)
    scale = (_HEIGHT - _TOP - _BOTTOM) / top
    bar_width = (_WIDTH - _LEFT - _RIGHT) / len(counts)
    floor = _HEIGHT - _BOTTOM
    marks = [Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(_WIDTH, _HEIGHT, name)]
    for level in range(0, top + 1, step):
        y = floor - level * scale
        marks.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(_LEFT, y, _WIDTH - _RIGHT))
        marks.append(Markup('<text class="y" x="{}" y="{:.1f}">{}</text>').format(_LEFT - 6, y + 4, short(level)))
    for index, count in enumerate(counts.tolist()):
        if count:
            marks.append(
                Markup(
                    '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
                ).format(
                    _LEFT + index * bar_width + 0.5,
                    floor - count * scale,
                    bar_width - 1,
                    count * scale,
                    f"{_range(index, edges)}{unit}: {count}",
                )
            )
    places = np.interp(ticks, edges, np.arange(len(edges)), -1, -1)
    for tick, place in zip(ticks, places.tolist(), strict=True):
        if place >= 0:
            x = _LEFT + place * bar_width
            marks.append(Markup('<path class="tick" d="M{:.1f} {}v4"/>').format(x, floor))
            marks.append(Markup('<text class="x" x="{:.1f}" y="{}">{}</text>').format(x, floor + 16, short(tick)))
    return Markup("\n").join([*marks, Markup("</svg>")])


def scatter(points: NDArray[np.float32], name: str) -> Markup:
    """Dots at points ``[n, 2]`` (x, y) in the unit square, y downwards; the name is for screen readers."""
    places = _EDGE + points * _SQUARE
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places.tolist())
    return _framed(name, Markup('<path class="dots" d="{}"/>').format(dots))


def density(points: NDArray[np.float32], name: str, cells: int = 20) -> Markup:
    """A grid over the unit square, cells the more opaque the more points lie in them; otherwise as :func:`scatter`."""
    columns, rows = np.minimum((points * cells).astype(int), cells - 1).T
    counts = np.bincount(rows * cells + columns, minlength=cells * cells)
    side = _SQUARE / cells
    squares = [
        Markup(
            '<rect class="cell" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill-opacity="{:.2f}">'
            "<title>{}</title></rect>"
        ).format(
            _EDGE + place % cells * side,
            _EDGE + place // cells * side,
            side,
            side,
            max(count / counts.max(), 0.02),
            count,
        )
        for place, count in enumerate(counts.tolist())
        if count
    ]
    return _framed(name, Markup("\n").join(squares))


def short(number: float) -> str:
    """A number in few characters: 12k for 12000, 1/8 for 0.125."""
    if 0 < number < 1 and math.log2(number).is_integer():
        return f"1/{1 / number:g}"
    return f"{number / 1000:g}k" if number >= 10_000 else f"{number:g}"


def _framed(name: str, content: Markup) -> Markup:
    side, middle = _SQUARE + 2 * _EDGE, _SQUARE / 2 + _EDGE
    low = _EDGE + _SQUARE + 15
    frame = Markup(
        '<svg viewBox="0 0 {0} {0}" role="img" aria-label="{1}">'
        '<rect class="frame" x="{2}" y="{2}" width="{3}" height="{3}"/>'
    ).format(side, name, _EDGE, _SQUARE)
    labels = Markup(
        '<text class="x" x="{0}" y="{1}">top of the image</text><text class="x" x="{0}" y="{2}">bottom</text>'
        '<text class="x" transform="translate({3} {0}) rotate(-90)">left</text>'
        '<text class="x" transform="translate({2} {0}) rotate(-90)">right</text></svg>'
    ).format(middle, _EDGE - 7, low, _EDGE - 7)
    return Markup("\n").join([frame, content, labels])


def _step(largest: int) -> int:
    """Distance of grid lines: 1, 2 or 5 times a power of ten, for at most five of them."""
    power = int(10 ** max(len(str(largest)) - 2, 0))
    return next(step for factor in (1, 2, 5, 10, 20, 50) if largest <= 5 * (step := factor * power))


def _range(index: int, edges: Sequence[float]) -> str:
    low, high = f"{edges[index]:.3g}", f"{edges[index + 1]:.3g}"
    if index == len(edges) - 2:
        return f"from {low}"
    return f"below {high}" if index == 0 and edges[0] > 0 else f"{low} to {high}"

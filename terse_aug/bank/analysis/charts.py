"""Charts as inline SVG, in colors that the page's style sets for light and dark. Pure functions.

Not by matplotlib: its SVG has fixed colors and no tooltips, and is many times larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape
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
    counts = _counts(values, edges)
    marks, scale = _axes(int(counts.max()), edges, ticks)
    for index, count in enumerate(counts.tolist()):
        if count:
            place = _bar(index, len(counts), count * scale)
            marks.append(_rectangle('class="bar"', place, f"{_range(index, edges)}{unit}: {count}"))
    return _svg(_WIDTH, _HEIGHT, name, marks)


def compared_histogram(
    first: ArrayLike, second: ArrayLike, edges: Sequence[float], ticks: Sequence[float], name: str
) -> Markup:
    """Bars of one set of values and the outline of those of another, in per cent of each; as :func:`histogram`."""
    percents = [100 * counts / counts.sum() for counts in (_counts(first, edges), _counts(second, edges))]
    count = len(edges) - 1
    marks, scale = _axes(math.ceil(max(own.max() for own in percents)), edges, ticks)
    bars, steps = [], f"M{_LEFT} {_HEIGHT - _BOTTOM}"
    for index, (one, other) in enumerate(zip(*(own.tolist() for own in percents), strict=True)):
        x, y, width, height = _bar(index, count, one * scale)
        title = f"{_range(index, edges)}: {one:.1f} %, {other:.1f} %"
        if one:
            bars.append(_rectangle('class="bar"', (x, y, width, height)))
        bars.append(_rectangle('class="hover"', _bar(index, count, _HEIGHT - _TOP - _BOTTOM), title))
        steps += f"V{_HEIGHT - _BOTTOM - other * scale:.1f}H{x + width + 0.5:.1f}"
    return _svg(_WIDTH, _HEIGHT, name, [*marks, *bars, f'<path class="line" d="{steps}V{_HEIGHT - _BOTTOM}"/>'])


def _counts(values: ArrayLike, edges: Sequence[float]) -> NDArray[np.int64]:
    bins = np.clip(np.searchsorted(edges, np.asarray(values, np.float64), "right") - 1, 0, len(edges) - 2)
    return np.bincount(bins, minlength=len(edges) - 1)


def _axes(largest: int, edges: Sequence[float], ticks: Sequence[float]) -> tuple[list[str], float]:
    """Grid lines with numbers from 0 to at least the largest value, ticks, and the height of one in px."""
    step = _step(largest)
    top = step * math.ceil(largest / step)
    scale, floor, marks = (_HEIGHT - _TOP - _BOTTOM) / top, _HEIGHT - _BOTTOM, []
    for level in range(0, top + 1, step):
        y = floor - level * scale
        marks.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        marks.append(f'<text class="y" x="{_LEFT - 6}" y="{y + 4:.1f}">{short(level)}</text>')
    places = np.interp(ticks, edges, np.arange(len(edges)), -1, -1)
    for tick, place in zip(ticks, places.tolist(), strict=True):
        if place >= 0:
            x = _LEFT + place * (_WIDTH - _LEFT - _RIGHT) / (len(edges) - 1)
            marks.append(f'<path class="tick" d="M{x:.1f} {floor}v4"/>')
            marks.append(f'<text class="x" x="{x:.1f}" y="{floor + 16}">{short(tick)}</text>')
    return marks, scale


def _bar(index: int, count: int, height: float) -> tuple[float, float, float, float]:
    """Left, top, width and height of a bar, one of ``count``."""
    width = (_WIDTH - _LEFT - _RIGHT) / count
    return _LEFT + index * width + 0.5, _HEIGHT - _BOTTOM - height, width - 1, height


def scatter(points: NDArray[np.float32], name: str) -> Markup:
    """Dots at points ``[n, 2]`` (x, y) in the unit square, y downwards; the name is for screen readers."""
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in (_EDGE + points * _SQUARE).tolist())
    return _framed(name, [f'<path class="dots" d="{dots}"/>'])


def density(points: NDArray[np.float32], name: str, cells: int = 20) -> Markup:
    """A grid over the unit square, cells the more opaque the more points lie in them; otherwise as :func:`scatter`."""
    columns, rows = np.minimum((points * cells).astype(int), cells - 1).T
    counts = np.bincount(rows * cells + columns, minlength=cells * cells)
    side, marks = _SQUARE / cells, []
    for number in np.flatnonzero(counts).tolist():
        place = _EDGE + number % cells * side, _EDGE + number // cells * side, side, side
        opacity = max(counts[number] / counts.max(), 0.02)
        marks.append(_rectangle(f'class="cell" fill-opacity="{opacity:.2f}"', place, str(counts[number])))
    return _framed(name, marks)


def short(number: float) -> str:
    """A number in few characters: 12k for 12000, 1/8 for 0.125."""
    if 0 < number < 1 and math.log2(number).is_integer():
        return f"1/{1 / number:g}"
    return f"{number / 1000:g}k" if number >= 10_000 else f"{number:g}"


def _rectangle(attributes: str, place: tuple[float, float, float, float], title: str = "") -> str:
    x, y, width, height = place
    size = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return (
        f"<rect {attributes} {size}><title>{escape(title)}</title></rect>" if title else f"<rect {attributes} {size}/>"
    )


def _svg(width: int, height: int, name: str, marks: Sequence[str]) -> Markup:
    start = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)}">'
    return Markup("\n".join([start, *marks, "</svg>"]))


def _framed(name: str, marks: Sequence[str]) -> Markup:
    side, middle, near, far = _SQUARE + 2 * _EDGE, _SQUARE // 2 + _EDGE, _EDGE - 7, _EDGE + _SQUARE + 15
    frame = f'<rect class="frame" x="{_EDGE}" y="{_EDGE}" width="{_SQUARE}" height="{_SQUARE}"/>'
    labels = [
        f'<text class="x" x="{middle}" y="{near}">top of the image</text>',
        f'<text class="x" x="{middle}" y="{far}">bottom</text>',
        f'<text class="x" transform="translate({near} {middle}) rotate(-90)">left</text>',
        f'<text class="x" transform="translate({far} {middle}) rotate(-90)">right</text>',
    ]
    return _svg(side, side, name, [frame, *marks, *labels])


def _step(largest: int) -> int:
    """Distance of grid lines: 1, 2 or 5 times a power of ten, for at most five of them."""
    power = int(10 ** max(len(str(largest)) - 2, 0))
    return next(step for factor in (1, 2, 5, 10, 20, 50) if largest <= 5 * (step := factor * power))


def _range(index: int, edges: Sequence[float]) -> str:
    low, high = f"{edges[index]:.3g}", f"{edges[index + 1]:.3g}"
    if index == len(edges) - 2:
        return f"from {low}"
    return f"below {high}" if index == 0 and edges[0] > 0 else f"{low} to {high}"

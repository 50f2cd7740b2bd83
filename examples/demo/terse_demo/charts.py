"""Charts as inline SVG: they follow the page's colours, light or dark, and its width. Standard library only.

Colours come from the page's style sheet: a series of class ``random`` is drawn in ``var(--random)``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 460, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 36, 86, 28, 40
_LABEL_DISTANCE = 16


@dataclass(frozen=True)
class Series:
    """A line of a chart: ``style`` is its class in the style sheet, ``points`` are (x, y)."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class _Axes:
    """Maps figures to the drawing; both axes start at 0."""

    right: float
    top: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (_WIDTH - _LEFT - _RIGHT) * x / self.right
        up = (_HEIGHT - _TOP - _BOTTOM) * y / self.top
        return _LEFT + across, _HEIGHT - _BOTTOM - up


def line_chart(series: Sequence[Series], title: str, x_name: str, unit: str) -> str:
    """Lines with their names at their ends.

    Args:
        series: at least one point each.
        title: for who cannot see it.
        x_name: under the horizontal axis.
        unit: of the vertical axis, shown above it.
    """
    highest = max(y for line in series for _, y in line.points)
    step = _nice_step(highest)
    axes = _Axes(max(x for line in series for x, _ in line.points), step * max(math.ceil(highest / step), 1))
    xs = sorted({x for line in series for x, _ in line.points})
    parts = [_horizontal_rules(axes, step, unit), _x_axis(axes, xs, x_name)]
    parts += [_line(axes, line) for line in series]
    parts += _end_labels(axes, series)
    return _svg("".join(parts), title, _HEIGHT)


def bar_chart(names: Sequence[str], series: Sequence[Series], title: str, reference: tuple[float, str]) -> str:
    """Groups of horizontal bars.

    Args:
        names: of the groups.
        series: ``points`` are (number of the group, value).
        title: for who cannot see it.
        reference: a value marked by a vertical line, and its name.
    """
    thick, gap = 11, 12
    group = thick * len(series) + gap
    height = 26 + group * len(names)
    left, longest = 96, max(reference[0], *(y for line in series for _, y in line.points)) * 1.12
    scale = (_WIDTH - left - 16) / longest
    mark = left + scale * reference[0]
    parts = [
        f'<line class="reference" x1="{mark:.1f}" x2="{mark:.1f}" y1="18" y2="{height}"/>',
        f'<text class="tick" x="{mark:.1f}" y="12" text-anchor="middle">{escape(reference[1])}</text>',
    ]
    for number, name in enumerate(names):
        top = 24 + group * number
        middle = top + thick * len(series) / 2
        parts.append(f'<text class="name" x="{left - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        for row, line in enumerate(series):
            value = dict(line.points)[number]
            parts.append(
                f'<rect class="bar {line.style}" x="{left}" y="{top + thick * row}" width="{scale * value:.1f}" '
                f'height="{thick - 2}" rx="2"><title>{escape(f"{line.name}, {name}: {value:.2f}")}</title></rect>'
            )
    return _svg("".join(parts), title, height)


def _svg(content: str, title: str, height: float) -> str:
    return f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">{content}</svg>'


def _nice_step(highest: float) -> float:
    """1, 2 or 5 times a power of ten, so that at most five of them reach ``highest``."""
    rough = max(highest, 1e-6) / 5
    power = 10 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def _horizontal_rules(axes: _Axes, step: float, unit: str) -> str:
    parts = [f'<text class="tick" x="4" y="12">{escape(unit)}</text>']
    for number in range(round(axes.top / step) + 1):
        x, y = axes.at(0, step * number)
        parts.append(f'<line class="rule" x1="{x}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{x - 6}" y="{y + 4:.1f}" text-anchor="end">{step * number:g}</text>')
    return "".join(parts)


def _x_axis(axes: _Axes, xs: Sequence[float], name: str) -> str:
    parts = []
    for x in xs:
        across, down = axes.at(x, 0)
        parts.append(f'<text class="tick" x="{across:.1f}" y="{down + 16}" text-anchor="middle">{x:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(name)}</text>')
    return "".join(parts)


def _line(axes: _Axes, line: Series) -> str:
    places = [axes.at(x, y) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = [
        f'<circle class="dot {line.style}" cx="{across:.1f}" cy="{down:.1f}" r="4">'
        f"<title>{escape(f'{line.name}, {x:g}: {y:.1f}')}</title></circle>"
        for (across, down), (x, y) in zip(places, line.points, strict=True)
    ]
    return f'<polyline class="line {line.style}" points="{path}"/>{"".join(dots)}'


def _end_labels(axes: _Axes, series: Sequence[Series]) -> list[str]:
    """Names at the ends of the lines, moved apart where lines end close together."""
    ends = sorted(((axes.at(*line.points[-1])[1], line) for line in series), key=lambda end: end[0])
    heights: list[float] = []
    for height, _ in ends:
        heights.append(max(height, heights[-1] + _LABEL_DISTANCE) if heights else height)
    beyond = max(heights[-1] - (_HEIGHT - _BOTTOM), 0)
    return [
        f'<text class="end {line.style}" x="{_WIDTH - _RIGHT + 10}" y="{height - beyond + 4:.1f}">'
        f"{escape(line.name)}</text>"
        for height, (_, line) in zip(heights, ends, strict=True)
    ]

"""Charts of the report, drawn by matplotlib and given as data URIs of SVG images.

They are transparent, and their text is of a grey that can be read on a light and on a dark page.
"""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLORS = {"none": "#7b8490", "random": "#2a86cc", "critic": "#d2691e"}
"""Colour of each arm; the style sheet of the report has the same."""

_TEXT = "#808790"
_SIZE = (5.6, 3.3)  # inches
_STYLE = {
    "svg.hashsalt": "terse-aug",  # without it the ids in the file differ from run to run
    "svg.fonttype": "path",
    "font.size": 10,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _TEXT,
    "grid.alpha": 0.25,
}


@dataclass(frozen=True)
class Series:
    """Values of one arm: its name in the legend, its key in ``COLORS``, and points (x, y)."""

    name: str
    arm: str
    points: Sequence[tuple[float, float]]


def line_chart(series: Sequence[Series], x_name: str, y_name: str) -> str:
    """Lines over a common horizontal axis; the vertical axis starts at 0."""

    def draw(axes: Axes) -> None:
        for line in series:
            x, y = zip(*line.points, strict=True)
            style = "--" if line.arm == "none" else "-"
            axes.plot(x, y, style, marker="o", linewidth=2.2, label=line.name, color=COLORS[line.arm])
        axes.set(xlabel=x_name, ylabel=y_name, xlim=(0, None))
        axes.set_ylim(0, max(axes.get_ylim()[1], 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")
        _add_legend(axes)

    return _data_uri(draw)


def bar_chart(groups: Sequence[str], series: Sequence[Series], reference: float, x_name: str) -> str:
    """Horizontal bars in named groups.

    Args:
        groups: names of the groups.
        series: ``points`` are (number of the group, value).
        reference: value marked by a vertical line.
        x_name: of the horizontal axis.
    """

    def draw(axes: Axes) -> None:
        height = 0.8 / len(series)
        for row, bars in enumerate(series):
            places = [number + (row - (len(series) - 1) / 2) * height for number, _ in bars.points]
            values = [value for _, value in bars.points]
            axes.barh(places, values, height * 0.9, label=bars.name, color=COLORS[bars.arm])
        axes.axvline(reference, color=_TEXT, linestyle=":")
        axes.set_yticks(range(len(groups)), groups)
        axes.invert_yaxis()
        axes.set_xlabel(x_name)
        _add_legend(axes)

    return _data_uri(draw)


def _add_legend(axes: Axes) -> None:
    """Above the axes, so that it covers nothing."""
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)


def _data_uri(draw: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        draw(figure.subplots())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()

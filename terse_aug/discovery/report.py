"""The report of a run of learn cutter: one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from terse_aug.discovery.agreement import Agreement
from terse_aug.discovery.health import EXPLANATIONS
from terse_aug.discovery.run_folder import RunFolder

_CURVES = (
    ("discriminator", "Loss of the discriminator; near 0, it has won"),
    ("code_of_mask", "Cross-entropy of the group read from masks"),
    ("code_of_composite", "Cross-entropy of the category read from composites"),
    ("mask_fraction", "Mean alpha of masks"),
    ("mask_softness", "Mean of min(alpha, 1 - alpha)"),
    ("background", "Loss of backgrounds segmented as foreground, from round 2 on"),
    ("segmenter_iou", "IoU of the segmentation network on held-out generated images"),
)
_MAX_PICTURES = 12
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 360, 150, 46, 20


@dataclass(frozen=True)
class _Picture:
    step: int
    image: Markup


def render_cutter_report(run: str | Path, measured: Agreement | None = None) -> str:
    """An HTML page that needs no other file and runs no script, of a finished or unfinished run.

    Args:
        run: folder of the run.
        measured: agreement of its cutter with true masks.

    Raises:
        ValueError: it is no folder of a run.
    """
    folder = RunFolder(run)
    summary, metrics = folder.summary(), folder.metrics()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        resources.files("terse_aug.discovery").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    page = template.render(
        name=str(run),
        summary=summary,
        health=[(name, EXPLANATIONS[name], name in summary["collapsed"]) for name in EXPLANATIONS],
        measured=measured,
        pictures=[_Picture(step, _png(path)) for step, path in _spread(folder.layer_files())],
        curves=[(title, curve) for name, title in _CURVES if (curve := _curve(metrics, name, title))],
    )
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _spread(files: Sequence[tuple[int, Path]]) -> Sequence[tuple[int, Path]]:
    """At most :data:`_MAX_PICTURES`, evenly spread, the first and the last among them."""
    if len(files) <= _MAX_PICTURES:
        return files
    last = len(files) - 1
    return [files[round(number * last / (_MAX_PICTURES - 1))] for number in range(_MAX_PICTURES)]


def _png(path: Path) -> Markup:
    file = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(file, "WEBP", quality=85)
    return Markup("data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii"))


def _curve(metrics: Sequence[dict[str, Any]], name: str, title: str) -> Markup | None:
    """A line over the steps as inline SVG, in the page's color; ``None`` without values."""
    points = [(line["step"], line[name]) for line in metrics if name in line]
    if not points:
        return None
    steps, values = zip(*points, strict=True)
    low, high = min(0.0, *values), max(values)
    across, up = (_WIDTH - _LEFT - 10) / max(steps[-1], 1), (_HEIGHT - _BOTTOM - 8) / ((high - low) or 1)
    floor = _HEIGHT - _BOTTOM
    line = " ".join(f"{_LEFT + step * across:.1f},{floor - (value - low) * up:.1f}" for step, value in points)
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'<path class="grid" d="M{_LEFT} {floor}H{_WIDTH - 10}"/>'
        f'<text class="y" x="{_LEFT - 6}" y="{floor}">{low:.3g}</text><text class="y" x="{_LEFT - 6}" y="14">{high:.3g}'
        f'</text><text class="y" x="{_WIDTH - 10}" y="{_HEIGHT - 4}">{steps[-1]:,} steps</text>'
        f'<polyline class="line" points="{line}"/></svg>'
    )

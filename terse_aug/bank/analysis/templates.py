"""Fills the templates of the pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image


def render(name: str, **values: Any) -> str:
    """A page from a template of this package; names and texts from the data are escaped."""
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(webp=_webp, mask=_mask, percent=percent, thousands=thousands)
    page = environment.get_template(name).render(**values)
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def percent(fraction: float) -> str:
    """A fraction as text; what is not quite nothing or everything does not look so."""
    if 0 < fraction < 0.01:
        return "below 1 %"
    if 0.99 < fraction < 1:
        return "above 99 %"
    return f"{100 * fraction:.0f} %"


def thousands(number: int) -> str:
    """A number with commas."""
    return f"{number:,}"


def by_count(counts: Any) -> list[tuple[str, int]] | None:
    """Counts by name, the largest first.

    ``None`` for anything else: a bank may have been written by another program.
    """
    if not isinstance(counts, Mapping) or not all(isinstance(count, int) for count in counts.values()):
        return None
    return sorted(((str(name), count) for name, count in counts.items()), key=lambda item: -item[1])


def _source(name: str) -> str:
    return resources.files("terse_aug.bank.analysis").joinpath(name).read_text(encoding="utf-8")


def _webp(file: bytes) -> Markup:
    return Markup("data:image/webp;base64," + base64.b64encode(file).decode("ascii"))


def _mask(mean: NDArray[np.float32]) -> Markup:
    """A mean mask as an image, the object white on black."""
    file = io.BytesIO()
    Image.fromarray(np.rint(mean * 255).astype(np.uint8)).save(file, "PNG", optimize=True)
    return Markup("data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii"))

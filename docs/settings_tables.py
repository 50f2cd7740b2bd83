"""MkDocs hook: fills in the tables of the configuration page from the settings dataclasses of terse_aug.config.

A comment ``<!-- settings: Critic -->`` in a page is replaced by a table of the fields of that class, with their
defaults, their ``help`` and their keys in Detectron2.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from terse_aug import config as settings

DETECTRON2_NODES = {
    "PasteConfig": "TERSE.PASTE",
    "TransformRanges": "TERSE.PASTE.RANGES",
    "Photometric": "TERSE.PASTE.PHOTOMETRIC",
    "Matched": "TERSE.POLICY.MATCHED",
    "BestOfN": "TERSE.POLICY.BEST_OF_N",
    "Critic": "TERSE.POLICY.CRITIC",
    "Adversarial": "TERSE.POLICY.ADVERSARIAL",
    "Paper": "TERSE.POLICY.PAPER",
    "Robustness": "TERSE.ROBUSTNESS",
}
"""Node of Detectron2's config that holds the settings of each class."""

_SECTIONS = {"TransformRanges": "transform-ranges", "Photometric": "photometric"}
"""Where on the configuration page the settings of a nested class are."""

_MARK = re.compile(r"<!-- settings: (\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks of a page by tables; MkDocs calls this for every page."""
    return _MARK.sub(lambda mark: table(mark.group(1)), markdown)


def table(name: str) -> str:
    """The settings of a class of :mod:`terse_aug.config` as a Markdown table.

    Args:
        name: of the class.

    Raises:
        AttributeError: there is no such class.
    """
    node = DETECTRON2_NODES[name]
    lines = ["| setting | default | meaning | Detectron2 key |", "|---|---|---|---|"]
    for own in fields(getattr(settings, name)):
        default = own.default_factory() if own.default_factory is not MISSING else own.default
        meaning = own.metadata["help"].replace("|", "\\|")
        key = f"`{node}.{own.name.upper()}`" + (".*" if is_dataclass(default) else "")
        lines.append(f"| `{own.name}` | {shown(default)} | {meaning} | {key} |")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A default value as a reader wants to see it."""
    if is_dataclass(value):
        return f"[`{type(value).__name__}()`](#{_SECTIONS[type(value).__name__]})"
    if isinstance(value, float) and 0 < value < 1 and not (255 * value) % 1 and value * 100 % 1:
        return f"`{255 * value:.0f}/255`"
    return f"`{value!r}`"

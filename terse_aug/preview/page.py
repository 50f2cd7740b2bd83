"""A preview as a self-contained HTML page and as a PNG image."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from terse_aug.preview.composites import Pair, Preview
from terse_aug.preview.data import RejectionCounts
from terse_aug.viz.contact_sheet import contact_sheet
from terse_aug.viz.drawing import ORIGINAL_COLOR, PASTED_COLOR
from terse_aug.viz.images import RGBImage
from terse_aug.viz.text import printable

_JPEG_QUALITY = 88
_UNCHANGED = "unchanged: nothing pasted"
_REASONS = {
    "occluded": "original objects hidden beyond min_visibility: label dropped",
    "paste_hidden": "pasted objects hidden or cut off beyond min_visibility: no label",
    "paste_too_small": "pastes smaller than min_side: left out",
    "paste_outside": "pastes outside the image: left out",
    "paste_overlaps": "pastes that policy matched leaves out: real objects overlap less often",
    "distractor_not_shown": "distractors outside the image or smaller than min_side: left out",
    "background_unreadable": "backgrounds that cannot be read: the original image is kept",
    "decoy_without_background": "decoys without a place free of objects: left out",
    "box_degenerate": "original objects whose box has no area: left out",
    "box_outside": "original objects whose box lies outside the image: left out",
}


@dataclass(frozen=True)
class Facts:
    """What a page shows besides the preview.

    Attributes:
        about: what was previewed, by name: bank, images, policy, seed and the like.
        settings: every setting, by name.
        changed: those that are not at their default.
        left_out: images and objects of the data set that are not shown, by reason.
        hint: what to change, if something is odd.
    """

    about: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    changed: Mapping[str, str] = field(default_factory=dict)
    left_out: RejectionCounts = field(default_factory=RejectionCounts)
    hint: str = ""


def render_html(preview: Preview, facts: Facts) -> str:
    """The preview as a page without scripts that needs no other file; texts from the data are escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(data_uri=_data_uri, alt=_alt_text)
    template = resources.files("terse_aug.preview").joinpath("sheet.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        preview=preview,
        facts=facts,
        dropped=_dropped(preview),
        colors={"original": ORIGINAL_COLOR, "pasted": PASTED_COLOR},
    )
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def render_png(preview: Preview, facts: Facts) -> bytes:
    """The preview as a PNG file: two times original, composite, and composite with its labels in a row.

    Raises:
        ValueError: the preview has no pairs.
    """
    images, captions = [], []
    for pair in preview.pairs:
        images += [pair.original, pair.plain, pair.composite]
        notes = [paste.text for paste in pair.pastes] + list(pair.lost)
        captions += [f"{printable(pair.name)}\n{_listed(pair.original_objects)}", "", "\n".join(notes) or _UNCHANGED]
    columns = 6 if len(preview.pairs) > 1 else 3
    sheet = contact_sheet(images, columns, captions, title=_png_title(preview, facts))
    return _encoded(sheet, "PNG")


def _png_title(preview: Preview, facts: Facts) -> str:
    lines = ["; ".join(f"{name}: {value}" for name, value in facts.about.items())]
    if facts.changed:
        lines.append("settings: " + ", ".join(f"{name} {value}" for name, value in facts.changed.items()))
    lines.append(_listed(preview.counts))
    lines += [f"{count} {reason}" for reason, count in _dropped(preview)]
    lines += [f"left out of the data set: {line}" for line in facts.left_out.lines()]
    lines += [facts.hint] * bool(facts.hint)
    lines.append("From left: original, composite, its labels. Original objects blue, pasted objects orange.")
    return "\n".join(lines)


def _dropped(preview: Preview) -> list[tuple[str, int]]:
    return [(_REASONS.get(reason, reason), count) for reason, count in sorted(preview.dropped.items()) if count]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "no objects"


def _alt_text(pair: Pair, which: str) -> str:
    if which == "original":
        return f"{pair.name} with its labels: {_listed(pair.original_objects)}"
    if which == "plain":
        return f"Composite of {pair.name}, nothing drawn on it"
    pasted = ", ".join(paste.title for paste in pair.pastes) or "nothing"
    return f"Composite of {pair.name}, pasted: {pasted}; labels: {_listed(pair.composite_objects)}"


def _data_uri(image: RGBImage) -> Markup:
    # Chroma subsampling would blur thin colored lines and text.
    file = _encoded(image, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return Markup("data:image/jpeg;base64," + base64.b64encode(file).decode("ascii"))


def _encoded(image: RGBImage, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()

"""A preview as one self-contained HTML page, and as one picture. Imports jinja2 and pillow."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from terse_aug.preview.data import SkippedImage
from terse_aug.preview.record import Pair, Preview
from terse_aug.viz.contact_sheet import contact_sheet
from terse_aug.viz.drawing import ORIGINAL_COLOR, PASTED_COLOR
from terse_aug.viz.images import Color, RGBImage
from terse_aug.viz.text import printable

_JPEG_QUALITY = 88
_REASONS = {
    "occluded": "original objects hidden beyond min_visibility: label dropped",
    "paste_hidden": "pasted objects hidden or cut off beyond min_visibility: no label",
    "paste_too_small": "pastes smaller than min_side: left out",
    "paste_outside": "pastes outside the image: left out",
    "distractor_not_shown": "distractors outside the image or smaller than min_side: left out",
    "background_unreadable": "backgrounds that cannot be read: the image keeps its own",
    "decoy_without_background": "decoys without a place free of objects: left out",
    "box_degenerate": "original objects whose box has no area: left out",
    "box_outside": "original objects whose box lies outside the image: left out",
}


@dataclass(frozen=True)
class Facts:
    """What a sheet says of itself besides its record.

    Attributes:
        about: what was previewed, by name: bank, images, policy, seed and the like.
        settings: every setting in use, by name.
        changed: those that are not at their default.
        left_out: images and objects of the data set that are not shown, by reason.
    """

    about: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    changed: Mapping[str, str] = field(default_factory=dict)
    left_out: SkippedImage = field(default_factory=SkippedImage)


def render_html(preview: Preview, facts: Facts) -> str:
    """The contact sheet as a page that needs no other file and runs no script.

    Names and texts from the data are escaped. The same preview gives the same text.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(data_uri=_data_uri, css_color=_css_color, alt=_alt_text)
    template = environment.from_string(
        resources.files("terse_aug.preview").joinpath("sheet.html.jinja").read_text(encoding="utf-8")
    )
    page = template.render(
        preview=preview,
        facts=facts,
        dropped=_dropped_lines(preview),
        original_color=ORIGINAL_COLOR,
        pasted_color=PASTED_COLOR,
    )
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def render_png(preview: Preview, facts: Facts) -> bytes:
    """The contact sheet as a PNG file: two pairs of original and composite a row.

    Raises:
        ValueError: the preview has no pairs.
    """
    pictures, captions = [], []
    for pair in preview.pairs:
        pictures += [pair.original, pair.composite]
        captions += [f"{printable(pair.name)}\n{_census_text(pair.original_objects)}", _composite_caption(pair)]
    columns = 4 if len(preview.pairs) > 1 else 2
    sheet = contact_sheet(pictures, columns, captions, title=_png_title(preview, facts))
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "PNG")
    return file.getvalue()


def _png_title(preview: Preview, facts: Facts) -> str:
    lines = ["; ".join(f"{name}: {value}" for name, value in facts.about.items())]
    if facts.changed:
        lines.append("settings: " + ", ".join(f"{name} {value}" for name, value in facts.changed.items()))
    lines.append(", ".join(f"{count} {name}" for name, count in preview.counts.items()))
    lines += [f"{count} {reason}" for reason, count in _dropped_lines(preview)]
    lines += [f"left out of the data set: {sentence}" for sentence in facts.left_out.sentences()]
    lines.append("Left the original, right the composite. Original objects blue, pasted objects orange.")
    return "\n".join(lines)


def _dropped_lines(preview: Preview) -> list[tuple[str, int]]:
    return [(_REASONS.get(reason, reason), count) for reason, count in sorted(preview.dropped.items())]


def _composite_caption(pair: Pair) -> str:
    notes = [printable(paste.text) for paste in pair.pastes] + [printable(line) for line in pair.lost]
    return "\n".join(notes or ["nothing pasted"])


def _census_text(objects: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in objects.items()) or "no objects"


def _alt_text(pair: Pair, which: str) -> str:
    if which == "original":
        return f"{pair.name} with its labels: {_census_text(pair.original_objects)}"
    pasted = ", ".join(paste.title for paste in pair.pastes) or "nothing"
    return f"Composite of {pair.name}, pasted: {pasted}; labels: {_census_text(pair.composite_objects)}"


def _data_uri(picture: RGBImage) -> Markup:
    file = io.BytesIO()
    # Full colour resolution, or thin coloured lines and text would bleed.
    Image.fromarray(picture).save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return Markup("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii"))


def _css_color(color: Color) -> Markup:
    return Markup("rgb({} {} {})").format(*color)

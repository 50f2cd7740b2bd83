"""What is odd in an annotation and can mean one thing only is made plain. Pure functions; imports the standard library.

Every function adds what it mended to a set of notes, each the same text for all of its kind, so that a report can count
the objects for which it was done.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from typing import Any

Notes = set[str]
"""What was mended of one object or image."""

TEXT_NUMBER = "number written as text"
TEXT_ID = "id written as text"
SPACED_NAME = "class name with space around it"
JSON_IN_TEXT = "list written as text"
PAIRS = "polygon written as pairs of coordinates"
REPEATED_POINT = "polygon with repeated points, such as its first at its end"
DEGENERATE_PART = "degenerate part of a polygon left out beside sound ones"
CLIPPED = "box reaches beyond its image and was clipped"
SWAPPED = "box with its corners swapped"

_LEAST_CLIPPED = 0.5
_LEVELS = 8
"""Lists within each other; COCO's polygons have two."""
_EXACT = 2**53
"""From here on a float does not tell neighbouring whole numbers apart."""


class Malformed(ValueError):
    """A part of an annotation that cannot be read; the message is the reason, the same for all of its kind."""


def as_number(value: Any) -> float:
    """A finite number, also where it is written as text.

    Raises:
        Malformed: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Malformed("a coordinate is no number")
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise Malformed("a coordinate is no number") from error
    if not math.isfinite(number):
        raise Malformed("a coordinate is not finite")
    return number


def class_name(value: Any, notes: Notes) -> str:
    """A class name, from text or a number.

    Raises:
        Malformed: there is none, or it is no text that can be written.
    """
    said = "" if value is None else str(value)
    name = said.strip()
    if not name:
        raise Malformed("object without a class name")
    try:
        name.encode()
    except UnicodeEncodeError as error:  # half of a character
        raise Malformed("class name is damaged") from error
    if name != said:
        notes.add(SPACED_NAME)
    return name


def too_deep(value: Any, levels: int = _LEVELS) -> bool:
    """Whether there are more lists and mappings within each other than any annotation has."""
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return False
    return levels == 0 or any(too_deep(part, levels - 1) for part in value if isinstance(part, list | tuple | Mapping))


def has_text(value: Any, levels: int = _LEVELS) -> bool:
    """Whether there is text in a list, in lists within it (as far as they are not too deep), or it is text itself."""
    if isinstance(value, list | tuple):
        return levels > 0 and any(has_text(part, levels - 1) for part in value)
    return isinstance(value, str)


def plain(value: Any, notes: Notes, levels: int = _LEVELS) -> Any:
    """Numbers and lists that are written as text, also in lists that are not too deep; anything else as it is."""
    if isinstance(value, str):
        return _from_text(value, notes)
    if isinstance(value, list | tuple) and has_text(value, levels):
        return [plain(part, notes, levels - 1) for part in value]
    return value


def known_id(value: Any, known: Mapping[Any, Any], notes: Notes) -> Any:
    """The key of ``known`` that an id means: itself, or the only one that is the same number or text; else ``None``."""
    if not isinstance(value, int | float | str) or is_inexact(value):
        return None
    if value in known:
        return value
    fitting = [key for key in (same_id(value), str(same_id(value))) if key in known]
    if len(fitting) != 1:
        return None
    notes.add(TEXT_ID)
    return fitting[0]


def same_id(value: int | float | str) -> Hashable:
    """An id in one form, whether it was written as a number or as text."""
    if isinstance(value, int):
        return value
    text = str(value).strip()
    number = _number(text)
    return number if isinstance(number, int) else text


def is_inexact(value: Any) -> bool:
    """Whether an id is a number that may have been rounded to another, or is none."""
    return isinstance(value, float) and not abs(value) < _EXACT


def mended_object(entry: dict[str, Any], notes: Notes) -> dict[str, Any]:
    """An annotation of a COCO JSON with numbers that are numbers, and with polygons in COCO's form.

    What cannot be mended stays as it is.
    """
    changed = {key: plain(entry[key], notes) for key in ("bbox", "keypoints") if has_text(entry.get(key))}
    segmentation = mended_segmentation(entry.get("segmentation"), notes)
    if segmentation is not entry.get("segmentation"):
        changed["segmentation"] = segmentation
    return entry | changed if changed else entry


def mended_segmentation(segmentation: Any, notes: Notes) -> Any:
    """Polygons as ``[[x, y, x, y, ...], ...]`` without repeated points, or an RLE of whole numbers, or several."""
    if isinstance(segmentation, str):
        segmentation = _from_json(segmentation, notes)
    if isinstance(segmentation, dict):
        return _mended_runs(segmentation, notes)
    if not isinstance(segmentation, list):
        return segmentation
    if segmentation and all(isinstance(part, dict) for part in segmentation):
        return [_mended_runs(part, notes) for part in segmentation]
    segmentation = plain(segmentation, notes)
    polygons = _flat(segmentation, notes)
    repaired = [_without_repetition(polygon, notes) for polygon in polygons]
    sound = [polygon for polygon in repaired if not (isinstance(polygon, list) and 0 < len(polygon) < 6)]
    if sound and len(sound) < len(repaired):
        notes.add(DEGENERATE_PART)
        repaired = sound
    unchanged = len(repaired) == len(segmentation) and all(a is b for a, b in zip(repaired, segmentation, strict=True))
    return segmentation if unchanged else repaired


def clipped_box(
    box: tuple[float, float, float, float], shape: tuple[int, ...], notes: Notes
) -> tuple[float, float, float, float]:
    """The part of a box within its image; a box without such a part, or without area, as it is.

    Args:
        box: x, y, width, height in px.
        shape: (H, W, ...) of the image.
        notes: told where more than half a pixel was cut off.
    """
    if not all(math.isfinite(value) for value in box):
        return box
    left, top, right, bottom = max(box[0], 0.0), max(box[1], 0.0), box[0] + box[2], box[1] + box[3]
    right, bottom = min(right, float(shape[1])), min(bottom, float(shape[0]))
    if right <= left or bottom <= top:
        return box
    if max(left - box[0], top - box[1], box[0] + box[2] - right, box[1] + box[3] - bottom) > _LEAST_CLIPPED:
        notes.add(CLIPPED)
    return left, top, right - left, bottom - top


def _number(text: str) -> int | float | None:
    """The number that a text is; a whole one is an integer, unless it may have been rounded."""
    if "_" in text:  # which Python takes within numbers
        return None
    try:
        return int(text)
    except ValueError:  # also of an endless one, which is infinite as a float
        pass
    try:
        return _whole(float(text))
    except ValueError:
        return None


def _whole(number: float) -> int | float:
    return int(number) if abs(number) < _EXACT and number == int(number) else number


def _from_text(text: str, notes: Notes) -> Any:
    number = _number(text)
    if number is None:
        return _from_json(text, notes)
    notes.add(TEXT_NUMBER)
    return number


def _from_json(text: str, notes: Notes) -> Any:
    if text.strip()[:1] not in ("[", "{"):
        return text
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if too_deep(content):
        return text
    notes.add(JSON_IN_TEXT)
    return plain(content, notes)


def _mended_runs(rle: dict[str, Any], notes: Notes) -> dict[str, Any]:
    size, counts = rle.get("size"), rle.get("counts")
    changed: dict[str, Any] = {}
    if isinstance(size, list | tuple) and size != [whole(side, notes) for side in size]:
        changed["size"] = [whole(side, notes) for side in size]
    if isinstance(counts, str) and "," in counts:  # a comma is not among the characters of a compressed RLE
        counts = _from_json(counts, notes)
    if isinstance(counts, list) and not all(type(run) is int for run in counts):
        counts = [whole(run, notes) for run in counts]
    if counts is not rle.get("counts"):
        changed["counts"] = counts
    return rle | changed if changed else rle


def whole(value: Any, notes: Notes) -> Any:
    """A whole number that is written as text or with a fraction of 0; anything else as it is.

    From 2**53 on a fraction of 0 may be of another number's rounding: such stay as they are.
    """
    if isinstance(value, str):
        value = _from_text(value, notes)
    return _whole(value) if isinstance(value, float) else value


def _flat(segmentation: list[Any], notes: Notes) -> list[Any]:
    """Polygons whose points may be written as pairs, alone or in a list."""
    if _is_pairs(segmentation):
        notes.add(PAIRS)
        return [[value for point in segmentation for value in point]]
    if not all(isinstance(polygon, list) for polygon in segmentation):
        return [segmentation]
    if not any(_is_pairs(polygon) for polygon in segmentation):
        return segmentation
    notes.add(PAIRS)
    return [[value for point in own for value in point] if _is_pairs(own) else own for own in segmentation]


def _is_pairs(points: Any) -> bool:
    return (
        isinstance(points, list)
        and len(points) >= 3
        and all(isinstance(point, list) and len(point) == 2 for point in points)
        and not any(isinstance(value, list) for point in points for value in point)
    )


def _without_repetition(polygon: Any, notes: Notes) -> Any:
    """Points that follow their like do not change a shape, but pycocotools divides by their distance."""
    if not isinstance(polygon, list) or len(polygon) % 2 or len(polygon) < 4:
        return polygon
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    kept = [point for point, before in zip(points, [points[-1], *points], strict=False) if point != before]
    if len(kept) == len(points):
        return polygon
    notes.add(REPEATED_POINT)
    kept = kept or points[:1]
    # The first point goes where the last is its like: the shape then starts at another corner, as it would have.
    if points[0] == points[-1]:
        kept = [kept[-1], *kept[:-1]]
    return [value for point in kept for value in point]

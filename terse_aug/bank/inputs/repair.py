"""Repair of oddities in annotations that can mean one thing only. Pure functions.

Every function adds what it repaired to a set of :data:`Repairs`, with the same text for all repairs of a kind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from typing import Any

Repairs = set[str]
"""What was repaired in one object or image."""

TEXT_NUMBER = "number written as text"
TEXT_ID = "id written as text"
SPACED_NAME = "class name with space around it"
TEXT_LIST = "list written as text"
POINT_PAIRS = "polygon written as pairs of coordinates"
REPEATED_POINTS = "polygon with repeated points, such as its first at its end"
DEGENERATE_PART = "degenerate part of a polygon left out beside valid ones"
CLIPPED_BOX = "box reaches beyond its image and was clipped"
SWAPPED_CORNERS = "box with its corners swapped"

_MIN_CLIPPED_PX = 0.5
_MAX_LEVELS = 8
"""Of nested lists; COCO's polygons have two."""
_EXACT = 2**53
"""From here on a float does not distinguish neighbouring whole numbers."""


class Malformed(ValueError):
    """A part of an annotation that cannot be read; the message is the reason, the same for all of its kind."""


def as_number(value: Any) -> float:
    """A finite number, which may be written as text; raises :class:`Malformed` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Malformed("a coordinate is no number")
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise Malformed("a coordinate is no number") from error
    if not math.isfinite(number):
        raise Malformed("a coordinate is not finite")
    return number


def as_whole_number(value: Any, repairs: Repairs) -> Any:
    """A whole number that is written as text or with a fraction of 0; anything else unchanged."""
    if isinstance(value, str):
        value = _parse(value, repairs)
    return _without_fraction(value) if isinstance(value, float) else value


def class_name(value: Any, repairs: Repairs) -> str:
    """A class name, from text or a number; raises :class:`Malformed` if it is empty or cannot be encoded."""
    written = "" if value is None else str(value)
    name = written.strip()
    if not name:
        raise Malformed("object without a class name")
    try:
        name.encode()
    except UnicodeEncodeError as error:  # half of a character
        raise Malformed("class name is damaged") from error
    if name != written:
        repairs.add(SPACED_NAME)
    return name


def contains_text(value: Any, levels: int = _MAX_LEVELS) -> bool:
    """Whether a value is text, or a list (of lists) with text in it."""
    if isinstance(value, list | tuple):
        return levels > 0 and any(contains_text(part, levels - 1) for part in value)
    return isinstance(value, str)


def parse_text(value: Any, repairs: Repairs, levels: int = _MAX_LEVELS) -> Any:
    """Numbers and lists that are written as text, also within lists; anything else unchanged."""
    if isinstance(value, str):
        return _parse(value, repairs)
    if isinstance(value, list | tuple) and contains_text(value, levels):
        return [parse_text(part, repairs, levels - 1) for part in value]
    return value


def find_id(value: Any, known: Mapping[Any, Any], repairs: Repairs) -> Any:
    """The key of ``known`` that an id means: itself, or the only one that is the same number or text; else ``None``."""
    if not isinstance(value, int | float | str):
        return None
    if value in known:
        return value
    canonical = _canonical_id(value)
    matching = [key for key in (canonical, str(canonical)) if key in known]
    if len(matching) != 1:
        return None
    repairs.add(TEXT_ID)
    return matching[0]


def repair_annotation(entry: dict[str, Any], repairs: Repairs) -> dict[str, Any]:
    """An annotation of a COCO JSON with numbers instead of text, and with polygons in COCO's form.

    What cannot be repaired is unchanged, and so is ``entry``.
    """
    changed = {key: parse_text(entry[key], repairs) for key in ("bbox", "keypoints") if contains_text(entry.get(key))}
    segmentation = repair_segmentation(entry.get("segmentation"), repairs)
    if segmentation is not entry.get("segmentation"):
        changed["segmentation"] = segmentation
    return entry | changed if changed else entry


def repair_segmentation(segmentation: Any, repairs: Repairs) -> Any:
    """Polygons as ``[[x, y, x, y, ...], ...]`` without repeated points, or RLEs of whole numbers, or both in a list."""
    if isinstance(segmentation, str):
        segmentation = _parse_json(segmentation, repairs)
    if isinstance(segmentation, dict):
        return _repair_rle(segmentation, repairs)
    if not isinstance(segmentation, list):
        return segmentation
    if any(isinstance(part, dict) for part in segmentation):
        rles = [_repair_rle(part, repairs) for part in segmentation if isinstance(part, dict)]
        others = [part for part in segmentation if not isinstance(part, dict)]
        polygons = repair_segmentation(others, repairs) if others else []
        if any(map(_is_degenerate, polygons)):
            repairs.add(DEGENERATE_PART)
        return rles + [polygon for polygon in polygons if not _is_degenerate(polygon)]
    segmentation = parse_text(segmentation, repairs)
    repaired = [_without_repetition(polygon, repairs) for polygon in _flat_polygons(segmentation, repairs)]
    valid = [polygon for polygon in repaired if not _is_degenerate(polygon)]
    if valid and len(valid) < len(repaired):
        repairs.add(DEGENERATE_PART)
        repaired = valid
    unchanged = len(repaired) == len(segmentation) and all(a is b for a, b in zip(repaired, segmentation, strict=True))
    return segmentation if unchanged else repaired


def clip_box(
    box: tuple[float, float, float, float], shape: tuple[int, ...], repairs: Repairs
) -> tuple[float, float, float, float]:
    """The part of a box (x, y, width, height in px) within an image of shape (H, W, ...).

    A box without such a part, or without area, is unchanged; it is a repair if more than half a pixel is clipped.
    """
    if not all(math.isfinite(value) for value in box):
        return box
    left, top, right, bottom = max(box[0], 0.0), max(box[1], 0.0), box[0] + box[2], box[1] + box[3]
    right, bottom = min(right, float(shape[1])), min(bottom, float(shape[0]))
    if right <= left or bottom <= top:
        return box
    if max(left - box[0], top - box[1], box[0] + box[2] - right, box[1] + box[3] - bottom) > _MIN_CLIPPED_PX:
        repairs.add(CLIPPED_BOX)
    return left, top, right - left, bottom - top


def _canonical_id(value: int | float | str) -> Hashable:
    """An id in one form, whether it was written as a number or as text."""
    if isinstance(value, int):
        return value
    text = str(value).strip()
    number = _number(text)
    return number if isinstance(number, int) else text


def _number(text: str) -> int | float | None:
    """The number that a text is; a whole one is an integer, unless it may have been rounded."""
    if "_" in text:  # which Python accepts within numbers
        return None
    try:
        return int(text)
    except ValueError:  # also raised for thousands of digits, which are infinite as a float
        pass
    try:
        return _without_fraction(float(text))
    except ValueError:
        return None


def _without_fraction(number: float) -> int | float:
    """An integer for a fraction of 0, except from 2**53 on, where that fraction may come from rounding."""
    return int(number) if abs(number) < _EXACT and number == int(number) else number


def _parse(text: str, repairs: Repairs) -> Any:
    number = _number(text)
    if number is None:
        return _parse_json(text, repairs)
    repairs.add(TEXT_NUMBER)
    return number


def _parse_json(text: str, repairs: Repairs) -> Any:
    if text.strip()[:1] not in ("[", "{"):
        return text
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text
    repairs.add(TEXT_LIST)
    return parse_text(content, repairs)


def _repair_rle(rle: dict[str, Any], repairs: Repairs) -> dict[str, Any]:
    size, counts = rle.get("size"), rle.get("counts")
    changed: dict[str, Any] = {}
    if isinstance(size, list | tuple):
        sides = [as_whole_number(side, repairs) for side in size]
        if sides != size:
            changed["size"] = sides
    if isinstance(counts, str) and "," in counts:  # a comma is not among the characters of a compressed RLE
        counts = _parse_json(counts, repairs)
    if isinstance(counts, list) and not all(type(run) is int for run in counts):
        counts = [as_whole_number(run, repairs) for run in counts]
    if counts is not rle.get("counts"):
        changed["counts"] = counts
    return rle | changed if changed else rle


def _flat_polygons(segmentation: list[Any], repairs: Repairs) -> list[Any]:
    """Polygons whose points may be written as pairs, alone or in a list."""
    if _is_pairs(segmentation):
        segmentation = [segmentation]
    elif not all(isinstance(polygon, list) for polygon in segmentation):
        return [segmentation]
    if not any(map(_is_pairs, segmentation)):
        return segmentation
    repairs.add(POINT_PAIRS)
    return [
        [value for point in polygon for value in point] if _is_pairs(polygon) else polygon for polygon in segmentation
    ]


def _is_degenerate(polygon: Any) -> bool:
    return isinstance(polygon, list) and 0 < len(polygon) < 6


def _is_pairs(points: Any) -> bool:
    return (
        isinstance(points, list)
        and len(points) >= 3
        and all(isinstance(point, list) and len(point) == 2 for point in points)
        and not any(isinstance(value, list) for point in points for value in point)
    )


def _without_repetition(polygon: Any, repairs: Repairs) -> Any:
    """Repeated points do not change a shape, but pycocotools divides by the distance of neighbouring points."""
    if not isinstance(polygon, list) or len(polygon) % 2 or len(polygon) < 4:
        return polygon
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    kept = [point for point, before in zip(points, [points[-1], *points], strict=False) if point != before]
    if len(kept) == len(points):
        return polygon
    repairs.add(REPEATED_POINTS)
    kept = kept or points[:1]
    # Of equal first and last points the first was removed: rotate, so that the shape starts at the same corner.
    if points[0] == points[-1]:
        kept = [kept[-1], *kept[:-1]]
    return [value for point in kept for value in point]

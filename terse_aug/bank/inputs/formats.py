"""Recognises formats of annotations by the content of their files, for messages to users who chose another source."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

_FILES_SEARCHED = 2_000
"""Of a folder: enough to find an annotation file behind the images."""
_FILES_READ = 4
"""Of each extension in a folder."""
_HEAD_BYTES = 4_096
_YOLO_LINE = re.compile(r"\d+(\s+-?[\d.]+(e[+-]?\d+)?){4,}\s*", re.IGNORECASE)
_XML_TAG = re.compile(r"<([A-Za-z][\w.-]*)")
_XML_ROOTS = {"annotation": "Pascal VOC", "annotations": "CVAT for images"}


class Recognized(NamedTuple):
    """An annotation file, or the first of a folder, and its format."""

    path: Path
    format: str


def recognize(path: Path) -> list[Recognized]:
    """The formats of an annotation file or of those in a folder, at any depth, each once; none for a missing file."""
    found: dict[str, Path] = {}
    for file in [path] if path.is_file() else _annotation_files(path):
        name = _format_of(file)
        if name is not None:
            found.setdefault(name, file)
    return [Recognized(file, name) for name, file in found.items()]


def _annotation_files(folder: Path) -> Iterator[Path]:
    files = (Path(base) / name for base, _, names in os.walk(folder) for name in sorted(names))
    read: Counter[str] = Counter()
    for path in islice(files, _FILES_SEARCHED):
        suffix = path.suffix.lower()
        if suffix in _READERS and read[suffix] < _FILES_READ:
            read[suffix] += 1
            yield path


def _format_of(path: Path) -> str | None:
    reader = _READERS.get(path.suffix.lower())
    try:
        return reader(path) if reader else None
    except (OSError, ValueError, RecursionError):
        return None


def _text_format(path: Path) -> str | None:
    lines = [line for line in _head(path).splitlines() if line.strip()]
    return "YOLO" if lines and _YOLO_LINE.fullmatch(lines[0].strip()) else None


def _xml_format(path: Path) -> str | None:
    tag = _XML_TAG.search(_head(path))
    return _XML_ROOTS.get(tag[1]) if tag else None


def _csv_format(path: Path) -> str | None:
    return "VIA" if "region_shape_attributes" in _head(path) else None


def _head(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(_HEAD_BYTES).decode("utf-8-sig", "replace")


def _json_format(path: Path) -> str | None:
    content = json.loads(path.read_bytes())
    if isinstance(content, list):
        return _list_format(content[0]) if content and isinstance(content[0], Mapping) else None
    return _mapping_format(content) if isinstance(content, Mapping) else None


def _list_format(entry: Mapping[str, Any]) -> str | None:
    if "image_id" in entry and "category_id" in entry:
        return "COCO results"  # predictions, without names of images and categories
    if "data" in entry and ("annotations" in entry or "completions" in entry):
        return "Label Studio"
    return "CreateML" if "image" in entry and isinstance(entry.get("annotations"), list) else None


def _mapping_format(content: Mapping[str, Any]) -> str | None:
    annotations = content.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    first = first if isinstance(first, Mapping) else {}
    if "segments_info" in first:
        return "COCO panoptic"
    if isinstance(annotations, list) and isinstance(content.get("images"), list):
        return "COCO" if isinstance(content.get("categories"), list) else None
    if isinstance(content.get("image"), Mapping) and "segmentation" in first:
        return "SA-1B"
    if isinstance(content.get("shapes"), list):
        return "LabelMe"
    if isinstance(content.get("metadata"), Mapping) and isinstance(content.get("file"), Mapping):
        return "VIA 3"
    entries = content.get("_via_img_metadata", content)
    first = next(iter(entries.values()), None) if isinstance(entries, Mapping) else None
    return "VIA" if isinstance(first, Mapping) and {"filename", "regions"} <= first.keys() else None


_READERS = {".json": _json_format, ".xml": _xml_format, ".txt": _text_format, ".csv": _csv_format}

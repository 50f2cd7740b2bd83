"""Files that name the classes of the colours or numbers of masks: labelmap.txt, class_dict.csv, lists of names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.inputs.mask_files import VOID_COLOR, color_number, read_object_numbers
from terse_aug.bank.inputs.text_files import read_text

_RGB = r"(?P<red>\d{1,3})[\s,;]+(?P<green>\d{1,3})[\s,;]+(?P<blue>\d{1,3})"
_COLORS = (
    re.compile(rf"(?P<name>[^:]*[^:\s])\s*:\s*{_RGB}\s*(?::.*)?"),  # CVAT, with parts and actions
    re.compile(rf"(?P<name>.*[^\s,;:])[\s,;:]+{_RGB}[\s,;:]*"),
    re.compile(rf"{_RGB}[\s,;:]+(?P<name>\S.*)"),
)
_LEADING = re.compile(r"(\d+)[\s,;]+(?=\S)")
_NUMBER = re.compile(r"(\d+)[\s,;:]+(\S.*)|(.*[^\s,;:])([\s,;:]+)(\d+)")
_TITLES = ("id", "ids", "index", "idx", "number", "value", "label", "name", "class", "category")
_BACKGROUND = (
    *("background", "_background_", "__background__", "bg", "void"),
    *("__ignore__", "ignore", "ignored", "unlabelled", "unlabeled"),
)


@dataclass(frozen=True)
class LabelMap:
    """Name of each number; ``colors`` if these are numbers of colours, R + 256 G + 65536 B."""

    names: dict[int, str]
    colors: bool

    def is_background(self, number: int) -> bool:
        """Whether a number is that of the background, or of pixels to ignore, such as VOC's void if it has no name."""
        unnamed = number == 0 or (self.colors and number == VOID_COLOR)
        return self.names.get(number, "background" if unnamed else "").lower() in _BACKGROUND

    def class_names(self) -> list[str]:
        """The names of classes, each once, in the file's order."""
        return list(dict.fromkeys(name for number, name in self.names.items() if not self.is_background(number)))

    def read_mask(self, path: Path) -> NDArray[np.int32]:
        """The numbers of a semantic mask, int32 ``[H, W]``; white is the only class of masks in black and white.

        Raises:
            FileNotFoundError, ValueError: as :func:`read_object_numbers`.
        """
        numbers = read_object_numbers(path, self.colors, may_be_drawn=False).numbers
        classes = [number for number in self.names if not self.is_background(number)]
        if len(classes) == 1 and not self.colors and np.isin(numbers, (0, 255)).all():
            return np.where(numbers, classes[0], 0).astype(np.int32)
        return numbers

    @classmethod
    def read(cls, path: Path) -> LabelMap:
        """Read a text file.

        A line has a name and a colour (``car:64,0,128::`` of CVAT, ``64 0 128 car``, ``car,64,0,128``), or a name and
        a number, or a name only. Names only are numbered from 1, or from 0 if the first is the background's. A first
        line of titles is ignored, and so are numbers that all lines with colours begin with.

        Raises:
            FileNotFoundError: there is no file at ``path``.
            ValueError: the file is no text, or a line has neither form.
        """
        if not path.is_file():
            raise FileNotFoundError(f"expected a file of class names and colours at {path}, found none")
        lines = [line.strip() for line in read_text(path).splitlines()]
        rows = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
        if not rows:
            raise ValueError(f"{path}: expected class names, found none")
        if any(_color_and_name(line) for _, line in rows):
            return cls(_by_color(path, rows), colors=True)
        texts = [line for _, line in rows]
        numbered = _by_number(texts[1:] if _is_title(texts) else texts)
        if numbered is not None:
            return cls(numbered, colors=False)
        return cls(dict(enumerate(texts, 0 if texts[0].lower() in _BACKGROUND else 1)), colors=False)


def _color_and_name(line: str) -> tuple[tuple[int, int, int], str] | None:
    """The colour of a line and its name, if it has both."""
    match = next((match for form in _COLORS if (match := form.fullmatch(line))), None)
    if match is None:
        return None
    return (int(match["red"]), int(match["green"]), int(match["blue"])), match["name"].strip(" \t,;:")


def _by_color(path: Path, rows: Sequence[tuple[int, str]]) -> dict[int, str]:
    """Names by numbers of colours."""
    if not any(map(str.isdigit, rows[0][1])):
        rows = rows[1:]  # titles of a CSV
    without = [(row, _LEADING.sub("", line, count=1)) for row, line in rows]
    if all(_LEADING.match(line) for _, line in rows) and all(_color_and_name(line) for _, line in without):
        rows = without
    names = {}
    for row, line in rows:
        found = _color_and_name(line)
        if found is None or not found[1] or max(found[0]) > 255:
            raise ValueError(f"{path}, line {row}: expected a class name and a colour as NAME:R,G,B, got {line!r}")
        names[color_number(*found[0])] = found[1]
    return names


def _is_title(lines: Sequence[str]) -> bool:
    """Whether the first of several lines has the titles of columns."""
    words = re.split(r"[\W_]+", lines[0].lower())
    return len(words) > 1 and not any(map(str.isdigit, lines[0])) and any(word in _TITLES for word in words)


def _by_number(lines: Sequence[str]) -> dict[int, str] | None:
    """Names by their numbers, unless they are names only, as "Type 1" and "Type 2" are."""
    if not lines:
        return None
    names: dict[int, str] = {}
    spaced = []
    for line in lines:
        match = _NUMBER.fullmatch(line)
        if match is None:
            return None
        names[int(match[1] or match[5])] = (match[2] or match[3]).strip(" ,;:")
        if match[4] is not None and not match[4].strip():
            spaced.append(match[3])
    return names if len(set(spaced)) == len(spaced) else None

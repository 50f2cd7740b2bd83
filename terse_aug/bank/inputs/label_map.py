"""Files that name the classes of the colours or numbers of masks: labelmap.txt, class_dict.csv, lists of names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from terse_aug.bank.inputs.mask_files import color_number
from terse_aug.bank.inputs.text_files import read_text

_COLOR = re.compile(r"(?<!\d)(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})(?!\d)")
_NUMBER = re.compile(r"^(\d+)[\s,;:]+(\S.*)$|^(.*\S)[\s,;:]+(\d+)$")
_BACKGROUND = ("background", "_background_", "__background__", "void", "__ignore__", "ignore", "ignored", "unlabelled")


@dataclass(frozen=True)
class LabelMap:
    """Name of each number; ``colors`` if these are numbers of colours, R + 256 G + 65536 B."""

    names: dict[int, str]
    colors: bool

    def is_background(self, number: int) -> bool:
        """Whether a number is that of the background, or of pixels to ignore."""
        return self.names.get(number, "background" if number == 0 else "").lower() in _BACKGROUND

    def class_names(self) -> list[str]:
        """The names of classes, each once, in the file's order."""
        return list(dict.fromkeys(name for number, name in self.names.items() if not self.is_background(number)))

    @classmethod
    def read(cls, path: Path) -> LabelMap:
        """Read a text file.

        A line has a name and a colour (``car:64,0,128::`` of CVAT, ``64 0 128 car``, ``car,64,0,128``), or a name and
        a number, or a name only. Names only are numbered from 1, or from 0 if the first is the background's.

        Raises:
            FileNotFoundError: there is no file at ``path``.
            ValueError: the file is no text, or a line has neither form.
        """
        if not path.is_file():
            raise FileNotFoundError(f"expected a file of class names and colours at {path}, found none")
        lines = [line.strip() for line in read_text(path).splitlines()]
        rows = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
        if any(_COLOR.search(line) for _, line in rows):
            rows = rows[1:] if not any(map(str.isdigit, rows[0][1])) else rows  # titles of a CSV
            return cls(dict(_color_and_name(path, number, line) for number, line in rows), colors=True)
        if rows and all(_NUMBER.match(line) for _, line in rows):
            matches = [match for _, line in rows if (match := _NUMBER.match(line))]
            return cls({int(own[1] or own[4]): (own[2] or own[3]).strip(" ,;:") for own in matches}, colors=False)
        if not rows:
            raise ValueError(f"{path}: expected class names, found none")
        first = 0 if rows[0][1].lower() in _BACKGROUND else 1
        return cls({number: line for number, (_, line) in enumerate(rows, first)}, colors=False)


def _color_and_name(path: Path, row: int, line: str) -> tuple[int, str]:
    match = _COLOR.search(line)
    name = "" if match is None else (line[: match.start()].strip(" \t,;:") or line[match.end() :].strip(" \t,;:"))
    if match is None or not name or max(map(int, match.groups())) > 255:
        raise ValueError(f"{path}, line {row}: expected a class name and a colour as NAME:R,G,B, got {line!r}")
    red, green, blue = map(int, match.groups())
    return color_number(red, green, blue), name

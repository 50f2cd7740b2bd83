"""Text in pictures: fonts, measures, line breaks. Imports pillow only."""

from __future__ import annotations

from functools import lru_cache
from math import ceil

from PIL import ImageFont


@lru_cache(maxsize=16)
def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own scalable font, ``size`` px high; no font file has to be installed."""
    return ImageFont.load_default(size)


def width_of(text: str, size: int) -> int:
    """Width of a line in px."""
    return ceil(font_of(size).getlength(text))


def line_height(size: int) -> int:
    """Distance of two lines in px."""
    return ceil(1.3 * size)


def printable(text: str) -> str:
    """``text`` in one line that UTF-8 can hold; undecodable bytes of a file name are spelled out."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(character if character.isprintable() else " " for character in text)


def wrapped(text: str, size: int, width: int) -> list[str]:
    """Break ``text`` into lines of at most ``width`` px: at line ends, at spaces, and within words too long."""
    return [line for paragraph in text.splitlines() for line in _broken(printable(paragraph), size, width)]


def _broken(paragraph: str, size: int, width: int) -> list[str]:
    lines: list[str] = []
    line = ""
    for word in paragraph.split(" "):
        longer = f"{line} {word}" if line else word
        if width_of(longer, size) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        *whole, line = _pieces(word, size, width)
        lines += whole
    return [*lines, line]


def _pieces(word: str, size: int, width: int) -> list[str]:
    pieces = [""]
    for character in word:
        if pieces[-1] and width_of(pieces[-1] + character, size) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces

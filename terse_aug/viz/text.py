"""Text in images: fonts, line breaks, printable characters."""

from __future__ import annotations

import textwrap
from functools import lru_cache

from PIL import ImageFont


@lru_cache(maxsize=16)
def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own scalable font, ``size`` px high; no font file has to be installed."""
    return ImageFont.load_default(size)


def printable(text: str) -> str:
    """Text in one line that UTF-8 can encode; undecodable bytes of a file name are escaped."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(character if character.isprintable() else " " for character in text)


def wrap(text: str, size: int, width: int) -> list[str]:
    """Break text into lines of at most ``width`` px, in the font of ``size`` px; words too long are broken, too."""
    font = font_of(size)
    lines: list[str] = []
    for paragraph in map(printable, text.splitlines()):
        # Characters differ in width: start from narrow ones, and allow fewer until every line fits.
        characters = int(width / font.getlength("i"))
        broken = [paragraph]
        while max(map(font.getlength, broken)) > width and characters > 1:
            broken = textwrap.wrap(paragraph, characters)
            characters = int(0.95 * characters)
        lines += broken
    return lines

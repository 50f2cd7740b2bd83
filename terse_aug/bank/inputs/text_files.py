"""Text files of any usual encoding."""

from __future__ import annotations

import codecs
import locale
from pathlib import Path

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16 does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path, encoding: str | None = None) -> str:
    """The content of a text file.

    Args:
        path: of the file.
        encoding: its encoding; by default what the mark at its begin says, UTF-8, UTF-16, or the system's own.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no text in this encoding, or in any of these.
    """
    content = path.read_bytes()
    if encoding is not None:
        try:
            return content.decode(encoding).removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected text in {encoding} ({error})") from error
    for codec in _candidates(content):
        try:
            return content.decode(codec)
        except UnicodeDecodeError:
            continue
    raise ValueError(
        f"{path}: expected text in UTF-8 or UTF-16, got another encoding; convert it or, if it is one of YOLO's, give "
        "its encoding (encoding, --encoding)"
    )


def check_encoding(encoding: str | None) -> None:
    """Raise ``ValueError`` unless an encoding is known, or ``None``."""
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError as error:
        raise ValueError(f"expected an encoding such as utf-8, cp1252 or gb18030, got {encoding!r}") from error


def _candidates(content: bytes) -> list[str]:
    for mark, codec in _MARKS:
        if content.startswith(mark):
            return [codec]
    if b"\0" in content:  # UTF-16 without a mark: most characters are ASCII, whose other byte is 0
        return ["utf-16-le" if content[1::2].count(0) > content[::2].count(0) else "utf-16-be"]
    return ["utf-8", *([] if _is_utf8(own := locale.getpreferredencoding(False)) else [own])]


def _is_utf8(codec: str) -> bool:
    return codecs.lookup(codec).name in ("utf-8", "ascii")

"""Which images a bank may be built from: all, or those on a list. Imports the standard library only."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from terse_aug.bank.build.report import BuildLog


class ImageList:
    """A list of image files, so that a bank is built from the training split only.

    An entry means an image by its path below the image folder or by its last part, each with or without
    extension, whatever the Unicode form and the direction of its slashes.

    Args:
        names: the entries, or the path of a text file with one entry a line (empty lines and lines that
            start with ``#`` are skipped); ``None`` for all images.

    Raises:
        FileNotFoundError: the text file does not exist.
        ValueError: there is no entry, or the file is no text.
    """

    def __init__(self, names: Iterable[str] | str | Path | None):
        self._entries: set[str] | None = None
        self._matched: set[str] = set()
        if names is not None:
            lines = _lines(Path(names)) if isinstance(names, (str, Path)) else list(names)
            self._entries = {_plain(line).as_posix() for line in lines}
            if not self._entries:
                raise ValueError("expected at least one image name in `image_list`, got none")

    def __contains__(self, name: str) -> bool:
        if self._entries is None:
            return True
        path = _plain(name)
        if not path.name:  # an image that does not say which file it is
            return False
        spellings = {path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem}
        found = self._entries & spellings
        self._matched |= found
        return bool(found)

    def report_unmatched(self, ledger: BuildLog) -> None:
        """Count the entries for which no image was met."""
        for entry in sorted((self._entries or set()) - self._matched):
            ledger.drop("listed in `image_list`, but there is no such image", entry)


def _plain(name: str) -> PurePosixPath:
    return PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/")))


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"expected a text file of image names at {path}, found none")
    try:
        stripped = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"expected a text file of image names, got {path}, which is not UTF-8 text") from error
    return [line for line in stripped if line and not line.startswith("#")]

"""Which images a bank is built from: all, or those on a list."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from terse_aug.bank.build.report import BuildLog
from terse_aug.bank.inputs.text_files import read_text

NOT_LISTED = "image is not in `image_list`"
"""Reason to reject the objects of an image."""


class ImageList:
    """A list of image files, such as a training split.

    An entry is the path of an image below the image folder or its last part, each with or without extension, in any
    Unicode form and with any slashes.

    Args:
        names: the entries, or a text file with one entry a line (empty lines and lines that start with ``#`` are
            ignored); ``None`` for all images.

    Raises:
        FileNotFoundError: the text file does not exist.
        ValueError: there is no entry, or the file is no text.
    """

    def __init__(self, names: Iterable[str] | str | Path | None):
        self._entries: set[str] | None = None
        self._matched: set[str] = set()
        if names is not None:
            lines = _read_lines(Path(names)) if isinstance(names, (str, Path)) else list(names)
            self._entries = {_normalized(line).as_posix() for line in lines}
            if not self._entries:
                raise ValueError("expected at least one image name in `image_list`, got none")

    @classmethod
    def of(cls, names: Iterable[str] | str | Path | None) -> ImageList:
        """A list of these names, or the list that is given."""
        return names if isinstance(names, ImageList) else cls(names)

    def __contains__(self, name: str) -> bool:
        if self._entries is None:
            return True
        path = _normalized(name)
        if not path.name:  # an image without a file name
            return False
        matched = self._entries & {path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem}
        self._matched |= matched
        return bool(matched)

    def report_unmatched(self, log: BuildLog) -> None:
        """Count the entries that matched no image."""
        for entry in sorted((self._entries or set()) - self._matched):
            log.drop("listed in `image_list`, but there is no such image", entry)


class SharedImageList(ImageList):
    """A list of images of several parts of a data set, which are read one after the other.

    An entry may begin with the name of a part.

    Attributes:
        part: name of the part that is read.
    """

    part = ""

    def __contains__(self, name: str) -> bool:
        is_of_part = super().__contains__(f"{self.part}/{name}")
        return super().__contains__(name) or is_of_part

    def report_unmatched(self, log: BuildLog) -> None:
        """Count nothing: an entry may be of another part."""

    def report_all(self, log: BuildLog) -> None:
        """Count the entries that matched no image of any part."""
        super().report_unmatched(log)


def _normalized(name: str) -> PurePosixPath:
    return PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/")))


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"expected a text file of image names at {path}, found none")
    stripped = [line.strip() for line in read_text(path).splitlines()]
    return [line for line in stripped if line and not line.startswith("#")]

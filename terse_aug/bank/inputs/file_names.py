"""File names that annotations spell otherwise than the disk. Imports pillow, beside parts of this package."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from terse_aug.bank.inputs.images import is_file, is_in_colour

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")

_SPELLINGS = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}
_EXTENSION = "file name with another extension or none"
_CODECS = ("cp1252", "latin-1", "cp437", "mac_roman")
"""Which UTF-8 is misread as: by Windows, by old programs, by unzip and by old Macs."""


class Fit(NamedTuple):
    """What a name was found to mean.

    Attributes:
        name: of the one file that it fits; ``None`` where there are several, or where it is not the only name that
            fits.
        reason: how they differ.
    """

    name: str | None
    reason: str


def fitting(wanted: Iterable[str], there: Iterable[str]) -> dict[str, Fit]:
    """What names mean that no file has, by ever larger differences.

    A file that has one of the names is none of the others', and one that two names would fit is neither's: so no
    picture is taken for another.

    Args:
        wanted: names, with slashes where they are paths.
        there: names of all files, likewise.

    Returns:
        For every name that is not there but fits something, what it means. Those that fit nothing are not in it.
    """
    names, files = dict.fromkeys(wanted), dict.fromkeys(there)
    open_names = [name for name in names if name not in files]
    free = [file for file in files if file not in names]
    found: dict[str, Fit] = {}
    for reason, fits in _STEPS:
        claims: dict[str, list[str]] = defaultdict(list)
        for name, matching in fits(open_names, free).items():
            if len(matching) == 1:
                claims[matching.pop()].append(name)
            elif matching:
                found[name] = Fit(None, reason)
        for file, claiming in claims.items():
            for name in claiming:
                found[name] = Fit(file if len(claiming) == 1 else None, reason)
        open_names = [name for name in open_names if name not in found]
        free = [file for file in free if file not in claims]
    return found


class Files:
    """The files of a folder, by the names that annotations have for them.

    The folder is listed only when a name is not there.

    Args:
        folder: that the names are relative to.
        names: all that may be asked for.
        deep: whether files in subfolders are among them.
        pictures: whether photographs are meant. Another format than a name's is then trusted only of a file in
            colour, which no mask of class numbers is, and where no name has that format in that folder.
    """

    def __init__(self, folder: Path, names: Iterable[str], deep: bool = True, pictures: bool = True):
        self._pictures = pictures
        self._folder = folder
        self._deep = deep
        self._names = list(names)
        self._fits: dict[str, Fit] | None = None

    def find(self, name: str) -> tuple[str, str | None]:
        """The name of a file as it is on disk, and how it differs from ``name`` where it does.

        Raises:
            LookupError: several files fit, or several names fit the one; the message says which difference.
        """
        if is_file(self._folder / name):
            return name, None
        if self._fits is None:
            self._fits = self._fitting()
        fit = self._fits.get(name)
        if fit is None:
            return name, None
        if fit.name is None:
            raise LookupError(fit.reason)
        if self._pictures and fit.reason == _EXTENSION and not self._is_picture_of(name, fit.name):
            raise LookupError(f"{fit.reason}, which may be a mask or another picture")
        return fit.name, fit.reason

    def _fitting(self) -> dict[str, Fit]:
        there = _files_below(self._folder, self._deep)
        known = set(there)
        claimed: set[str] = set()
        missing = []
        for name in self._names:
            if name in known:
                claimed.add(name)
            elif is_file(self._folder / name):  # a whole path, or one with . or .. or a link in it
                claimed |= _below(self._folder, name)
            else:
                missing.append(name)
        return fitting(missing, [file for file in there if file not in claimed])

    def _is_picture_of(self, name: str, file: str) -> bool:
        kind, place = _kind(file), PurePosixPath(file).parent
        if _kind(_folded(name)) == kind:
            return True
        if (place, kind) in self._kinds:
            return False
        return is_in_colour(self._folder / file)

    @cached_property
    def _kinds(self) -> set[tuple[PurePosixPath, str]]:
        """Folders of all names, with the formats that they have there."""
        paths = (PurePosixPath(_spelled(name)) for name in self._names)
        return {(path.parent, _kind(path.name)) for path in paths}


def _files_below(folder: Path, deep: bool) -> list[str]:
    """Names relative to the folder, with slashes, in the order of the names; links are followed once."""
    names: list[str] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if not deep:
            folders.clear()
        below = Path(place).relative_to(folder)
        names += [(below / file).as_posix() for file in files]
    return sorted(names)


def _below(folder: Path, name: str) -> set[str]:
    """A path relative to the folder, as it is written and where its links lead."""
    paths = (os.path.relpath(of(folder / name), of(folder)) for of in (os.path.abspath, os.path.realpath))
    return {Path(path).as_posix() for path in paths}


def _kind(name: str) -> str:
    """The extension, one for all spellings of a format."""
    suffix = PurePosixPath(name).suffix.casefold()
    return _SPELLINGS.get(suffix, suffix)


def _spelled(name: str) -> str:
    path = PurePosixPath(name.strip().replace("\\", "/"))
    return path.as_posix()


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", _spelled(name))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", _composed(name).casefold())


def _readings(name: str) -> set[str]:
    """A name, and what it may have been before bytes of one encoding were read as another."""
    readings = {name}
    for codec in () if name.isascii() else _CODECS:
        with contextlib.suppress(UnicodeError):
            readings.add(_bytes(name, codec).decode("utf-8"))
        if any("\udc80" <= character <= "\udcff" for character in name):  # bytes on disk that are no UTF-8
            readings.add(name.encode("utf-8", "surrogateescape").decode(codec, "replace"))
    return {_folded(reading) for reading in readings}


def _bytes(text: str, codec: str) -> bytes:
    """As programs write it: a character that the code page lacks is its own number."""
    return b"".join(character.encode("latin-1" if "\x80" <= character <= "\x9f" else codec) for character in text)


def _without_suffix(name: str) -> str | None:
    path = PurePosixPath(name)
    return path.with_suffix("").as_posix() if path.suffix in IMAGE_SUFFIXES else None


def _stems(name: str) -> set[str]:
    """Of a name that may lack its extension."""
    return {stem for reading in _readings(name) for stem in (reading, _without_suffix(reading)) if stem}


def _stems_of_file(name: str) -> set[str]:
    return {stem for reading in _readings(name) if (stem := _without_suffix(reading))}


def _tails(name: str) -> set[str]:
    """All that a path ends with."""
    parts = [part for part in _folded(name).split("/") if part not in ("", "..")]
    return {"/".join(parts[start:]) for start in range(len(parts))}


Fits = Callable[[Iterable[str], Iterable[str]], dict[str, set[str]]]


def _by(keys: Callable[[str], set[str]], of_files: Callable[[str], set[str]] | None = None) -> Fits:
    """Names and files fit that have a key in common."""

    def fits(names: Iterable[str], files: Iterable[str]) -> dict[str, set[str]]:
        by_key: dict[str, set[str]] = defaultdict(set)
        for file in files:
            for key in (of_files or keys)(file):
                by_key[key].add(file)
        return {name: {file for key in keys(name) for file in by_key.get(key, ())} for name in names}

    return fits


def _by_path(names: Iterable[str], files: Iterable[str]) -> dict[str, set[str]]:
    """Names and files fit of which one's whole path is the end of the other's."""
    whole, tails = _by(_tails, lambda file: {_folded(file)}), _by(lambda name: {_folded(name)}, _tails)
    known = list(files)
    longer, shorter = whole(names, known), tails(names, known)
    return {name: longer[name] | shorter[name] for name in longer}


_STEPS: tuple[tuple[str, Fits], ...] = (
    ("file name with other slashes or space around it", _by(lambda name: {_spelled(name)})),
    ("file name in another Unicode form", _by(lambda name: {_composed(name)})),
    ("file name in other capitals", _by(lambda name: {_folded(name)})),
    ("file name in percent codes", _by(lambda name: {_folded(unquote(name))}, lambda name: {_folded(name)})),
    ("file name in another encoding", _by(_readings)),
    (_EXTENSION, _by(_stems, _stems_of_file)),
    ("file lies in another folder than its name says", _by_path),
)

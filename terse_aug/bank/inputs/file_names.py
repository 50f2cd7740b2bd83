"""File names that annotations spell differently from the disk."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from terse_aug.bank.inputs.image_endings import is_image_name
from terse_aug.bank.inputs.images import is_color_image, is_file

_SAME_FORMAT = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}
_OTHER_EXTENSION = "file name with another extension or none"
_SEVERAL = "file name that differs in several ways"
_CODECS = ("cp1252", "latin-1", "cp437", "mac_roman")
"""Which UTF-8 is misread as: by Windows, by old programs, by unzip and by old Macs."""


class NameMatch(NamedTuple):
    """The file that a name means, or ``None`` where several files or names match; and how the names differ."""

    name: str | None
    reason: str


def match_names(wanted: Iterable[str], existing: Iterable[str]) -> dict[str, NameMatch]:
    """Match names without a file to files, by increasing differences.

    A file whose exact name is wanted matches no other name, and a file that two names match belongs to neither: no
    image is confused with another.

    Args:
        wanted: names, with slashes where they are paths.
        existing: names of all files, likewise.

    Returns:
        A match for every wanted name that is not a file but is similar to one. Names without a match are missing.
    """
    names, files = dict.fromkeys(wanted), dict.fromkeys(existing)
    open_names = [name for name in names if name not in files]
    free = [file for file in files if file not in names]
    matches: dict[str, NameMatch] = {}
    for reason, candidates_of in _DIFFERENCES:
        claims: dict[str, list[str]] = defaultdict(list)
        for name, candidates in candidates_of(open_names, free).items():
            if len(candidates) == 1:
                claims[candidates.pop()].append(name)
            elif candidates:
                matches[name] = NameMatch(None, reason)
        for file, claiming in claims.items():
            for name in claiming:
                matches[name] = NameMatch(file if len(claiming) == 1 else None, reason)
        open_names = [name for name in open_names if name not in matches]
        free = [file for file in free if file not in claims]
    return matches


def distinct_ends(paths: Sequence[Path]) -> list[str]:
    """The ends of paths, as few parts as tell them apart, with slashes. Paths that are the same are numbered."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        ends = ["/".join(own[-length:]) for own in parts]
        if len(set(ends)) == len(ends):
            return ends
    return [f"{number}/{path.name}" for number, path in enumerate(paths, 1)]


class FileFinder:
    """Finds the files of a folder by the names that annotations have for them. It is listed when a name is not found.

    Args:
        folder: that the names are relative to.
        names: all names that :meth:`find` may be called with.
        photographs: the files are photographs, not masks. A file of another format than the name's then matches only
            if it is a colour image, and if no name has its format in that folder.
    """

    def __init__(self, folder: Path, names: Iterable[str], photographs: bool = True):
        self._photographs = photographs
        self._folder = folder
        self._names = list(names)

    def find(self, name: str) -> tuple[str, str | None]:
        """The name of a file on disk, and how it differs from ``name`` if it does.

        Raises:
            LookupError: several files match, or several names match the file; the message is the difference.
        """
        if is_file(self._folder / name):
            return name, None
        match = self._matches.get(name)
        if match is None:
            return name, None
        if match.name is None:
            raise LookupError(match.reason)
        may_differ = self._photographs and match.reason in (_OTHER_EXTENSION, _SEVERAL)  # in its format
        if may_differ and not self._is_photograph(name, match.name):
            raise LookupError(f"{match.reason}, which may be a mask or another image")
        return match.name, match.reason

    @cached_property
    def _matches(self) -> dict[str, NameMatch]:
        existing = _list_files(self._folder)
        known = set(existing)
        claimed: set[str] = set()
        missing = []
        for name in self._names:
            if name in known:
                claimed.add(name)
            elif is_file(self._folder / name):  # an absolute path, or one with . or .. or a link in it
                claimed |= _relative_paths(self._folder, name)
            else:
                missing.append(name)
        return match_names(missing, [file for file in existing if file not in claimed])

    def _is_photograph(self, name: str, file: str) -> bool:
        file_format, place = _format(file), PurePosixPath(file).parent
        if _format(_folded(name)) == file_format:
            return True
        return (place, file_format) not in self._formats and is_color_image(self._folder / file)

    @cached_property
    def _formats(self) -> set[tuple[PurePosixPath, str]]:
        """Folders of all names, with the formats that they have there."""
        paths = (PurePosixPath(_with_slashes(name)) for name in self._names)
        return {(path.parent, _format(path.name)) for path in paths}


def _list_files(folder: Path) -> list[str]:
    """Sorted names relative to the folder, with slashes; links are followed once."""
    names: list[str] = []
    visited: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        relative = Path(place).relative_to(folder)
        names += [(relative / file).as_posix() for file in files]
    return sorted(names)


def _relative_paths(folder: Path, name: str) -> set[str]:
    """A path relative to the folder, as it is written and with its links resolved."""
    paths = (os.path.relpath(of(folder / name), of(folder)) for of in (os.path.abspath, os.path.realpath))
    return {Path(path).as_posix() for path in paths}


def _format(name: str) -> str:
    """The extension, the same for all spellings of a format."""
    suffix = PurePosixPath(name).suffix.casefold()
    return _SAME_FORMAT.get(suffix, suffix)


def _with_slashes(name: str) -> str:
    return PurePosixPath(name.strip().replace("\\", "/")).as_posix()


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", _with_slashes(name))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", _composed(name).casefold())


def _unquoted(name: str) -> set[str]:
    """A name, and what it was before its characters were written as percent codes, once or twice."""
    once = unquote(name, errors="surrogateescape")
    return {name, once, unquote(once, errors="surrogateescape")}


def _decodings(name: str) -> set[str]:
    """A name, and what it was before bytes of one encoding were decoded as another."""
    decodings = {name}
    for codec in () if name.isascii() else _CODECS:
        with contextlib.suppress(UnicodeError):
            decodings.add(_encode(name, codec).decode("utf-8"))
        if any("\udc80" <= character <= "\udcff" for character in name):  # bytes on disk that are no UTF-8
            decodings.add(name.encode("utf-8", "surrogateescape").decode(codec, "replace"))
    return {_folded(decoding) for decoding in decodings}


def _encode(text: str, codec: str) -> bytes:
    """As programs do: a character that the code page lacks is written as its own number."""
    return b"".join(character.encode("latin-1" if "\x80" <= character <= "\x9f" else codec) for character in text)


def _file_stems(name: str) -> set[str]:
    """Of a file: its name without the extension of an image."""
    paths = (PurePosixPath(decoding) for decoding in _decodings(name))
    return {path.with_suffix("").as_posix() for path in paths if is_image_name(path)}


def _name_stems(name: str) -> set[str]:
    """Of a wanted name, which may lack its extension."""
    return _decodings(name) | _file_stems(name)


def _tails(name: str) -> set[str]:
    """All ends of a path."""
    parts = [part for part in _folded(name).split("/") if part not in ("", "..")]
    return {"/".join(parts[start:]) for start in range(len(parts))}


def _ends(name: str, stems: Callable[[str], set[str]]) -> set[str]:
    """All ends of a path, without percent codes, damage by encodings, and extension."""
    plain = {stem for own in _unquoted(name) for stem in stems(own)}
    return {end for stem in plain for end in _tails(stem)}


Candidates = Callable[[Iterable[str], Iterable[str]], dict[str, set[str]]]
"""From wanted names and files to the files that each name may mean."""


def _same(keys: Callable[[str], set[str]], file_keys: Callable[[str], set[str]] | None = None) -> Candidates:
    """Names and files match if they have a key in common."""

    def candidates(names: Iterable[str], files: Iterable[str]) -> dict[str, set[str]]:
        by_key: dict[str, set[str]] = defaultdict(set)
        for file in files:
            for key in (file_keys or keys)(file):
                by_key[key].add(file)
        return {name: {file for key in keys(name) for file in by_key.get(key, ())} for name in names}

    return candidates


def _same_tail(names: Iterable[str], files: Iterable[str]) -> dict[str, set[str]]:
    """Names and files match if one's whole path is the end of the other's."""
    files = list(files)
    longer = _same(_tails, lambda file: {_folded(file)})(names, files)
    shorter = _same(lambda name: {_folded(name)}, _tails)(names, files)
    return {name: longer[name] | shorter[name] for name in longer}


def _same_in_several_ways(names: Iterable[str], files: Iterable[str]) -> dict[str, set[str]]:
    """As :func:`_same_tail`, of names that may differ in all other ways, too."""
    files = list(files)

    def of_file(file: str) -> set[str]:
        return {_folded(stem) for own in _unquoted(file) for stem in _file_stems(own)}

    def of_name(name: str) -> set[str]:
        return {_folded(stem) for own in _unquoted(name) for stem in _name_stems(own)}

    longer = _same(lambda name: _ends(name, _name_stems), of_file)(names, files)
    shorter = _same(of_name, lambda file: _ends(file, _file_stems))(names, files)
    return {name: longer[name] | shorter[name] for name in longer}


_DIFFERENCES: tuple[tuple[str, Candidates], ...] = (
    ("file name with other slashes or space around it", _same(lambda name: {_with_slashes(name)})),
    ("file name in another Unicode form", _same(lambda name: {_composed(name)})),
    ("file name in other capitals", _same(lambda name: {_folded(name)})),
    ("file name in percent codes", _same(lambda name: {_folded(own) for own in _unquoted(name)})),
    ("file name in another encoding", _same(_decodings)),
    (_OTHER_EXTENSION, _same(_name_stems, _file_stems)),
    ("file lies in another folder than in its name", _same_tail),
    (_SEVERAL, _same_in_several_ways),
)

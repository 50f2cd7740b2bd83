"""The images of a build, and the foregrounds extracted from them, in chunks that do not depend on each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import PIL

from terse_aug._version import __version__
from terse_aug.bank.build.report import BuildLog
from terse_aug.bank.inputs.masks import MaskInFile
from terse_aug.bank.inputs.pillow_settings import PillowSettings
from terse_aug.bank.storage.index import IndexColumns
from terse_aug.bank.storage.record import FORMAT_VERSION, encode_record
from terse_aug.bank.storage.writer import BankWriter, check_foreground
from terse_aug.structures.foreground import Foreground

_MAX_IMAGES, _MAX_OBJECTS = 8, 64
"""Of a chunk: small enough for a few to fit into memory, large enough for sending them to cost little."""

_VERSIONS = [__version__, FORMAT_VERSION, np.__version__, cv2.__version__, PIL.__version__]


class Extractor(Protocol):
    """Extracts the objects of one image after the other. It is sent to worker processes, and so are its items."""

    def objects(self, item: Any, log: BuildLog) -> Iterator[Foreground]:
        """The foregrounds of an image; what is repaired and rejected is counted in ``log``."""

    def files(self, item: Any) -> Iterable[Path]:
        """The files that are read for them."""


@dataclass(frozen=True)
class Source:
    """What a bank is built from, image by image.

    Attributes:
        items: what is known of each image, in the order of the bank.
        extractor: extracts their objects.
        settings: all that the foregrounds depend on beside the items, for JSON; ``None`` where that cannot be known,
            as with a function of the user's. Such a build cannot be resumed.
        log: what was rejected and repaired before.
        prepare: from an item to what the extractor is given of it, called just before.
        object_count: how many objects an item may have.
    """

    items: Sequence[Any]
    extractor: Extractor
    settings: Mapping[str, Any] | None
    log: BuildLog = field(default_factory=BuildLog)
    prepare: Callable[[Any], Any] = lambda item: item
    object_count: Callable[[Any], int] = lambda _: 1

    def chunks(self) -> list[Sequence[Any]]:
        """The items in groups; the same for the same items."""
        chunks: list[Sequence[Any]] = []
        start = objects = 0
        for number, item in enumerate(self.items):
            own = self.object_count(item)
            if number > start and (number - start == _MAX_IMAGES or objects + own > _MAX_OBJECTS):
                chunks.append(self.items[start:number])
                start, objects = number, 0
            objects += own
        return [*chunks, self.items[start:]] if self.items else []

    def prepared(self, chunk: Sequence[Any]) -> list[Any]:
        """The items of a chunk as the extractor is given them."""
        return [self.prepare(item) for item in chunk]


@dataclass(frozen=True)
class ExtractedChunk:
    """Foregrounds of some images as stored and indexed, what was rejected, and the hash of all input if known."""

    images: int
    records: list[bytes]
    columns: IndexColumns
    log: BuildLog
    identity: str | None


@dataclass(frozen=True)
class ExtractionTask:
    """How chunks of a source are extracted for a bank with these categories and this number of keypoints."""

    extractor: Extractor
    settings: Mapping[str, Any] | None
    categories: Mapping[int, str]
    keypoint_count: int

    @classmethod
    def of(cls, source: Source, writer: BankWriter) -> ExtractionTask:
        """To fill a bank from a source."""
        names = {"categories": sorted(writer.categories.items()), "keypoints": writer.keypoint_names}
        settings = None if source.settings is None else {**source.settings, **names}
        return cls(source.extractor, settings, writer.categories, len(writer.keypoint_names))

    def run(self, items: Sequence[Any], on_image: Callable[[int], None] | None = None) -> ExtractedChunk:
        """Extract the objects of a chunk; the same in whatever process.

        Args:
            items: as the extractor takes them.
            on_image: called with the number of images done.

        Raises:
            ValueError: a foreground breaks the contract of :class:`Foreground`.
        """
        identity = self.identity(items)
        records, columns, log = [], IndexColumns(), BuildLog()
        for done, item in enumerate(items, 1):
            for foreground in self.extractor.objects(item, log):
                check_foreground(foreground, self.categories, self.keypoint_count)
                records.append(encode_record(foreground))
                columns.add(foreground)
            if on_image is not None:
                on_image(done)
        return ExtractedChunk(len(items), records, columns, log, identity)

    def identity(self, items: Sequence[Any]) -> str | None:
        """Hash of all that the foregrounds of a chunk depend on; ``None`` where that cannot be known."""
        if self.settings is None:
            return None
        return identity_of(self.settings, items, (file for item in items for file in self.extractor.files(item)))


def identity_of(settings: Mapping[str, Any], items: Iterable[Any], files: Iterable[Path]) -> str | None:
    """A hash of all that the foregrounds of some images depend on: settings, items, and the status of files.

    Pillow's settings belong to it. It is ``None`` where something is neither a number, text, list, mapping, path, bytes
    nor array.
    """
    versions = [*_VERSIONS, PillowSettings.of_this_process().record]
    content = [versions, dict(settings), list(items), [_file_status(path) for path in files]]
    try:
        return hashlib.blake2b(json.dumps(content, default=plain_value).encode(), digest_size=16).hexdigest()
    except (TypeError, ValueError, RecursionError):
        return None


def _file_status(path: Path) -> list[Any]:
    try:
        status = path.stat()
    except (OSError, ValueError):  # missing, or a name that no file can have
        return [path, None]
    return [path, status.st_size, status.st_mtime_ns]


def plain_value(value: Any) -> Any:
    """What JSON is given for values that it does not know, for ``default=`` of ``json.dumps``."""
    if isinstance(value, MaskInFile):
        return {"mask in file": [str(value.path), value.number, value.colors]}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written")

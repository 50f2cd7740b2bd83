"""Images that objects are cut out of, and their cut-outs, in chunks that do not depend on each other.

What comes out of a chunk is the same in whatever process it is cut. Imports the parts of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from terse_aug.bank.build.journal import Entry, hash_of, identity_of
from terse_aug.bank.build.report import Ledger
from terse_aug.bank.storage.columns import Columns
from terse_aug.bank.storage.record import encode_record
from terse_aug.bank.storage.writer import BankWriter, check_foreground
from terse_aug.structures.foreground import Foreground

_MOST_IMAGES, _MOST_OBJECTS = 8, 64
"""Of a chunk: small enough that a few of them fit into memory, and large enough that handing them over costs little."""


class Extractor(Protocol):
    """Cuts objects out of one image after the other. It is sent to other processes, and so are its images."""

    def objects(self, unit: Any, ledger: Ledger) -> Iterator[Foreground]:
        """The cut-outs of an image; what is mended and left out is counted."""

    def files(self, unit: Any) -> Iterable[Path]:
        """What is read for them."""


@dataclass(frozen=True)
class Source:
    """What a bank is built from, image by image.

    Attributes:
        units: what is known of each image, in the order of the bank.
        cutter: that cuts them.
        settings: all that the cut-outs depend on beside their units, for JSON; ``None`` where that cannot be told, as
            with a function of the user's.
        before: what was counted before.
        prepared: from a unit to what the cutter is given of it, found out when it is its turn.
        objects_of: how many objects an image may have.
    """

    units: Sequence[Any]
    cutter: Extractor
    settings: Mapping[str, Any] | None
    before: Ledger = field(default_factory=Ledger)
    prepared: Callable[[Any], Any] = lambda unit: unit
    objects_of: Callable[[Any], int] = lambda _: 1

    def chunks(self) -> list[Sequence[Any]]:
        """The units in groups; the same for the same units."""
        chunks: list[Sequence[Any]] = []
        start = objects = 0
        for number, unit in enumerate(self.units):
            own = self.objects_of(unit)
            if number > start and (number - start == _MOST_IMAGES or objects + own > _MOST_OBJECTS):
                chunks.append(self.units[start:number])
                start, objects = number, 0
            objects += own
        return [*chunks, self.units[start:]] if self.units else []

    def ready(self, chunk: Sequence[Any]) -> list[Any]:
        """The units of a chunk as the cutter is given them."""
        return [self.prepared(unit) for unit in chunk]


@dataclass(frozen=True)
class Cut:
    """What came out of a chunk.

    Attributes:
        images: of it.
        records: of its cut-outs, as they are stored.
        columns: what the index has of them.
        ledger: what was counted.
        entry: for the journal; ``None`` where the chunk cannot be told from another.
    """

    images: int
    records: list[bytes]
    columns: Columns
    ledger: Ledger
    entry: bytes | None


@dataclass(frozen=True)
class Task:
    """How chunks are cut.

    Attributes:
        cutter: that cuts them.
        settings: see :class:`Source`.
        categories: name of every label that cut-outs may have.
        keypoint_count: rows of their keypoints, where they have some.
    """

    cutter: Extractor
    settings: Mapping[str, Any] | None
    categories: Mapping[int, str]
    keypoint_count: int

    @classmethod
    def of(cls, source: Source, writer: BankWriter) -> Task:
        """To fill a bank from a source."""
        names = {"categories": sorted(writer.categories.items()), "keypoints": writer.keypoint_names}
        settings = None if source.settings is None else {**source.settings, **names}
        return cls(source.cutter, settings, writer.categories, len(writer.keypoint_names))

    def cut(self, units: Sequence[Any], tell: Callable[[int], None] | None = None) -> Cut:
        """Cut out the objects of a chunk.

        Args:
            units: as the cutter takes them.
            tell: called with the number of images done.

        Raises:
            ValueError: a cut-out breaks the contract of :class:`Foreground`.
        """
        identity = self.identity(units)
        records, columns, ledger = [], Columns(), Ledger()
        for done, unit in enumerate(units, 1):
            for foreground in self.cutter.objects(unit, ledger):
                check_foreground(foreground, self.categories, self.keypoint_count)
                records.append(encode_record(foreground))
                columns.add(foreground)
            if tell is not None:
                tell(done)
        entry = None
        if identity is not None:
            entry = Entry(identity, len(units), columns, hash_of(records), ledger).encode()
        return Cut(len(units), records, columns, ledger, entry)

    def identity(self, units: Sequence[Any]) -> str | None:
        """Of all that the cut-outs of a chunk depend on; ``None`` where that cannot be told."""
        if self.settings is None:
            return None
        return identity_of(self.settings, units, (file for unit in units for file in self.cutter.files(unit)))

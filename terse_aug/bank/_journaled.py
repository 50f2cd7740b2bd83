"""A writer whose work outlives its process. Imports the parts of this package, and loky by way of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from terse_aug.bank._chunks import Cut
from terse_aug.bank._journal import Entry, is_journal_key, journal_key, sound_entries
from terse_aug.bank._parallel import apart
from terse_aug.bank._record import record_key
from terse_aug.bank._store import Store
from terse_aug.bank._temporary import TemporarySibling
from terse_aug.bank._writer import BankWriter

_SECONDS_PER_FLUSH = 5.0
"""Work that may be lost; each flush waits for the disk."""
_STOPS = (KeyboardInterrupt, SystemExit, ChildProcessError)
"""After which it is for the user to say when the build goes on."""


class JournaledWriter(BankWriter):
    """Writes chunks with a journal, and finds what another wrote of the same bank before it was stopped.

    Leaving the ``with`` block by Ctrl-C or by the death of a worker keeps what was flushed, as being killed does; any
    other exception removes it.

    Attributes:
        found: the chunks that were found done, which :meth:`go_on` takes over.
        safe_images: images whose cut-outs outlive this process, as far as the journal goes.
    """

    def __init__(
        self,
        path: str | Path,
        categories: Mapping[int, str],
        *,
        keypoint_names: Sequence[str] = (),
        overwrite: bool = False,
    ):
        super().__init__(path, categories, keypoint_names=keypoint_names, overwrite=overwrite)
        self.found: list[Entry] = []
        self.safe_images = 0
        self._images = 0
        self._chunks = 0
        self._flushed = 0.0
        self._has_gap = False

    def __enter__(self) -> JournaledWriter:
        temporary = TemporarySibling(self.path, adopt=True)
        try:
            if temporary.adopted:
                self.found = [Entry.decode(entry) for entry in apart(sound_entries, str(temporary.path)) or []]
                if not self.found:
                    temporary.renew()
        except BaseException:
            temporary.abandon()
            raise
        self._store = self._open(temporary, durable=True)
        self._flushed = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._store is not None
        keep = False
        try:
            if kind is None:
                self._finish(self._store)
            keep = kind is not None and issubclass(kind, _STOPS)
        except _STOPS:
            keep = True
            raise
        finally:
            self._store.close(keep=keep and self.safe_images > 0)

    def go_on(self, count: int) -> None:
        """Take over the first of the chunks that were found, and forget the others."""
        store, found = self._entered(), self.found[:count]
        if not found and self.found:
            store.close()
            self._store = store = self._open(TemporarySibling(self.path), durable=True)
        for entry in found:
            numbers = range(self.count, self.count + len(entry.columns))
            self._take((store.get(record_key(number)) for number in numbers), entry.columns)
            self._images += entry.images
        if found:
            last_record, last_chunk = record_key(self.count), journal_key(len(found))
            store.flush(lambda key: key >= last_record or (is_journal_key(key) and key >= last_chunk))
        self.found, self._chunks, self.safe_images = [], len(found), self._images

    def add_cut(self, cut: Cut) -> None:
        """Append the cut-outs of the next chunk.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        store = self._append(cut.records, cut.columns)
        self._has_gap |= cut.entry is None
        if cut.entry is not None and not self._has_gap:
            store.put([(journal_key(self._chunks), cut.entry)])
            self._images += cut.images
        self._chunks += 1
        if store.is_full or time.monotonic() - self._flushed >= _SECONDS_PER_FLUSH:
            store.flush()
            self._flushed, self.safe_images = time.monotonic(), self._images

    def _flush_all(self, store: Store) -> None:
        store.flush(is_journal_key)

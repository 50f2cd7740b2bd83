"""A writer whose work outlives its process. Imports the parts of this package, and loky by way of them."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

from terse_aug.bank.build.chunks import Cut
from terse_aug.bank.build.journal import is_journal_key, journal_key
from terse_aug.bank.build.partial_build import FoundChunk, ValidPrefix, sound_chunks, sound_part
from terse_aug.bank.build.workers import apart
from terse_aug.bank.storage.lmdb_writer import Store
from terse_aug.bank.storage.temporary_file import CAN_GO_ON, LockedFile, TemporarySibling, abandoned
from terse_aug.bank.storage.writer import BankWriter

_SECONDS_PER_FLUSH = 5.0
"""Work that may be lost; each flush waits for the disk."""
_STOPS = (KeyboardInterrupt, SystemExit, ChildProcessError)
"""After which it is for the user to say when the build goes on."""


class ResumableWriter(BankWriter):
    """Writes chunks with a journal, and takes over what another wrote of the same bank before it was stopped.

    Leaving the ``with`` block by Ctrl-C or by the death of a worker keeps what was flushed, as being killed does; any
    other exception removes it, and on Windows these too. What others left is copied, and stays until the copy is on
    the disk.

    Attributes:
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
        self.safe_images = 0
        self._left: list[LockedFile] = []
        self._useless: list[LockedFile] = []
        self._adopted: tuple[LockedFile, ValidPrefix] | None = None
        self._images = 0
        self._chunks = 0
        self._flushed = 0.0
        self._has_gap = False
        self._is_kept = False

    def __enter__(self) -> ResumableWriter:
        self._left = abandoned(self.path)
        try:
            self._store = self._open(TemporarySibling(self.path), durable=True)
        except BaseException:
            self._release()
            raise
        self._flushed = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._store is not None
        keep = is_published = False
        try:
            if kind is None:
                self._finish(self._store)
                is_published = True
            keep = kind is not None and (self._is_kept or issubclass(kind, _STOPS))
        except _STOPS:
            keep = True
            raise
        finally:
            if not keep and self._adopted is None:
                self.safe_images = 0
            self._store.close(keep=CAN_GO_ON and self._adopted is None and self.safe_images > 0)
            self._release(remove=is_published)

    def adopt(self, identity: str | None) -> None:
        """Look for a build that was stopped and whose first chunk has that identity.

        Others stay until something of this build is safe, and those that could not be read in a process of their own
        until this bank is written.
        """
        lost = 0
        for left in self._left if identity is not None else ():
            sound = apart(sound_part, str(left.path))
            if sound is not None and sound.first == identity:
                self._adopted, self.safe_images = (left, sound), sound.images
                return
            if sound is not None:
                self._useless.append(left)
                lost = max(lost, sound.images)
        if lost:
            warnings.warn(
                f"{self.path} begins anew: a build of it that was stopped, with {lost} images done, was made otherwise "
                "(arguments, annotations, images, versions) and is removed once some of this one is safe; to go on "
                "with it, stop this build now and give the command as it was",
                stacklevel=2,
            )

    def found(self) -> Generator[FoundChunk, None, None]:
        """The chunks of the build that was adopted, read one by one; to be closed."""
        if self._adopted is not None:
            left, sound = self._adopted
            with closing(sound_chunks(str(left.path))) as chunks:
                yield from islice(chunks, sound.chunks)

    def take_over(self, found: FoundChunk) -> None:
        """Append a chunk that was found.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        store = self._append(found.records, found.entry.columns)
        store.put([(journal_key(self._chunks), found.stored)])
        self._images += found.entry.images
        self._chunks += 1
        if store.is_full:
            store.flush()

    def go_on(self) -> None:
        """Make safe what was taken over, and forget the build that it is of."""
        if self._adopted is not None:
            self._entered().flush()
            left, _ = self._adopted
            self._adopted, self.safe_images = None, self._images
            left.discard()
        self._flushed = time.monotonic()

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
            self._make_safe(store)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep what there is whatever is raised within, as long as there are cut-outs."""
        self._make_safe(self._entered())
        self._is_kept = self.count > 0
        yield
        self._is_kept = False

    def _make_safe(self, store: Store) -> None:
        store.flush()
        self._flushed, self.safe_images = time.monotonic(), self._images if CAN_GO_ON else 0
        while self.safe_images and self._useless:
            self._useless.pop().discard()

    def _finish(self, store: Store) -> None:
        with _uninterrupted(f"interrupted, after {self.path} was written"):
            super()._finish(store)
            self.safe_images = 0

    def _flush_all(self, store: Store) -> None:
        store.flush(is_journal_key)

    def _release(self, remove: bool = False) -> None:
        for left in self._left:
            left.discard() if remove else left.abandon()


@contextmanager
def _uninterrupted(message: str) -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block: without its journal, a file that is not in its place is lost."""
    before, came = signal.getsignal(signal.SIGINT), []
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt(message)

"""The LMDB file of a bank that is being written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import lmdb

from terse_aug.bank.storage.lmdb_reader import data_length
from terse_aug.bank.storage.temporary_file import TemporaryFile

_FIRST_MAP_BYTES = 1 << 26
_BATCH_BYTES = 1 << 24


class Store:
    """A temporary file beside the bank's place that takes keys and values in batches. Its methods raise ``OSError``."""

    def __init__(self, path: Path):
        self._temporary = TemporaryFile(path)
        self._batch: list[tuple[bytes, bytes]] = []
        self._batch_bytes = 0
        try:
            self._environment = lmdb.open(
                str(self._temporary.path),
                map_size=_FIRST_MAP_BYTES,
                subdir=False,
                lock=False,  # the only writer, and a lock would leave a second file
                sync=False,
                metasync=False,
                max_spare_txns=0,
            )
        except BaseException:
            self._temporary.discard()
            raise

    def put(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Add to the batch, and write it once it is large enough."""
        for pair in pairs:
            self._batch.append(pair)
            self._batch_bytes += len(pair[1])
        if self._batch_bytes >= _BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the batch in one transaction."""
        while self._batch:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in self._batch:
                        transaction.put(key, value)
                self._batch, self._batch_bytes = [], 0
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            except lmdb.Error as error:
                raise self._disk_error(str(error)) from error

    def get(self, key: bytes) -> bytes:
        """A value that was flushed; ``KeyError`` if there is none."""
        with self._environment.begin() as transaction:
            value = transaction.get(key)
        if value is None:
            raise KeyError(key)
        return bytes(value)

    def publish(self, check: Callable[[], None]) -> None:
        """Put the file in its final place, if the check raises no ``FileExistsError``."""
        self.flush()
        try:
            self._environment.sync(True)
            self._environment.close()
            # Exactly the pages LMDB counts: readers reject a shorter file as truncated.
            os.truncate(self._temporary.path, data_length(self._temporary.path))
            check()
            self._temporary.publish()
        except FileExistsError:
            raise
        except (lmdb.Error, OSError) as error:
            raise self._disk_error(str(error)) from error

    def close(self) -> None:
        """Remove the file, unless it is published."""
        self._environment.close()
        self._temporary.discard()

    def _disk_error(self, reason: str) -> OSError:
        return OSError(
            f"the bank {self._temporary.final} cannot be written ({reason}). "
            "Free some disk space, write elsewhere, or make foregrounds smaller with max_side"
        )

"""The LMDB file of a bank that is being written. Imports lmdb."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TypeVar

import lmdb

from terse_aug.bank.storage.lmdb_reader import data_length
from terse_aug.bank.storage.temporary_file import TemporarySibling

_FIRST_MAP_BYTES = 1 << 26
_BATCH_BYTES = 1 << 24

Result = TypeVar("Result")


class Store:
    """A file beside the bank's place, locked, which takes keys and values in batches.

    Args:
        temporary: the file.
        durable: whether every batch is on the disk before the next begins, so that the file is sound even after a power
            cut; else it is flushed once, at the end.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, temporary: TemporarySibling, durable: bool):
        self._temporary = temporary
        self._batch: list[tuple[bytes, bytes]] = []
        self._batch_bytes = 0
        self._environment = lmdb.open(
            str(temporary.path),
            map_size=_FIRST_MAP_BYTES,
            subdir=False,
            lock=False,  # the only writer, and a lock would leave a second file
            sync=durable,
            metasync=durable,
            max_spare_txns=0,
        )

    def put(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Add to the batch."""
        for pair in pairs:
            self._batch.append(pair)
            self._batch_bytes += len(pair[1])

    @property
    def is_full(self) -> bool:
        """Whether the batch is large enough to be written."""
        return self._batch_bytes >= _BATCH_BYTES

    def flush(self, unwanted: Callable[[bytes], bool] | None = None) -> None:
        """Write the batch in one transaction, and remove keys that are not wanted in the same.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        batch = [pair for pair in self._batch if unwanted is None or not unwanted(pair[0])]

        def write(transaction: lmdb.Transaction) -> None:
            if unwanted is not None:
                _remove(transaction, unwanted)
            for key, value in batch:
                transaction.put(key, value)

        self._transact(write)
        self._batch, self._batch_bytes = [], 0

    def get(self, key: bytes) -> bytes:
        """A value that was flushed.

        Raises:
            KeyError: there is none.
        """
        with self._environment.begin() as transaction:
            value = transaction.get(key)
        if value is None:
            raise KeyError(key)
        return bytes(value)

    def publish(self, check: Callable[[], None]) -> None:
        """Put the file in its final place, if the check raises nothing.

        Raises:
            FileExistsError: the check said so.
            OSError: the disk is full or cannot be written.
        """
        try:
            self._environment.sync(True)
            self._environment.close()
            # Exactly the pages LMDB counts: readers take a shorter file for a truncated one.
            os.truncate(self._temporary.path, data_length(self._temporary.path))
            check()
            self._temporary.publish()
        except FileExistsError:
            raise
        except (lmdb.Error, OSError) as error:
            raise self._disk_error(str(error)) from error

    def close(self, keep: bool = False) -> None:
        """Remove the file, or keep what was flushed; nothing happens to one that is published."""
        self._environment.close()
        self._temporary.abandon() if keep else self._temporary.discard()

    def _transact(self, work: Callable[[lmdb.Transaction], Result]) -> Result:
        """Do it in one transaction; a full map grows, and all of it is tried again."""
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    return work(transaction)
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            except lmdb.Error as error:
                raise self._disk_error(str(error)) from error

    def _disk_error(self, reason: str) -> OSError:
        return OSError(
            f"the bank {self._temporary.final} cannot be written ({reason}); no part of the bank is left behind. "
            "Free some disk space, write elsewhere, or make cut-outs smaller with max_side"
        )


def _remove(transaction: lmdb.Transaction, unwanted: Callable[[bytes], bool]) -> None:
    keys = [key for key in map(bytes, transaction.cursor().iternext(keys=True, values=False)) if unwanted(key)]
    for key in keys:
        transaction.delete(key)

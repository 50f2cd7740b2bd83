"""One LMDB file, checked and mapped into memory for reading.

- LMDB trusts its file. Touching a page that a truncated file lacks kills the process with SIGBUS, so the
  length is compared with LMDB's own last page before anything is mapped.
- py-lmdb refuses to open a file twice in a process, so all banks of a process share one mapping per file.
- A mapping made read-only and without locks keeps no state that belongs to a process: a forked worker reads
  through the one it inherits (py-lmdb would refuse a second one, and closing the first would pull the memory
  from under the arrays handed out). A fork waits until no thread is inside LMDB, so that the child never
  inherits a held mutex.
"""

from __future__ import annotations

import os
import struct
import threading
import weakref
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from numpy.typing import NDArray

# LMDB 0.9 (mdb.c): 16 bytes of page header, then struct MDB_meta. Numbers are in the machine's byte order.
_META = struct.Struct("=IIQQ I92x QQ")  # magic, version, address, map size, page size, last page, transaction
_META_OFFSET = 16
_MAGIC = 0xBEEFC0DE
_PAGE_SIZES = tuple(2**power for power in range(8, 17))

_inside_lmdb = threading.RLock()
_open_files: weakref.WeakValueDictionary[tuple[int, int, int], MappedFile] = weakref.WeakValueDictionary()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_inside_lmdb.acquire,
        after_in_parent=_inside_lmdb.release,
        after_in_child=_inside_lmdb.release,
    )


class MappedFile:
    """Read-only view of an LMDB file; unmapped when the last array or bank that uses it is gone."""

    def __init__(self, path: Path, length: int):
        self.path = path
        self.length = length
        self._environment = lmdb.open(
            str(path),
            map_size=length,
            subdir=False,
            readonly=True,
            create=False,
            lock=False,
            readahead=False,  # foregrounds are read in random order
            max_spare_txns=0,
        )
        self._transaction = self._environment.begin(buffers=True)

    def get(self, key: bytes) -> memoryview | None:
        """The value of ``key``, valid as long as this object lives; ``None`` if absent, ``ValueError`` if damaged."""
        try:
            with _inside_lmdb:
                value: memoryview | None = self._transaction.get(key)
        except lmdb.Error as error:
            raise ValueError(f"{self.path} is damaged ({error}); build the bank again") from error
        return value

    def array(self, key: bytes) -> NDArray[np.uint8] | None:
        """The bytes of ``key`` as a read-only array that keeps the file mapped. ``None`` if absent."""
        value = self.get(key)
        return None if value is None else np.asarray(_Window(self, value))


class _Window:
    """Gives numpy an address and a reference to the mapping behind it (py-lmdb's buffers have none)."""

    def __init__(self, owner: MappedFile, value: memoryview):
        self.owner = owner
        address = np.frombuffer(value, np.uint8).ctypes.data if len(value) else 0
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "shape": (len(value),),
            "typestr": "|u1",
            "data": (address, True),
        }


def open_mapped(path: Path) -> MappedFile:
    """Map the LMDB file at ``path``, or share the mapping that this process has of it.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: it is a folder, no LMDB file, or shorter than its pages.
    """
    length = _checked_length(path)
    status = os.stat(path)
    key = (status.st_dev, status.st_ino, status.st_mtime_ns)
    with _inside_lmdb:
        mapped = _open_files.get(key)
        if mapped is None:
            try:
                mapped = MappedFile(path, length)
            except lmdb.Error as error:
                raise ValueError(f"{path} cannot be opened as a foreground bank: {error}") from error
            _open_files[key] = mapped
    return mapped


def data_length(path: Path) -> int:
    """Bytes that the pages of an LMDB file take, its least length; ``ValueError`` if it is none or too short."""
    with open(path, "rb") as file:
        first = _read_meta(file.read(_META_OFFSET + _META.size))
        if first is None:
            raise ValueError(
                f"{path} is no foreground bank: expected a file made by `terse-aug bank build`, got something else"
            )
        page_size = first[0]
        file.seek(page_size)
        second = _read_meta(file.read(_META_OFFSET + _META.size))
    if second is None:
        raise ValueError(f"{path} is truncated or damaged: its second page is missing; copy or build it again")
    _, last_page, _ = max(first, second, key=lambda meta: meta[2])
    return page_size * (last_page + 1)


def _read_meta(page: bytes) -> tuple[int, int, int] | None:
    """Page size, last page and transaction number of a meta page; ``None`` if it is none."""
    if len(page) < _META_OFFSET + _META.size:
        return None
    magic, _, _, _, page_size, last_page, transaction = _META.unpack_from(page, _META_OFFSET)
    if magic != _MAGIC or page_size not in _PAGE_SIZES:
        return None
    return page_size, last_page, transaction


def _checked_length(path: Path) -> int:
    if path.is_dir():
        raise ValueError(f"expected a foreground bank (one file), got the folder {path}")
    if not path.exists():
        raise FileNotFoundError(f"no foreground bank at {path}; `terse-aug bank build` makes one")
    length, expected = path.stat().st_size, data_length(path)
    if length < expected:
        raise ValueError(f"{path} is truncated: expected {expected} bytes, got {length}; copy or build the bank again")
    return length

"""The index arrays of a bank: one value per array in the file, so that opening a bank reads no records."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.storage.lmdb_reader import MappedFile
from terse_aug.structures.foreground import Foreground

CENTERS_KEY = b"centers"
"""Left out of banks in which no center is known, and not part of the fingerprint, since training does not use them."""


class _Column(NamedTuple):
    key: bytes
    dtype: np.dtype[Any]
    numbers: int
    """For each foreground."""


_COLUMNS = {
    "labels": _Column(b"labels", np.dtype("<i8"), 1),
    "relative_sizes": _Column(b"extents", np.dtype("<f4"), 1),
    "sizes": _Column(b"sizes", np.dtype("<i4"), 2),
    "centers": _Column(CENTERS_KEY, np.dtype("<f4"), 2),
}


class IndexColumns:
    """The index of a bank that is being written; sizes are height and width in px, unknown centers NaN."""

    def __init__(self) -> None:
        self.labels, self.relative_sizes = array("q"), array("f")
        self.sizes, self.centers = array("i"), array("f")

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, foreground: Foreground) -> None:
        """Append one foreground."""
        self.labels.append(foreground.label)
        self.relative_sizes.append(foreground.relative_size)
        self.sizes.extend(foreground.rgba.shape[:2])
        self.centers.extend(foreground.center or (math.nan, math.nan))

    def extend(self, other: IndexColumns) -> None:
        """Append those of others."""
        for name, values in vars(self).items():
            values.extend(getattr(other, name))

    def encode(self) -> dict[bytes, bytes]:
        """The arrays by key, as they are stored."""
        arrays = {column: np.asarray(getattr(self, name)) for name, column in _COLUMNS.items()}
        return {
            column.key: values.astype(column.dtype).tobytes()
            for column, values in arrays.items()
            if column.key != CENTERS_KEY or not np.isnan(values).all()
        }

    def as_lists(self) -> dict[str, list[float]]:
        """For JSON."""
        return {name: values.tolist() for name, values in vars(self).items()}

    @classmethod
    def from_lists(cls, lists: Mapping[str, Sequence[float]]) -> IndexColumns:
        """The inverse of :meth:`as_lists`."""
        columns = cls()
        for name, values in vars(columns).items():
            values.extend(lists[name])
        return columns


def read_index(path: Path, mapped: MappedFile, count: int) -> dict[str, NDArray[Any]]:
    """The index arrays of a file, read-only.

    Args:
        path: of the file, for messages.
        mapped: the file.
        count: number of foregrounds in it.

    Returns:
        ``labels`` int64 ``[n]``, ``relative_sizes`` float32 ``[n]``, ``sizes`` int32 ``[n, 2]`` and ``centers`` float32
        ``[n, 2]``, NaN where unknown.

    Raises:
        ValueError: an array is missing or of another length.
    """
    if count < 1:
        raise ValueError(f"{path} has no foregrounds; build it again from data that keeps some")
    arrays: dict[str, NDArray[Any]] = {}
    for name, column in _COLUMNS.items():
        stored = mapped.array(column.key)
        if stored is None and column.key == CENTERS_KEY:
            arrays[name] = np.broadcast_to(np.float32(np.nan), (count, 2))
            continue
        expected = count * column.numbers * column.dtype.itemsize
        if stored is None:
            raise ValueError(f"{path} is damaged: its {name} are missing; build it again")
        if len(stored) != expected:
            raise ValueError(
                f"{path} is damaged: expected {expected} bytes of {name} for {count} foregrounds, got {len(stored)}; "
                "build it again"
            )
        # Short values lie at any even address; only those are copied, long ones start on their own page.
        aligned = stored if stored.ctypes.data % 8 == 0 else stored.copy()
        arrays[name] = aligned.view(column.dtype).reshape((count, 2) if column.numbers == 2 else count)
    for values in arrays.values():
        values.flags.writeable = False
    return arrays

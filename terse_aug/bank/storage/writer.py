"""Writes a bank, whole or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.storage.fingerprint import Fingerprint
from terse_aug.bank.storage.index import IndexColumns
from terse_aug.bank.storage.lmdb_writer import Store
from terse_aug.bank.storage.record import (
    DESCRIPTION_KEY,
    Description,
    decode_record,
    encode_description,
    encode_record,
    record_key,
    storable,
)
from terse_aug.structures.foreground import MAX_SIDE, Foreground


class BankWriter:
    """Writes foregrounds into a new bank; a context manager.

    Leaving the ``with`` block normally puts the bank in place. Leaving it by an exception (Ctrl-C too)
    removes what was written; a killed process leaves a hidden ``.NAME.*.building`` file that the next writer
    of the same bank removes. Readers of an older bank at ``path`` keep reading the older one.

    Args:
        path: where the bank goes; its folder must exist.
        categories: name of every label that foregrounds may have.
        keypoint_names: names of the keypoints, one per row of every foreground's ``keypoints``.
        overwrite: replace an existing file.

    Attributes:
        built: how the bank was built, stored in it as JSON; may be filled until the block is left.

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is false.
        FileNotFoundError: the folder of ``path`` does not exist.
        ValueError: ``path`` is a folder; on leaving the block: no foreground was added.
        OSError: the disk is full or cannot be written.

    Example:
        >>> with BankWriter("people.bank", {1: "person"}) as writer:  # doctest: +SKIP
        ...     writer.add(foreground)
    """

    def __init__(
        self,
        path: str | Path,
        categories: Mapping[int, str],
        *,
        keypoint_names: Sequence[str] = (),
        overwrite: bool = False,
    ):
        self.path = Path(path).absolute()
        self.built: dict[str, Any] = {}
        self.categories = dict(categories)
        self.keypoint_names = tuple(keypoint_names)
        self.overwrite = overwrite
        self._columns = IndexColumns()
        self._fingerprint = Fingerprint()
        self._open_store: Store | None = None
        check_place(self.path, overwrite)

    @property
    def count(self) -> int:
        """Number of foregrounds added so far."""
        return len(self._columns)

    def count_per_label(self) -> Counter[int]:
        """Number of foregrounds added so far, per label."""
        return Counter(self._columns.labels)

    def __enter__(self) -> BankWriter:
        self._open_store = Store(self.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._store.close()

    def add(self, foreground: Foreground) -> None:
        """Append one foreground; ``ValueError`` if it, its label or its keypoints are not as they have to be."""
        check_foreground(foreground, self.categories, len(self.keypoint_names))
        columns = IndexColumns()
        columns.add(foreground)
        self.add_records([encode_record(foreground)], columns)

    def add_records(self, records: Sequence[bytes], columns: IndexColumns) -> None:
        """Append checked foregrounds as they are stored: a record each, and their part of the index."""
        self._store.put((record_key(number), record) for number, record in enumerate(records, self.count))
        for record in records:
            self._fingerprint.add(record)
        self._columns.extend(columns)

    def read(self, numbers: Iterable[int]) -> list[Foreground]:
        """Some of the foregrounds added so far."""
        self._store.flush()
        found = []
        for number in numbers:
            height, width = self._columns.sizes[2 * number : 2 * number + 2]
            label, relative_size = self._columns.labels[number], self._columns.relative_sizes[number]
            record = memoryview(self._store.get(record_key(number)))
            found.append(decode_record(record, (height, width), label, relative_size))
        return found

    @property
    def _store(self) -> Store:
        if self._open_store is None:
            raise ValueError("add foregrounds inside `with BankWriter(...) as writer:`")
        return self._open_store

    def _finish(self) -> None:
        if not self.count:
            raise ValueError(f"no foreground was kept, so no bank is written to {self.path}")
        index = self._columns.encode()
        used = set(self._columns.labels)
        names = {label: storable(name) for label, name in sorted(self.categories.items()) if label in used}
        keypoint_names = tuple(map(storable, self.keypoint_names))
        fingerprint = self._fingerprint.finish(index, names, keypoint_names)
        description = Description(self.count, names, keypoint_names, fingerprint, dict(self.built))
        self._store.put([*index.items(), (DESCRIPTION_KEY, encode_description(description))])
        # A file may have appeared there during the build.
        self._store.publish(lambda: check_place(self.path, self.overwrite))


def check_place(path: Path, overwrite: bool) -> None:
    """Check that a bank can be written to ``path``; errors as of :class:`BankWriter`."""
    if path.is_dir():
        raise ValueError(f"expected a file to write the bank to, got the folder {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; create it first")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name, or replace it with overwrite=True (--overwrite)")


def check_foreground(foreground: Foreground, categories: Mapping[int, str], keypoint_count: int) -> None:
    """Raise ``ValueError`` where a foreground breaks the contract of :class:`Foreground`."""
    where = f"foreground {foreground.source!r}"
    _check_pixels(foreground.rgba, where)
    if foreground.label not in categories:
        raise ValueError(f"{where}: expected a label among {sorted(categories)}, got {foreground.label!r}")
    if not (np.isfinite(foreground.relative_size) and foreground.relative_size > 0):
        raise ValueError(f"{where}: expected a finite relative_size above 0, got {foreground.relative_size!r}")
    center = foreground.center
    if center is not None and not (len(center) == 2 and all(0 <= value <= 1 for value in center)):
        raise ValueError(f"{where}: expected a center of two fractions of the image, 0 to 1, got {center!r}")
    if foreground.keypoints is not None:
        _check_keypoints(foreground.keypoints, keypoint_count, where)


def _check_pixels(rgba: NDArray[np.uint8], where: str) -> None:
    if rgba.dtype != np.uint8 or rgba.ndim != 3 or rgba.shape[2] != 4:
        raise ValueError(f"{where}: expected rgba uint8 [h, w, 4], got {rgba.dtype} {list(rgba.shape)}")
    if min(rgba.shape) < 1 or max(rgba.shape) > MAX_SIDE:
        raise ValueError(f"{where}: expected sides of 1 to {MAX_SIDE} px, got {list(rgba.shape[:2])}")
    alpha = rgba[..., 3]
    if not all(edge.any() for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1])):
        raise ValueError(f"{where}: expected the tight crop of alpha > 0, got an empty row or column at its edge")


def _check_keypoints(keypoints: NDArray[np.float32], count: int, where: str) -> None:
    if keypoints.dtype != np.float32 or keypoints.shape != (count, 3):
        raise ValueError(
            f"{where}: expected keypoints float32 [{count}, 3], one row per keypoint name, "
            f"got {keypoints.dtype} {list(keypoints.shape)}"
        )
    if not np.isfinite(keypoints).all():
        raise ValueError(f"{where}: expected finite keypoints")

"""Writes a bank, whole or not at all. Imports numpy and lmdb only."""

from __future__ import annotations

import hashlib
import math
import os
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank._foreground import Foreground
from terse_aug.bank._mapped_file import data_length
from terse_aug.bank._record import (
    CENTERS_DTYPE,
    CENTERS_KEY,
    DESCRIPTION_KEY,
    INDEX_DTYPES,
    Description,
    encode_description,
    encode_record,
    record_key,
)
from terse_aug.bank._temporary import TemporarySibling

_FIRST_MAP_BYTES = 1 << 26
_BATCH_BYTES = 1 << 24
_MAX_SIDE = 16384  # px; one cut-out then stays below LMDB's limit of 4 GiB a value


class BankWriter:
    """Writes cut-outs into a new bank; a context manager.

    Leaving the ``with`` block normally puts the bank in place. Leaving it by an exception (Ctrl-C too)
    removes what was written; a killed process leaves a hidden ``.NAME.*.building`` file that the next build
    of the same bank removes. Readers of an older bank at ``path`` keep reading the older one.

    Args:
        path: where the bank goes; its folder must exist.
        categories: name of every label that :meth:`add` may meet.
        keypoint_names: names of the keypoints, one per row of every cut-out's ``keypoints``.
        overwrite: replace an existing file.

    Attributes:
        count: cut-outs added so far.
        overwrite: whether an existing file is replaced.
        built: how the bank was built, stored in it as JSON; may be filled until the block is left.

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is false.
        FileNotFoundError: the folder of ``path`` does not exist.
        ValueError: ``path`` is a folder; on leaving the block: no cut-out was added.
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
        self.count = 0
        self.built: dict[str, Any] = {}
        self._categories = dict(categories)
        self._keypoint_names = tuple(keypoint_names)
        self.overwrite = overwrite
        self._labels, self._extents, self._sizes, self._centers = array("q"), array("f"), array("i"), array("f")
        self._hash = hashlib.blake2b(digest_size=16)
        self._batch: list[tuple[bytes, bytes]] = []
        self._batch_bytes = 0
        self._temporary: TemporarySibling | None = None
        self._check_place()

    def __enter__(self) -> BankWriter:
        self._temporary = TemporarySibling(self.path)
        try:
            self._environment = lmdb.open(
                str(self._temporary.path),
                map_size=_FIRST_MAP_BYTES,
                subdir=False,
                lock=False,  # the only writer, and a lock would leave a second file
                sync=False,  # flushed once, at the end
                metasync=False,
                max_spare_txns=0,
            )
        except BaseException:
            self._temporary.discard()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._temporary is not None
        try:
            if kind is None:
                self._finish()
        finally:
            self._environment.close()
            self._temporary.discard()

    def add(self, foreground: Foreground) -> None:
        """Append one cut-out.

        Raises:
            ValueError: it breaks the contract of :class:`Foreground`, or its label or keypoints are not
                those that this writer was opened for.
            OSError: the disk is full or cannot be written.
        """
        if self._temporary is None:
            raise ValueError("add cut-outs inside `with BankWriter(...) as writer:`")
        check_foreground(foreground, self._categories, len(self._keypoint_names))
        record = encode_record(foreground)
        height, width = foreground.rgba.shape[:2]
        self._labels.append(foreground.label)
        self._extents.append(foreground.extent)
        self._sizes.extend((height, width))
        self._centers.extend(foreground.center or (math.nan, math.nan))
        self._hash.update(record)
        self._batch.append((record_key(self.count), record))
        self._batch_bytes += len(record)
        self.count += 1
        if self._batch_bytes >= _BATCH_BYTES:
            self._flush()

    def _finish(self) -> None:
        if not self.count:
            raise ValueError(f"no cut-out was kept, so no bank is written to {self.path}")
        index = {b"labels": self._labels, b"extents": self._extents, b"sizes": self._sizes}
        for key, dtype in INDEX_DTYPES.items():
            values = np.asarray(index[key]).astype(dtype).tobytes()
            self._hash.update(values)
            self._batch.append((key, values))
        centers = np.asarray(self._centers).astype(CENTERS_DTYPE)
        if not np.isnan(centers).all():
            self._batch.append((CENTERS_KEY, centers.tobytes()))
        used = set(self._labels)
        names = {label: name for label, name in sorted(self._categories.items()) if label in used}
        self._hash.update(repr((names, self._keypoint_names)).encode("utf-8"))
        description = Description(self.count, names, self._keypoint_names, self._hash.hexdigest(), dict(self.built))
        self._batch.append((DESCRIPTION_KEY, encode_description(description)))
        self._flush()
        self._publish()

    def _flush(self) -> None:
        """Write the batch; a full map grows and the whole batch is tried again."""
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in self._batch:
                        transaction.put(key, value)
                break
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            except lmdb.Error as error:
                raise self._disk_error(str(error)) from error
        self._batch, self._batch_bytes = [], 0

    def _publish(self) -> None:
        assert self._temporary is not None
        try:
            self._environment.sync(True)
            self._environment.close()
            # Exactly the pages LMDB counts: readers take a shorter file for a truncated one.
            os.truncate(self._temporary.path, data_length(self._temporary.path))
            self._check_place()  # somebody else may have put a file there in the meantime
            self._temporary.publish()
        except FileExistsError:
            raise
        except (lmdb.Error, OSError) as error:
            raise self._disk_error(str(error)) from error

    def _check_place(self) -> None:
        if self.path.is_dir():
            raise ValueError(f"expected a file to write the bank to, got the folder {self.path}")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"the folder {self.path.parent} does not exist; create it first")
        if self.path.exists() and not self.overwrite:
            raise FileExistsError(
                f"{self.path} exists; choose another name, or replace it with overwrite=True (--overwrite)"
            )

    def _disk_error(self, reason: str) -> OSError:
        return OSError(
            f"the bank {self.path} cannot be written ({reason}); nothing is left behind. "
            "Free some disk space, write elsewhere, or make cut-outs smaller with max_side"
        )


def check_foreground(foreground: Foreground, categories: Mapping[int, str], keypoint_count: int) -> None:
    """Raise ``ValueError`` where a cut-out breaks the contract of :class:`Foreground`."""
    where = f"cut-out {foreground.source!r}"
    _check_pixels(foreground.rgba, where)
    if foreground.label not in categories:
        raise ValueError(f"{where}: expected a label among {sorted(categories)}, got {foreground.label!r}")
    if not (np.isfinite(foreground.extent) and foreground.extent > 0):
        raise ValueError(f"{where}: expected a finite extent above 0, got {foreground.extent!r}")
    center = foreground.center
    if center is not None and not (len(center) == 2 and all(0 <= part <= 1 for part in center)):
        raise ValueError(f"{where}: expected a center of two parts of the image, 0 to 1, got {center!r}")
    if foreground.keypoints is not None:
        _check_keypoints(foreground.keypoints, keypoint_count, where)


def _check_pixels(rgba: NDArray[np.uint8], where: str) -> None:
    if rgba.dtype != np.uint8 or rgba.ndim != 3 or rgba.shape[2] != 4:
        raise ValueError(f"{where}: expected rgba uint8 [h, w, 4], got {rgba.dtype} {list(rgba.shape)}")
    if min(rgba.shape) < 1 or max(rgba.shape) > _MAX_SIDE:
        raise ValueError(f"{where}: expected sides of 1 to {_MAX_SIDE} px, got {list(rgba.shape[:2])}")
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

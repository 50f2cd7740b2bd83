"""A store of hard examples on disk."""

from __future__ import annotations

import io
import json
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb
import torch
from torch import Tensor

from terse_aug.structures.annotations import OBJECT_FIELDS, Target
from terse_aug.structures.pixel_format import PixelFormat

_FORMAT = 2
_HEADER = b"head"
_FIRST_MAP_BYTES = 1 << 26


class HardExampleCache:
    """A bounded store of composites with their targets; a sequence, the oldest first.

    It is one LMDB file, and every :meth:`add` is a transaction that survives a kill. Images are stored with 8 bits per
    channel. The file holds up to twice the capacity, so that :meth:`rollback` restores the examples that newer ones had
    replaced.

    Several processes may use the same file, each with a cache of its own opened after forking.

    Args:
        path: the file; an existing cache is continued.
        capacity: examples kept; a new one replaces the oldest.
        pixel_format: format of the images; by default RGB in [0, 1].

    Raises:
        ValueError: a capacity below 1, or a file that cannot be opened, is no cache of this version or has another
            capacity.
    """

    def __init__(self, path: str | Path, capacity: int = 50_000, pixel_format: PixelFormat | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1, got {capacity}")
        self.path = Path(path).absolute()
        self.capacity = capacity
        self.pixel_format = pixel_format or PixelFormat()
        try:
            self._store = lmdb.open(str(self.path), map_size=_FIRST_MAP_BYTES, subdir=False, metasync=False)
        except lmdb.Error as error:
            raise ValueError(f"{path} cannot be opened as a cache of hard examples: {error}") from error
        try:
            self._check_header()
        except ValueError:
            self.close()
            raise

    def __len__(self) -> int:
        return min(self.written, self.capacity)

    @property
    def written(self) -> int:
        """Number of examples added in total, including replaced ones."""
        written: int = self._read_header()["written"]
        return written

    @property
    def id(self) -> str:
        """A unique identifier."""
        unique: str = self._read_header()["id"]
        return unique

    @property
    def counts(self) -> dict[int, int]:
        """Number of examples added in total, by hard label."""
        return {int(label): count for label, count in self._read_header()["counts"].items()}

    def add(self, image: Tensor, target: Target, label: int) -> None:
        """Add a composite.

        Args:
            image: ``[3, H, W]`` in the cache's pixel format, or uint8 in its channel order.
            target: its target; only per-object fields are stored.
            label: the class of the hard object.
        """
        label = int(label)
        # Cloned: torch.save stores the whole storage of a view.
        fields = {name: value.detach().cpu().clone() for name, value in target.items() if name in OBJECT_FIELDS}
        own = image.detach().cpu()
        rgb = self.pixel_format.decode(own if own.dtype == torch.uint8 else own.float()).clamp(0, 1)
        content = io.BytesIO()
        torch.save({"image": (rgb * 255).round().to(torch.uint8), "target": fields, "label": label}, content)
        value = content.getvalue()

        def put(transaction: lmdb.Transaction, header: dict[str, Any]) -> dict[str, Any]:
            transaction.delete(_key(header["written"] - 2 * self.capacity))
            transaction.put(_key(header["written"]), value)
            counts = Counter(header["counts"]) + Counter({str(label): 1})
            return {"written": header["written"] + 1, "counts": counts}

        self._update(put)

    def __getitem__(self, position: int) -> tuple[Tensor, Target]:
        """Image float ``[3, H, W]`` and target of an example, on the CPU.

        Raises:
            IndexError: there is no such example.
        """
        with self._begin() as transaction:
            written = _header(transaction)["written"]
            count = min(written, self.capacity)
            if not -count <= position < count:
                raise IndexError(f"the cache has {count} examples, got position {position}")
            record = _record(transaction, written - count + position % count)
        return self.pixel_format.encode(record["image"].float() / 255), record["target"]

    def rollback(self, written: int) -> None:
        """Remove the newest examples, as if they had never been added.

        Args:
            written: :attr:`written` before they were added.

        Raises:
            ValueError: more than there is, or so many that the replaced ones cannot be restored.
        """

        def remove(transaction: lmdb.Transaction, header: dict[str, Any]) -> dict[str, Any]:
            oldest = max(written - self.capacity, 0)
            there = oldest == written or transaction.get(_key(oldest)) is not None
            if not (0 <= written <= header["written"] and there):
                raise ValueError(
                    f"{self.path}: {header['written']} examples were added and about the last {self.capacity} can be "
                    f"removed, not all after the first {written}"
                )
            counts = Counter(header["counts"])
            for number in range(written, header["written"]):
                counts[str(_record(transaction, number)["label"])] -= 1
                transaction.delete(_key(number))
            return {"written": written, "counts": +counts}

        self._update(remove)

    def sample(self, count: int, generator: torch.Generator) -> tuple[list[Tensor], list[Target]]:
        """Draw examples uniformly, with replacement.

        Raises:
            ValueError: the cache is empty.
        """
        stored = len(self)
        if not stored:
            raise ValueError(f"{self.path}: the cache is empty")
        drawn = [self[position] for position in torch.randint(stored, (count,), generator=generator).tolist()]
        return [image for image, _ in drawn], [target for _, target in drawn]

    def sync(self) -> None:
        """Flush to the disk, so that a power failure loses nothing."""
        self._store.sync(True)

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def __enter__(self) -> HardExampleCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _update(self, change: Callable[[lmdb.Transaction, dict[str, Any]], dict[str, Any]]) -> None:
        """Update the header in a transaction, which is repeated in a larger map if it does not fit."""
        while True:
            try:
                with self._begin(write=True) as transaction:
                    header = _header(transaction)
                    header |= change(transaction, header)
                    transaction.put(_HEADER, json.dumps(header).encode())
                return
            except lmdb.MapFullError:
                self._store.set_mapsize(2 * self._store.info()["map_size"])

    def _begin(self, write: bool = False) -> lmdb.Transaction:
        try:
            return self._store.begin(write=write)
        except lmdb.MapResizedError:  # by another process
            self._store.set_mapsize(0)
            return self._store.begin(write=write)

    def _read_header(self) -> dict[str, Any]:
        with self._begin() as transaction:
            return _header(transaction)

    def _check_header(self) -> None:
        with self._begin(write=True) as transaction:
            if transaction.get(_HEADER) is None:
                if transaction.stat()["entries"]:
                    raise ValueError(f"{self.path} is an LMDB file, but no cache of hard examples")
                new = {"format": _FORMAT, "capacity": self.capacity, "id": uuid.uuid4().hex, "written": 0, "counts": {}}
                transaction.put(_HEADER, json.dumps(new).encode())
            header = _header(transaction)
        if (header.get("format"), header.get("capacity")) != (_FORMAT, self.capacity):
            raise ValueError(
                f"{self.path}: expected a cache of format {_FORMAT} and capacity {self.capacity}, got "
                f"{header.get('format')} and {header.get('capacity')}; choose another file"
            )


def _header(transaction: lmdb.Transaction) -> dict[str, Any]:
    content = transaction.get(_HEADER)
    assert content is not None
    header: dict[str, Any] = json.loads(bytes(content))
    return header


def _key(number: int) -> bytes:
    return b"%016d" % number


def _record(transaction: lmdb.Transaction, number: int) -> dict[str, Any]:
    content = transaction.get(_key(number))
    assert content is not None
    record: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return record

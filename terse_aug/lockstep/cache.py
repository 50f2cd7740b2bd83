"""Hard composites on disk. Imports torch and lmdb."""

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
_HEAD = b"head"
_FIRST_MAP_BYTES = 1 << 26


class HardExampleCache:
    """A bounded store of composites with their targets; a sequence, the oldest first.

    It lives in one LMDB file, so that its size is a question of the disk and what has been added survives a kill:
    every :meth:`add` is a transaction. Images are kept with 8 bits a channel. The file holds up to twice the capacity,
    so that the newest examples can be taken back (:meth:`rollback`) and those that had made room for them be there
    again.

    Several processes may use the same file, each with a cache of its own made after forking.

    Args:
        path: the file; an existing cache is gone on with.
        capacity: examples kept; the oldest makes room.
        pixels: format of the images; by default RGB in [0, 1].

    Raises:
        ValueError: a capacity below 1, or a file that cannot be opened, is no cache of this version or has another
            capacity.
    """

    def __init__(self, path: str | Path, capacity: int = 50_000, pixels: PixelFormat | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1, got {capacity}")
        self.path = Path(path).absolute()
        self.capacity = capacity
        self.pixels = pixels or PixelFormat()
        try:
            self._store = lmdb.open(str(self.path), map_size=_FIRST_MAP_BYTES, subdir=False, metasync=False)
        except lmdb.Error as error:
            raise ValueError(f"{path} cannot be opened as a cache of hard examples: {error}") from error
        try:
            self._check_head()
        except ValueError:
            self.close()
            raise

    def __len__(self) -> int:
        return min(self.written, self.capacity)

    @property
    def written(self) -> int:
        """Examples added in all, also those that had to make room."""
        written: int = self._head()["written"]
        return written

    @property
    def id(self) -> str:
        """A name that no other cache has."""
        name: str = self._head()["id"]
        return name

    @property
    def counts(self) -> dict[int, int]:
        """Examples added in all, by the label that made them hard."""
        return {int(label): count for label, count in self._head()["counts"].items()}

    def add(self, image: Tensor, target: Target, label: int) -> None:
        """Add a composite.

        Args:
            image: float ``[3, H, W]`` in the cache's pixel format.
            target: its target; only per-object fields are kept.
            label: the class that is hard in it.
        """
        label = int(label)
        # A copy: what is saved of a view is all that it looks into.
        kept = {name: value.detach().cpu().clone() for name, value in target.items() if name in OBJECT_FIELDS}
        rgb = self.pixels.decode(image.detach().float().cpu()).clamp(0, 1)
        content = io.BytesIO()
        torch.save({"image": (rgb * 255).round().to(torch.uint8), "target": kept, "label": label}, content)
        value = content.getvalue()

        def put(transaction: lmdb.Transaction, head: dict[str, Any]) -> dict[str, Any]:
            transaction.delete(_key(head["written"] - 2 * self.capacity))
            transaction.put(_key(head["written"]), value)
            counts = Counter(head["counts"]) + Counter({str(label): 1})
            return {"written": head["written"] + 1, "counts": counts}

        self._change(put)

    def __getitem__(self, position: int) -> tuple[Tensor, Target]:
        """Image float ``[3, H, W]`` and target of an example, on the CPU.

        Raises:
            IndexError: there is no such example.
        """
        with self._begin() as transaction:
            written = self._head_of(transaction)["written"]
            count = min(written, self.capacity)
            if not -count <= position < count:
                raise IndexError(f"the cache has {count} examples, got position {position}")
            record = _record(transaction, written - count + position % count)
        return self.pixels.encode(record["image"].float() / 255), record["target"]

    def rollback(self, written: int) -> None:
        """Forget the newest examples, as if they had never been added.

        Args:
            written: :attr:`written` as it was before them.

        Raises:
            ValueError: more than is there, or so long ago that those which had made room are gone.
        """

        def take(transaction: lmdb.Transaction, head: dict[str, Any]) -> dict[str, Any]:
            oldest = max(written - self.capacity, 0)
            there = oldest == written or transaction.get(_key(oldest)) is not None
            if not (0 <= written <= head["written"] and there):
                raise ValueError(
                    f"{self.path}: {head['written']} examples were added and about the last {self.capacity} can be "
                    f"taken back, not all after the first {written}"
                )
            counts = Counter(head["counts"])
            for number in range(written, head["written"]):
                counts[str(_record(transaction, number)["label"])] -= 1
                transaction.delete(_key(number))
            return {"written": written, "counts": +counts}

        self._change(take)

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
        """Bring all that was added to the disk, so that not even a power failure loses it."""
        self._store.sync(True)

    def close(self) -> None:
        """Let go of the file."""
        self._store.close()

    def __enter__(self) -> HardExampleCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _change(self, change: Callable[[lmdb.Transaction, dict[str, Any]], dict[str, Any]]) -> None:
        """A transaction that gives the head new values; again in a larger map if there was no room."""
        while True:
            try:
                with self._begin(write=True) as transaction:
                    head = self._head_of(transaction)
                    head |= change(transaction, head)
                    transaction.put(_HEAD, json.dumps(head).encode())
                return
            except lmdb.MapFullError:
                self._store.set_mapsize(2 * self._store.info()["map_size"])

    def _begin(self, write: bool = False) -> lmdb.Transaction:
        try:
            return self._store.begin(write=write)
        except lmdb.MapResizedError:  # another process has made it larger
            self._store.set_mapsize(0)
            return self._store.begin(write=write)

    def _head(self) -> dict[str, Any]:
        with self._begin() as transaction:
            return self._head_of(transaction)

    def _head_of(self, transaction: lmdb.Transaction) -> dict[str, Any]:
        content = transaction.get(_HEAD)
        assert content is not None
        head: dict[str, Any] = json.loads(bytes(content))
        return head

    def _check_head(self) -> None:
        with self._begin(write=True) as transaction:
            if transaction.get(_HEAD) is None:
                if transaction.stat()["entries"]:
                    raise ValueError(f"{self.path} is an LMDB file, but no cache of hard examples")
                new = {"format": _FORMAT, "capacity": self.capacity, "id": uuid.uuid4().hex, "written": 0, "counts": {}}
                transaction.put(_HEAD, json.dumps(new).encode())
            head = self._head_of(transaction)
        if (head.get("format"), head.get("capacity")) != (_FORMAT, self.capacity):
            raise ValueError(
                f"{self.path}: expected a cache of format {_FORMAT} and capacity {self.capacity}, got "
                f"{head.get('format')} and {head.get('capacity')}; choose another file"
            )


def _key(number: int) -> bytes:
    return b"%016d" % number


def _record(transaction: lmdb.Transaction, number: int) -> dict[str, Any]:
    content = transaction.get(_key(number))
    assert content is not None
    record: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return record

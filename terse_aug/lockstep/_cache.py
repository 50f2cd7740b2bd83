"""Hard composites on disk. Imports torch and lmdb."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb
import torch
from torch import Tensor

from terse_aug._pixels import PixelFormat
from terse_aug._sample import OBJECT_FIELDS, Target

_FORMAT = 1
_HEAD = b"head"
_FIRST_MAP_BYTES = 1 << 26


class HardExampleCache:
    """A bounded store of composites with their targets; a sequence, the oldest first.

    It lives in one LMDB file, so that its size is a question of the disk and what has been added survives a kill:
    every :meth:`add` is a transaction. Images are kept with 8 bits a channel.

    Args:
        path: the file; an existing cache is gone on with.
        capacity: examples kept; the oldest makes room.
        pixels: format of the images; by default RGB in [0, 1].

    Raises:
        ValueError: a capacity below 1, or a file that is no cache of this version or has another capacity.
    """

    def __init__(self, path: str | Path, capacity: int = 50_000, pixels: PixelFormat | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1, got {capacity}")
        self.path = Path(path).absolute()
        self.capacity = capacity
        self._pixels = pixels or PixelFormat()
        try:
            self._store = lmdb.open(str(self.path), map_size=_FIRST_MAP_BYTES, subdir=False, metasync=False)
        except lmdb.Error as error:
            raise ValueError(f"{path} is no cache of hard examples: {error}") from error
        head = self._read_head()
        if head is None:
            self._written, self._counts = 0, Counter[int]()
            return
        if head.get("format") != _FORMAT or head.get("capacity") != capacity:
            self.close()
            raise ValueError(
                f"{path}: expected a cache of format {_FORMAT} and capacity {capacity}, got {head.get('format')} and "
                f"{head.get('capacity')}; choose another file"
            )
        self._written = int(head["written"])
        self._counts = Counter({int(label): count for label, count in head["counts"].items()})

    def __len__(self) -> int:
        return min(self._written, self.capacity)

    @property
    def written(self) -> int:
        """Examples added in all, also those that had to make room."""
        return self._written

    @property
    def counts(self) -> dict[int, int]:
        """Examples added in all, by the label that made them hard."""
        return dict(self._counts)

    def add(self, image: Tensor, target: Target, label: int) -> None:
        """Add a composite.

        Args:
            image: float ``[3, H, W]`` in the cache's pixel format.
            target: its target; only per-object fields are kept.
            label: the class that is hard in it.
        """
        kept = {name: value.detach().cpu() for name, value in target.items() if name in OBJECT_FIELDS}
        rgb = self._pixels.decode(image.detach().float().cpu()).clamp(0, 1)
        content = io.BytesIO()
        torch.save({"image": (rgb * 255).round().to(torch.uint8), "target": kept}, content)
        counts = self._counts + Counter({label: 1})
        head = {
            "format": _FORMAT,
            "capacity": self.capacity,
            "written": self._written + 1,
            "counts": {str(key): count for key, count in counts.items()},
        }
        self._write({self._key(self._written): content.getvalue(), _HEAD: json.dumps(head).encode()})
        self._written, self._counts = self._written + 1, counts

    def __getitem__(self, position: int) -> tuple[Tensor, Target]:
        """Image float ``[3, H, W]`` and target of an example, on the CPU.

        Raises:
            IndexError: there is no such example.
        """
        if not -len(self) <= position < len(self):
            raise IndexError(f"the cache has {len(self)} examples, got position {position}")
        number = self._written - len(self) + position % len(self)
        with self._store.begin() as transaction:
            content = transaction.get(self._key(number))
        assert content is not None
        record: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
        return self._pixels.encode(record["image"].float() / 255), record["target"]

    def sample(self, count: int, generator: torch.Generator) -> tuple[list[Tensor], list[Target]]:
        """Draw examples uniformly, with replacement.

        Raises:
            ValueError: the cache is empty.
        """
        if not len(self):
            raise ValueError(f"{self.path}: the cache is empty")
        drawn = [self[position] for position in torch.randint(len(self), (count,), generator=generator).tolist()]
        return [image for image, _ in drawn], [target for _, target in drawn]

    def close(self) -> None:
        """Let go of the file."""
        self._store.close()

    def __enter__(self) -> HardExampleCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _key(self, number: int) -> bytes:
        return b"%016d" % (number % self.capacity)

    def _read_head(self) -> dict[str, Any] | None:
        with self._store.begin() as transaction:
            content = transaction.get(_HEAD)
            empty = transaction.stat()["entries"] == 0
        if content is None and not empty:
            self.close()
            raise ValueError(f"{self.path} is an LMDB file, but no cache of hard examples")
        head: dict[str, Any] | None = None if content is None else json.loads(content)
        return head

    def _write(self, values: dict[bytes, bytes]) -> None:
        """Write all or nothing; the map grows as needed."""
        while True:
            try:
                with self._store.begin(write=True) as transaction:
                    for key, value in values.items():
                        transaction.put(key, value)
                return
            except lmdb.MapFullError:
                self._store.set_mapsize(2 * self._store.info()["map_size"])

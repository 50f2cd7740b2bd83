"""What a bank that is being written says of the parts it has, so that another process can go on with it.

An entry per chunk of images is written in one transaction with the chunk's cut-outs. It has an identity of all that
the chunk is made of, a hash of the cut-outs' records, and what was counted. Nothing is pickled: reading a file that
somebody else left runs no code of theirs. Imports numpy, opencv and pillow.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
from numpy.typing import NDArray

from terse_aug._version import __version__
from terse_aug.bank.build.rejected_sample import EvenSample, RejectedSample
from terse_aug.bank.build.report import Ledger, ReasonCounts
from terse_aug.bank.inputs.masks import MaskInFile
from terse_aug.bank.storage.columns import Columns
from terse_aug.bank.storage.record import FORMAT_VERSION

_PREFIX = b"j"
_DIGEST_BYTES = 16
_UNFIT = (TypeError, ValueError, RecursionError)
"""What JSON raises on what it cannot write."""


def journal_key(number: int) -> bytes:
    """Key of the entry of a chunk."""
    return _PREFIX + struct.pack(">Q", number)


def is_journal_key(key: bytes) -> bool:
    """Whether a key is of an entry."""
    return key.startswith(_PREFIX) and len(key) == len(journal_key(0))


@dataclass(frozen=True)
class Entry:
    """What is known of a chunk that is done.

    Attributes:
        identity: of all that it was made of, see :func:`identity_of`.
        images: of the chunk.
        columns: of its cut-outs.
        records: hash of their records.
        ledger: what was counted.
    """

    identity: str
    images: int
    columns: Columns
    records: str
    ledger: Ledger

    def encode(self) -> bytes | None:
        """Bytes; ``None`` where an exhibit holds something that cannot be written."""
        content = {
            "identity": self.identity,
            "images": self.images,
            "columns": self.columns.as_text(),
            "records": self.records,
            "ledger": _of_ledger(self.ledger),
        }
        try:
            text = json.dumps(content, default=_tagged).encode()
        except _UNFIT:
            return None
        return _digest([text]) + text

    @classmethod
    def decode(cls, stored: bytes) -> Entry:
        """What :meth:`encode` gave.

        Raises:
            ValueError: it is damaged.
        """
        digest, text = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        if digest != _digest([text]):
            raise ValueError("an entry of the journal is damaged")
        content = json.loads(text, object_hook=_untagged)
        columns = Columns.of_text(content["columns"])
        return cls(content["identity"], content["images"], columns, content["records"], _as_ledger(content["ledger"]))


def identity_of(settings: Mapping[str, Any], units: Iterable[Any], files: Iterable[Path]) -> str | None:
    """A hash of all that the cut-outs of some images depend on; ``None`` where that cannot be told.

    Args:
        settings: how they are cut out.
        units: what is known of each image.
        files: that are read; their sizes and times of change count.
    """
    content = [_MAKERS, dict(settings), list(units), [_status(path) for path in files]]
    try:
        return _digest([json.dumps(content, default=_tagged).encode()]).hex()
    except _UNFIT:
        return None


def hash_of(records: Iterable[bytes]) -> str:
    """Of the records of a chunk."""
    return _digest(records).hex()


def _digest(parts: Iterable[bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)
    return digest.digest()


_MAKERS = [__version__, FORMAT_VERSION, np.__version__, cv2.__version__, PIL.__version__]


def _status(path: Path) -> list[Any]:
    try:
        status = path.stat()
    except (OSError, ValueError):  # missing, or a name that no file can have
        return [path, None]
    return [path, status.st_size, status.st_mtime_ns]


def _of_ledger(ledger: Ledger) -> dict[str, Any]:
    tallies = {name: vars(getattr(ledger, name)) for name in ("rejected", "repaired")}
    exhibits = {
        reason: [list(vars(shown).values()) for shown in spread.held] for reason, spread in ledger.exhibits.items()
    }
    return tallies | {"mask_sources": ledger.mask_sources, "exhibits": exhibits}


def _as_ledger(content: Mapping[str, Any]) -> Ledger:
    dropped, repaired = (
        ReasonCounts(Counter(own["counts"]), own["examples"]) for own in (content["rejected"], content["repaired"])
    )
    ledger = Ledger(dropped, repaired, Counter(content["mask_sources"]))
    for reason, held in content["exhibits"].items():
        spread: EvenSample[RejectedSample] = EvenSample()
        for image, caption, box, segmentation, (height, width) in held:
            spread.add(RejectedSample(image, caption, box, segmentation, (height, width)))
        ledger.exhibits[reason] = spread
    return ledger


def _of_array(array: NDArray[Any]) -> list[Any]:
    if array.dtype.hasobject:
        raise TypeError("an array of objects cannot be written")
    return [array.dtype.str, array.shape, array.tobytes()]


def _as_array(dtype: str, shape: list[int], content: bytes) -> NDArray[Any]:
    return np.frombuffer(content, dtype).reshape(shape)


_TAGS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "<path>": (Path, str, Path),
    "<bytes>": (bytes, lambda own: own.decode("latin-1"), lambda text: text.encode("latin-1")),
    "<array>": (np.ndarray, _of_array, lambda parts: _as_array(*parts)),
    "<scalar>": (np.generic, lambda own: _of_array(np.asarray(own)), lambda parts: _as_array(*parts)[()]),
    "<mask>": (MaskInFile, lambda own: [own.path, own.number, own.colors], lambda parts: MaskInFile(*parts)),
}


def _tagged(value: Any) -> dict[str, Any]:
    for tag, (kind, write, _) in _TAGS.items():
        if isinstance(value, kind):
            return {tag: write(value)}
    raise TypeError(f"{type(value).__name__} cannot be written")


def _untagged(mapping: dict[str, Any]) -> Any:
    if len(mapping) == 1 and (known := _TAGS.get(next(iter(mapping)))):
        return known[2](next(iter(mapping.values())))
    return mapping

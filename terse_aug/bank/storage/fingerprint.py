"""The fingerprint of a bank: a hash of all its foregrounds, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from terse_aug.bank.storage.index import CENTERS_KEY


class Fingerprint:
    """Computes the fingerprint of a bank from its records, one after the other."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, record: bytes) -> None:
        """Add the record of the next foreground."""
        self._hash.update(record)

    def finish(self, index: Mapping[bytes, bytes], categories: Mapping[int, str], names: Sequence[str]) -> str:
        """The fingerprint, hexadecimal, once all records are added.

        Args:
            index: the index arrays by key, as they are stored.
            categories: name of every label that has foregrounds.
            names: of the keypoints.
        """
        for key, values in index.items():
            if key != CENTERS_KEY:
                self._hash.update(values)
        used = dict(sorted(categories.items()))
        self._hash.update(repr((used, tuple(names))).encode("utf-8"))
        return self._hash.hexdigest()

"""What a build that was stopped left, read as far as it is sound. Imports lmdb and parts of this package.

Nothing is written into such a file: LMDB takes its free pages from the file itself, so one that is damaged where nobody
looks would spoil what is sound.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import lmdb

from terse_aug.bank.build.journal import Entry, hash_of, journal_key
from terse_aug.bank.storage.lmdb_reader import data_length
from terse_aug.bank.storage.record import record_key


class ValidPrefix(NamedTuple):
    """What is sound of a file.

    Attributes:
        chunks: from the first on, that are whole.
        images: of them.
        first: identity of the first; empty where there is none.
    """

    chunks: int
    images: int
    first: str


class FoundChunk(NamedTuple):
    """A chunk that was found done.

    Attributes:
        entry: of the journal.
        stored: the entry as it is stored.
        records: of its cut-outs.
    """

    entry: Entry
    stored: bytes
    records: list[bytes]


def sound_part(path: str) -> ValidPrefix:
    """What is sound of a file that was left.

    LMDB trusts its file: one that is damaged may end the process that reads it. So this is for a process of its own.
    """
    chunks = images = 0
    first = ""
    for entry, _, _ in sound_chunks(path):
        first = first or entry.identity
        chunks, images = chunks + 1, images + entry.images
    return ValidPrefix(chunks, images, first)


def sound_chunks(path: str) -> Generator[FoundChunk, None, None]:
    """The chunks of a file that was left, up to the first that is not whole; one is in memory at a time."""
    number = count = 0
    try:
        length = os.stat(path).st_size
        if data_length(Path(path)) > length:
            return
        with (
            lmdb.open(path, map_size=length, subdir=False, readonly=True, create=False, lock=False) as environment,
            environment.begin() as transaction,
        ):
            while stored := transaction.get(journal_key(number)):
                entry = Entry.decode(stored)
                records = [transaction.get(record_key(count + own), b"") for own in range(len(entry.columns))]
                if hash_of(records) != entry.records:
                    return
                yield FoundChunk(entry, stored, records)
                number, count = number + 1, count + len(records)
    except Exception:  # whatever an odd file leads to
        return  # what was found until there is sound

"""What an unfinished build keeps, so that the same build can resume after Ctrl-C, a kill or a crash.

The finished chunks of images lie one after another in a hidden file beside the bank, ``.NAME.partial.building``: of
each a hash of all that it was made of, its foregrounds, what was rejected and repaired, and checksums. A later build
takes over chunks from the first on, up to one that is damaged or that it would make from other input. Nothing is
pickled: reading a file from a stranger runs no code of theirs.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from terse_aug._version import __version__
from terse_aug.bank.build.chunks import ExtractedChunk, plain_value
from terse_aug.bank.build.report import BuildLog, ReasonCounts, RejectedSample
from terse_aug.bank.inputs.masks import MaskInFile
from terse_aug.bank.storage.index import IndexColumns
from terse_aug.bank.storage.temporary_file import open_locked, partial_path

_FRAME = struct.Struct("<4sII")  # mark, bytes of the JSON header and their checksum; header and records follow
_MARK = b"TAPB"
_STOPS = (KeyboardInterrupt, SystemExit, ChildProcessError)


class PartialBuild:
    """The finished chunks of one build; a context manager.

    Leaving the block normally removes the file. Leaving it by Ctrl-C or by the death of a worker keeps it, as a kill
    does. Any other error removes what this build wrote, unless ``keep_on_error`` is set. Where the file cannot be
    used (Windows, another build of the same bank holds it), nothing is kept.

    Attributes:
        images: number of images whose foregrounds are kept.
        keep_on_error: whether to keep the file after other errors, too.
    """

    def __init__(self, bank: Path):
        self.images = 0
        self.keep_on_error = False
        self._bank, self._path = bank, partial_path(bank)
        descriptor = open_locked(self._path, create=True)
        self._file = None if descriptor is None else os.fdopen(descriptor, "r+b")
        self._end = 0
        self._is_written = False

    def __enter__(self) -> PartialBuild:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is None:
            return
        is_kept = kind is not None and (issubclass(kind, _STOPS) or self.keep_on_error or not self._is_written)
        with contextlib.suppress(OSError):  # of a full disk: what was flushed before is kept
            self._file.flush()
        self._close(remove=not is_kept or not os.fstat(self._file.fileno()).st_size)

    def resume(self, identities: Iterable[str | None]) -> Iterator[ExtractedChunk]:
        """The chunks that an earlier run finished, by the identities of this build's chunks, see :func:`identity_of`.

        Warns:
            UserWarning: there are chunks, but of a build with other input; they are removed by :meth:`append`.
        """
        for identity in identities:
            chunk = self._read()
            if self._file is None or chunk is None or identity is None:  # whether the input was another is not known
                break
            if chunk.identity != identity:
                if not self.images:
                    warnings.warn(
                        f"{self._bank} is built from the start: an unfinished build of it had other arguments, "
                        "annotations, images or versions, and is removed once the first images of this one are done; "
                        "to resume it, stop this build now and run the earlier command",
                        stacklevel=2,
                    )
                break
            self._end = self._file.tell()
            self.images += chunk.images
            yield chunk

    def append(self, chunk: ExtractedChunk) -> None:
        """Keep a finished chunk behind those that were resumed; what the file has beyond them is removed.

        Warns:
            UserWarning: the disk is full; nothing is kept from here on, and the build goes on without.
        """
        if self._file is None:
            return
        try:
            if not self._is_written:
                self._file.seek(self._end)
                self._file.truncate()
                self._is_written = True
            header = json.dumps(_encoded(chunk), default=plain_value).encode()
            self._file.write(_FRAME.pack(_MARK, len(header), zlib.crc32(header)) + header)
            self._file.writelines(chunk.records)
            self._file.flush()
            self.images += chunk.images
        except OSError as error:
            warnings.warn(f"this build cannot be resumed if it is stopped: {error}", stacklevel=2)
            self._close(remove=True)

    def _close(self, remove: bool) -> None:
        assert self._file is not None
        file, self._file = self._file, None
        if remove:
            self.images = 0
            self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what a full disk has refused is flushed once more
            file.close()

    def _read(self) -> ExtractedChunk | None:
        """The next chunk; ``None`` at the end, or where it is damaged or something else."""
        frame = b"" if self._file is None else self._file.read(_FRAME.size)
        if self._file is None or len(frame) < _FRAME.size:
            return None
        mark, length, checksum = _FRAME.unpack(frame)
        header = self._file.read(length) if mark == _MARK else b""
        if not header or zlib.crc32(header) != checksum:
            return None
        try:
            content = json.loads(header, object_hook=_with_masks)
            records = [self._file.read(size) for size in content["record_bytes"]]
            is_valid = content["version"] == __version__ and _checksum(records) == content["checksum"]
            return _decoded(content, records) if is_valid else None
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):  # of another layout
            return None


def _checksum(records: Iterable[bytes]) -> int:
    checksum = 0
    for record in records:
        checksum = zlib.crc32(record, checksum)
    return checksum


def _encoded(chunk: ExtractedChunk) -> dict[str, Any]:
    log = chunk.log
    return {
        "version": __version__,
        "identity": chunk.identity,
        "images": chunk.images,
        "columns": chunk.columns.as_lists(),
        "record_bytes": [len(record) for record in chunk.records],
        "checksum": _checksum(chunk.records),
        "rejected": [log.rejected.counts, log.rejected.examples],
        "repaired": [log.repaired.counts, log.repaired.examples],
        "mask_sources": log.mask_sources,
        "samples": [[reason, vars(one)] for reason, some in log.samples.items() for one in some.held],
    }


def _decoded(header: Mapping[str, Any], records: list[bytes]) -> ExtractedChunk:
    rejected, repaired = (
        ReasonCounts(Counter(counts), examples) for counts, examples in (header["rejected"], header["repaired"])
    )
    log = BuildLog(rejected, repaired, Counter(header["mask_sources"]))
    for reason, sample in header["samples"]:
        log.add_sample(reason, RejectedSample(**sample | {"size": tuple(sample["size"])}))
    columns = IndexColumns.from_lists(header["columns"])
    return ExtractedChunk(header["images"], records, columns, log, header["identity"])


def _with_masks(mapping: dict[str, Any]) -> Any:
    if mapping.keys() == {"mask in file"}:
        path, number, colours = mapping["mask in file"]
        return MaskInFile(Path(path), number, colours)
    return mapping

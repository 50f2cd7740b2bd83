"""A file under construction beside its final place. Imports nothing but the standard library.

The file is invisible under its final name until it is whole. Its builder holds a lock on it, which the
system drops when the builder dies however that happens; the next builder takes over or removes what it can
lock, and leaves live ones alone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_SUFFIX = ".building"


class TemporarySibling:
    """A locked file next to ``final``, new and empty, or one that was abandoned.

    Args:
        final: where the file will be.
        adopt: whether to take over the youngest of the abandoned ones, if there are any. Not on Windows, where
            nothing tells them from those that are being written.

    Attributes:
        path: where the file is until :meth:`publish`.
        adopted: whether it was abandoned by another.
    """

    def __init__(self, final: Path, adopt: bool = False):
        self.final = final
        found = _adopted(final) if adopt and sys.platform != "win32" else None
        _remove_abandoned(final)
        self.adopted = found is not None
        self.path, self._descriptor = found or _create_locked(final)

    def renew(self) -> None:
        """Remove the file and begin another, which is new and empty."""
        self.discard()
        self.adopted = False
        self.path, self._descriptor = _create_locked(self.final)

    def publish(self) -> None:
        """Flush the file to disk and move it to its final place, in one step for every reader."""
        os.fsync(self._descriptor)
        if sys.platform == "win32":  # replaces no open file
            self._close()
        os.replace(self.path, self.final)
        self._close()
        _flush_folder(self.final.parent)

    def discard(self) -> None:
        """Remove the file; nothing happens once it is published."""
        if sys.platform == "win32":
            self._close()
        self.path.unlink(missing_ok=True)
        self._close()

    def abandon(self) -> None:
        """Leave the file to the next builder."""
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _create_locked(final: Path) -> tuple[Path, int]:
    while True:
        path = final.with_name(f".{final.name}.{secrets.token_hex(8)}{_SUFFIX}")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # Between creating and locking, another builder may have taken the file for an abandoned one.
        if _lock(descriptor) and path.exists():
            return path, descriptor
        os.close(descriptor)


def _adopted(final: Path) -> tuple[Path, int] | None:
    """The youngest file that no builder holds, locked."""
    for path in sorted(_siblings(final), key=_modified, reverse=True):
        with contextlib.suppress(OSError):  # another builder removed it first, or it is not ours
            descriptor = os.open(path, os.O_RDWR)
            # Between opening and locking, another builder may have removed the file, or made it its bank.
            if _lock(descriptor) and path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return path, descriptor
            os.close(descriptor)
    return None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _remove_abandoned(final: Path) -> None:
    for path in _siblings(final):
        with contextlib.suppress(OSError):  # another builder removed it first, or it is not ours
            descriptor = os.open(path, os.O_RDWR)
            try:
                abandoned = _lock(descriptor)
                if abandoned and sys.platform != "win32":
                    path.unlink()
            finally:
                os.close(descriptor)
            if abandoned and sys.platform == "win32":
                path.unlink()  # Windows itself refuses this while a live builder has the file open


def _siblings(final: Path) -> list[Path]:
    prefix = f".{final.name}."
    middle = slice(len(prefix), -len(_SUFFIX))
    found = [path for path in final.parent.iterdir() if path.name.startswith(prefix)]
    return [path for path in found if path.name.endswith(_SUFFIX) and len(path.name[middle]) == 16]


def _lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _flush_folder(folder: Path) -> None:
    """Make the new name itself durable; not every file system can."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""A file under construction beside its final place. Imports nothing but the standard library.

The file is invisible under its final name until it is whole. Its builder holds a lock on it, which the
system drops when the builder dies however that happens; the next builder takes over or removes what it can
lock, and leaves live ones alone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_SUFFIX = ".building"


CAN_GO_ON = sys.platform != "win32"
"""Whether abandoned files can be told from those that are being written."""


class LockedFile:
    """A file that no other builder touches.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: Path, descriptor: int):
        self.path, self._descriptor = path, descriptor

    def discard(self) -> None:
        """Remove the file; nothing happens once it is published."""
        if sys.platform == "win32":
            self._close()
        if self._descriptor >= 0 or sys.platform == "win32":
            self.path.unlink(missing_ok=True)
        self._close()

    def abandon(self) -> None:
        """Leave the file to the next builder."""
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class TemporarySibling(LockedFile):
    """A new, empty, locked file next to ``final``; those that were abandoned and that nobody holds are removed.

    Args:
        final: where the file will be.

    Attributes:
        path: where the file is until :meth:`publish`.
    """

    def __init__(self, final: Path):
        self.final = final
        _remove_abandoned(final)
        super().__init__(*_create_locked(final))

    def publish(self) -> None:
        """Flush the file to disk and move it to its final place, in one step for every reader."""
        os.fsync(self._descriptor)
        if sys.platform == "win32":  # replaces no open file
            self._close()
        os.replace(self.path, self.final)
        self._close()
        _flush_folder(self.final.parent)


def abandoned(final: Path) -> list[LockedFile]:
    """The files beside ``final`` that no builder holds, the largest first; none on Windows."""
    if sys.platform == "win32":
        return []
    found = [left for path in _siblings(final) if (left := _take(path)) is not None]
    return sorted(found, key=lambda left: left.path.stat().st_size, reverse=True)


def _create_locked(final: Path) -> tuple[Path, int]:
    while True:
        path = final.with_name(f".{final.name}.{secrets.token_hex(8)}{_SUFFIX}")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # Between creating and locking, another builder may have taken the file for an abandoned one.
        if _lock(descriptor) and path.exists():
            return path, descriptor
        os.close(descriptor)


def _take(path: Path) -> LockedFile | None:
    """The file, locked; ``None`` where a builder holds or removed it, or it is no file of this user."""
    if sys.platform == "win32":
        return None
    with contextlib.suppress(OSError):  # another builder removed it first, or it is not ours
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would wait for a writer
        # Between opening and locking, another builder may have removed the file, or made it its bank.
        with contextlib.suppress(OSError):
            status = os.fstat(descriptor)
            is_own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
            if is_own and _lock(descriptor) and os.path.samestat(status, path.lstat()):
                return LockedFile(path, descriptor)
        os.close(descriptor)
    return None


def _remove_abandoned(final: Path) -> None:
    for left in abandoned(final):
        left.discard()
    if sys.platform == "win32":
        for path in _siblings(final):
            with contextlib.suppress(OSError):  # Windows refuses this while a live builder has the file open
                path.unlink()


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

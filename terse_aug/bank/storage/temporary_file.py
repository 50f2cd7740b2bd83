"""A file that is written beside its final place and moved there when it is complete.

Until then it is hidden and locked. The system drops the lock when its process ends, however that happens: the next
writer of the same file removes what killed processes left, and leaves alone what others are writing.
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
_PARTIAL = "partial"


class TemporaryFile:
    """A new, empty, locked file next to ``final``, at ``path`` until :meth:`publish`."""

    def __init__(self, final: Path):
        self.final = final
        _remove_abandoned(final)
        self.path, self._descriptor = _create_locked(final)

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
        self._close()
        self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def partial_path(final: Path) -> Path:
    """Where an unfinished build of ``final`` keeps what is done."""
    return final.with_name(f".{final.name}.{_PARTIAL}{_SUFFIX}")


def open_locked(path: Path, create: bool = False) -> int | None:
    """Open a file that no other process uses, and lock it.

    Returns:
        Its descriptor; ``None`` where another process holds it, it is not a regular file of this user, it cannot be
        opened, or the system has no such locks (Windows).
    """
    if sys.platform == "win32":
        return None
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0)  # a pipe would block
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError:
        return None
    # Between opening and locking, another process may have removed the file, or published it.
    with contextlib.suppress(OSError):
        status = os.fstat(descriptor)
        is_own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if is_own and _lock(descriptor) and os.path.samestat(status, path.lstat()):
            return descriptor
    os.close(descriptor)
    return None


def _create_locked(final: Path) -> tuple[Path, int]:
    while True:
        path = final.with_name(f".{final.name}.{secrets.token_hex(8)}{_SUFFIX}")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # Between creating and locking, another writer may have taken the file for an abandoned one.
        if _lock(descriptor) and path.exists():
            return path, descriptor
        os.close(descriptor)


def _remove_abandoned(final: Path) -> None:
    prefix = f".{final.name}."
    for path in list(final.parent.iterdir()):
        middle = path.name[len(prefix) : -len(_SUFFIX)]
        is_ours = path.name == f"{prefix}{middle}{_SUFFIX}" and (len(middle) == 16 or middle == _PARTIAL)
        if is_ours and sys.platform == "win32":
            with contextlib.suppress(OSError):  # refused while another writer has the file open
                path.unlink()
        elif is_ours and (descriptor := open_locked(path)) is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    if sys.platform != "win32":
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

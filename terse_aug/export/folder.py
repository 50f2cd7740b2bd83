"""The output folder: what a run is, which of its files are done, and writing that leaves no half file behind.

Until a run is finished, ``.terse-aug`` in the folder holds a record of every file that is done: a JSON file, written
after the image and its labels. A run that was stopped goes on with what has no record.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terse_aug.bank.storage.temporary_file import open_locked

RUN_FILE = "compose.json"
"""What the run was made of, and its report once it is finished."""
_STATE = ".terse-aug"
_PARTIAL = ".partial"


@dataclass(frozen=True)
class OutputFolder:
    """A folder that one run is written to.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def images(self) -> Path:
        """The folder of the images."""
        return self.path / "images"

    @property
    def _state(self) -> Path:
        return self.path / _STATE

    @contextmanager
    def opened(self, identity: Mapping[str, Any]) -> Iterator[dict[str, Any] | None]:
        """Use the folder for a run; no other process can.

        If an error ends the block before anything is done, nothing is left of the run.

        Args:
            identity: what the run is made of, for JSON.

        Yields:
            The report of the run, if it is finished already.

        Raises:
            FileNotFoundError: there is no folder around it.
            ValueError: it is no folder, holds something else or another run, or another process writes to it.
        """
        is_new = not self.path.exists()
        self._known(identity)
        self._state.mkdir(parents=True, exist_ok=True)
        lock = open_locked(self._state / "lock", create=True)
        if lock is None and sys.platform != "win32":
            raise ValueError(f"{self.path}: another process writes to it")
        known = self._known(identity)  # once more, as another process may have written it until then
        finished = None if known is None else known.get("report")
        try:
            self._remove_partial_files()
            if known is None:
                self.write(self.path / RUN_FILE, _json({"run": identity}, 1))
            yield finished
        finally:
            self._remove_partial_files()
            if lock is not None:
                os.close(lock)
            if finished is not None:
                shutil.rmtree(self._state)
            elif known is None and self._state.exists() and not self.written():
                self._remove_all(is_new)

    def _known(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """The content of the run file, if it is of the same run; ``None`` for a new or empty folder."""
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {self.path.parent} to write {self.path.name} to")
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise ValueError(f"{self.path}: expected a new folder, found a file")
        file = self.path / RUN_FILE
        if not file.exists():
            names = sorted(path.name for path in self.path.iterdir() if path.name != _STATE)
            if names:
                raise ValueError(
                    f"{self.path}: expected a new or empty folder, or that of a run to resume; found {names[0]} in it"
                )
            return None
        try:
            known: dict[str, Any] = json.loads(file.read_bytes())
            run = dict(known["run"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} was not written by terse-aug compose; choose another folder") from error
        self._check_same(run, identity)
        return known

    def _check_same(self, known: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        known, given = _flat(known), _flat(json.loads(_json(identity)))
        names = [name for name in {**known, **given} if known.get(name) != given.get(name)]
        if names:
            texts = (f"{name} (there {_short(known.get(name))}, here {_short(given.get(name))})" for name in names[:5])
            raise ValueError(
                f"{self.path} holds composites of another run, which differs in {', '.join(texts)}: "
                "choose another folder, or delete this one"
            )

    def write(self, path: Path, content: bytes) -> None:
        """Write a file: all of it or nothing.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        with self.writing(path) as partial:
            partial.write_bytes(content)

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """A path to write a file to; at the end of the block it is moved to its place, after an error removed."""
        partial = self._state / f"{os.getpid()}-{path.name[-40:]}{_PARTIAL}"
        try:
            yield partial
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, path)
        except OSError as error:
            if error.filename is None:
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise
        finally:
            partial.unlink(missing_ok=True)

    def _remove_all(self, with_folder: bool) -> None:
        """Remove everything; the folder was empty or did not exist before."""
        if with_folder:
            shutil.rmtree(self.path)
            return
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _remove_partial_files(self) -> None:
        for path in self._state.glob(f"*{_PARTIAL}"):
            path.unlink(missing_ok=True)

    def _record(self, number: int) -> Path:
        return self._state / f"{number:09d}.json"

    def add_record(self, number: int, record: Mapping[str, Any]) -> None:
        """Say that a file is done."""
        self.write(self._record(number), _json(record))

    def records(self) -> Iterator[int]:
        """Numbers of what is done, in no order; not if an image or its labels are no longer as they were written."""
        return (number for number, _ in self._done())

    def written(self) -> int:
        """How many images are done: those that could not be read have a record, too."""
        return sum(has_image for _, has_image in self._done())

    def _done(self) -> Iterator[tuple[int, bool]]:
        """Numbers of what is done, and whether each is an image."""
        for path in self._state.glob("*.json"):
            try:
                record = self.record(int(path.stem))
                files = record["files"].items()
            except (ValueError, KeyError):  # a crash of the system may leave an empty file
                continue
            if all(_has_size(self.path / name, size) for name, size in files):
                yield int(path.stem), bool(files)

    def record(self, number: int) -> dict[str, Any]:
        """The record of a number that is done."""
        content: dict[str, Any] = json.loads(self._record(number).read_bytes())
        return content

    def finish(self, identity: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """Say that the run is finished; what is needed to resume it is removed."""
        self.write(self.path / RUN_FILE, _json({"run": identity, "report": report}, 1))
        shutil.rmtree(self._state)


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their names, those of mappings in mappings by both names."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _json(content: Any, indent: int | None = None) -> bytes:
    return json.dumps(content, indent=indent).encode("ascii") + b"\n"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

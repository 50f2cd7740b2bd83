"""The bank of foregrounds that training reads."""

from __future__ import annotations

import hashlib
import math
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from terse_aug.bank.selection import checked_positions, label_per_name, listed, positions_of_labels, relabelling
from terse_aug.bank.storage.index import read_index
from terse_aug.bank.storage.lmdb_reader import MappedFile, open_mapped
from terse_aug.bank.storage.record import (
    DESCRIPTION_KEY,
    FORMAT_VERSION,
    Description,
    decode_description,
    decode_record,
    record_key,
)
from terse_aug.structures.foreground import Foreground


class ForegroundBank:
    """A sequence of foregrounds in one file, opened with :meth:`open`.

    Opening maps the file and reads no foreground, so it takes the same time and memory for a million of them.
    A bank can be read from threads, forked or spawned workers and many ranks at once; a pickled bank holds its
    path and selection, not its pixels.

    ``bank[i]`` is a :class:`Foreground` whose arrays belong to the caller. :meth:`select` and :meth:`relabel` give
    other banks on the same file. The index arrays are read-only.

    Example:
        >>> with ForegroundBank.open("people.bank") as bank:  # doctest: +SKIP
        ...     people = bank.relabel(["person", "dog"], offset=1, unknown="drop")
        ...     people[0].rgba.shape, people.labels[:3]
    """

    def __init__(self, path: Path, mapped: MappedFile, description: Description):
        self._path = path
        self._mapped: MappedFile | None = mapped
        self._description = description
        self._categories = description.categories
        self._selection: NDArray[np.int64] | None = None
        self._dropped: dict[str, int] = {}
        self._stored = read_index(path, mapped, description.count)
        self._labels = self._stored["labels"]

    @classmethod
    def open(cls, path: str | Path) -> ForegroundBank:
        """Open the bank at ``path``.

        Raises:
            FileNotFoundError: there is nothing at ``path``.
            ValueError: it is a folder, another kind of file, truncated, damaged, or of another format version.
        """
        absolute = Path(path).absolute()
        mapped = open_mapped(absolute)
        stored = mapped.get(DESCRIPTION_KEY)
        if stored is None:
            raise ValueError(
                f"{path} is an LMDB file but no foreground bank; expected one made by `terse-aug bank build`"
            )
        try:
            description = decode_description(bytes(stored))
        except ValueError as error:
            raise ValueError(f"{path} cannot be used: {error}") from error
        return cls(absolute, mapped, description)

    def close(self) -> None:
        """Close the file. Arrays handed out stay valid; reading foregrounds raises ``ValueError``."""
        self._mapped = None

    @property
    def path(self) -> Path:
        """Absolute path of the file."""
        return self._path

    @property
    def labels(self) -> NDArray[np.int64]:
        """Label of every foreground: int64 ``[n]``, read-only."""
        return self._labels

    @property
    def relative_sizes(self) -> NDArray[np.float32]:
        """Relative size of every foreground, see :class:`Foreground`: float32 ``[n]``, read-only."""
        return self._selected("relative_sizes")

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Height and width of every foreground in pixels: int32 ``[n, 2]``, read-only."""
        return self._selected("sizes")

    @property
    def centers(self) -> NDArray[np.float32]:
        """Center in the source image, see :class:`Foreground`: float32 ``[n, 2]``, read-only, NaN if unknown."""
        return self._selected("centers")

    @property
    def categories(self) -> dict[int, str]:
        """Name of every label that has foregrounds here; after :meth:`relabel` with the detector's labels."""
        return dict(self._categories)

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        """Names of the keypoints, empty where the foregrounds have none."""
        return self._description.keypoint_names

    @property
    def fingerprint(self) -> str:
        """Hash of all foregrounds in the file, hexadecimal: equal for equal content."""
        return self._description.fingerprint

    @property
    def identity(self) -> str:
        """Equal for banks with the same foregrounds in the same order, whatever their labels."""
        chosen = np.arange(self._description.count) if self._selection is None else self._selection
        chosen = chosen.astype(np.int64)
        return f"{self.fingerprint}/{hashlib.blake2b(chosen.tobytes(), digest_size=8).hexdigest()}"

    @property
    def dropped(self) -> dict[str, int]:
        """Number of foregrounds that :meth:`relabel` with ``unknown="drop"`` left out, per category name."""
        return dict(self._dropped)

    def select(self, indices: ArrayLike | None = None, *, categories: Iterable[int] | None = None) -> ForegroundBank:
        """A bank of some of these foregrounds.

        Args:
            indices: positions in this bank, in the order wanted, or a bool mask ``[n]``.
            categories: labels to keep (keys of :attr:`categories`), in the order of this bank.

        Returns:
            Another bank on the same file.

        Raises:
            IndexError: a position is out of range.
            ValueError: neither or both arguments are given, a label is unknown, or nothing is left.
        """
        if (indices is None) == (categories is None):
            raise ValueError("expected either indices or categories")
        if categories is not None:
            return self._view(positions_of_labels(self._labels, self._categories, set(categories)), self._labels)
        return self._view(checked_positions(np.asarray(indices), len(self)), self._labels)

    def relabel(
        self,
        classes: Mapping[str, int] | Sequence[str],
        *,
        unknown: Literal["error", "drop"] = "error",
        offset: int = 0,
    ) -> ForegroundBank:
        """A bank whose labels are the detector's. Categories are matched by name, without spaces around it.

        Args:
            classes: the detector's label per category name, or its class names in order.
            unknown: what to do with categories of this bank that ``classes`` lacks: raise, or leave their
                foregrounds out and count them in :attr:`dropped`.
            offset: label of the first class where ``classes`` is a sequence of names (torchvision's
                detectors have background at 0, so 1).

        Returns:
            Another bank on the same file; its :attr:`categories` has the new labels.

        Raises:
            ValueError: a category is unknown or listed twice, or nothing is left.
        """
        if unknown not in ("error", "drop"):
            raise ValueError(f'expected unknown="error" or "drop", got {unknown!r}')
        known = label_per_name(classes, offset, self._categories.values())
        change = relabelling(self._labels, self._categories, known, unknown == "drop")
        view = self._view(change.positions, change.labels)
        view._categories = change.categories
        view._dropped = dict(Counter(self._dropped) + Counter(change.dropped))
        return view

    def info(self) -> dict[str, Any]:
        """What is in the bank, ready for JSON: counts, sizes in pixels, relative sizes, and how it was built."""
        per_category: Counter[str] = Counter()  # several ids may have one name
        for label, count in Counter(self._labels.tolist()).items():
            per_category[self._categories[label]] += count
        return {
            "path": str(self._path),
            "bytes": self._path.stat().st_size,
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "foregrounds": len(self),
            "categories": {str(label): name for label, name in self._categories.items()},
            "foregrounds_per_category": {name: per_category[name] for name in self._categories.values()},
            "keypoint_names": list(self.keypoint_names),
            "height_px": _quantiles(self.sizes[:, 0]),
            "width_px": _quantiles(self.sizes[:, 1]),
            "relative_size": _quantiles(self.relative_sizes),
            "built": self._description.built,
        }

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: SupportsIndex) -> Foreground:
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"index {position} is out of range for a bank of {len(self)} foregrounds")
        if self._mapped is None:
            raise ValueError(f"the bank {self._path} is closed; open it again")
        position %= len(self)
        label = int(self._labels[position])
        stored = position if self._selection is None else int(self._selection[position])
        record = self._mapped.get(record_key(stored))
        try:
            if record is None:
                raise ValueError("its record is missing")
            height, width = self._stored["sizes"][stored].tolist()
            x, y = self._stored["centers"][stored].tolist()
            center = None if math.isnan(x) else (x, y)
            return decode_record(record, (height, width), label, float(self._stored["relative_sizes"][stored]), center)
        except ValueError as error:
            raise ValueError(f"foreground {stored} of {self._path} is damaged: {error}") from error

    def __iter__(self) -> Iterator[Foreground]:
        return (self[index] for index in range(len(self)))

    def __enter__(self) -> ForegroundBank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        names = listed(self._categories.values())
        return f"ForegroundBank({str(self._path)!r}, {len(self)} foregrounds of {names})"

    def __getstate__(self) -> dict[str, Any]:
        return {
            "path": str(self._path),
            "fingerprint": self.fingerprint,
            "closed": self._mapped is None,
            "selection": self._selection,
            "labels": None if self._labels is self._stored["labels"] else self._labels,
            "categories": self._categories,
            "dropped": self._dropped,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        fresh = type(self).open(state["path"])
        if fresh.fingerprint != state["fingerprint"]:
            raise ValueError(
                f"{state['path']} was rebuilt since this bank was opened; open it again before starting workers"
            )
        self.__dict__.update(fresh.__dict__)
        self._selection, self._dropped = state["selection"], state["dropped"]
        self._categories = state["categories"]
        if state["labels"] is not None:
            self._labels = _read_only(state["labels"])
        if state["closed"]:
            self.close()

    def _selected(self, name: str) -> NDArray[Any]:
        stored = self._stored[name]
        return stored if self._selection is None else _read_only(stored[self._selection])

    def _view(self, positions: NDArray[np.int64], labels: NDArray[np.int64]) -> ForegroundBank:
        if not len(positions):
            raise ValueError(f"no foreground of {self._path} is selected; a bank has at least one")
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._selection = positions if self._selection is None else self._selection[positions]
        view._labels = _read_only(labels[positions])
        kept = set(np.unique(self._labels[positions]).tolist())
        view._categories = {label: name for label, name in self._categories.items() if label in kept}
        view._dropped = dict(self._dropped)
        return view


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def _quantiles(values: NDArray[Any]) -> dict[str, float]:
    low, median, high = np.quantile(values, (0.0, 0.5, 1.0)).tolist()
    return {"min": round(low, 4), "median": round(median, 4), "max": round(high, 4)}

"""The store of cut-outs that training reads. Imports numpy and lmdb (through :mod:`._mapped_file`) only."""

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

from terse_aug.bank.selection import (
    checked_positions,
    label_per_name,
    listed,
    mapped_labels,
    unknown_advice,
)
from terse_aug.bank.storage.lmdb_reader import MappedFile, open_mapped
from terse_aug.bank.storage.record import (
    CENTERS_DTYPE,
    CENTERS_KEY,
    DESCRIPTION_KEY,
    FORMAT_VERSION,
    INDEX_DTYPES,
    Description,
    check_index,
    decode_description,
    decode_record,
    known_centers,
    record_key,
)
from terse_aug.structures.foreground import Foreground


class ForegroundBank:
    """A sequence of cut-out objects in one file, opened with :meth:`open`.

    Opening maps the file and reads no cut-out, so it takes the same time and memory for a million of them.
    A bank can be read from threads, forked or spawned workers and many ranks at once; pickling it takes its
    path and selection along, not its pixels.

    ``bank[i]`` is a :class:`Foreground` whose arrays belong to the caller. :meth:`select` and
    :meth:`relabel` give other banks on the same file. The index arrays (:attr:`labels`, :attr:`extents`,
    :attr:`sizes`) are read-only.

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
        self._stored = _read_indices(path, mapped, description.count)
        self._labels = self._stored["labels"]

    @classmethod
    def open(cls, path: str | Path) -> ForegroundBank:
        """Open the bank at ``path``.

        Raises:
            FileNotFoundError: there is nothing at ``path``.
            ValueError: it is a folder, another kind of file, truncated, damaged, or of another format
                version.
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
        """Let go of the file. Arrays handed out stay valid; reading cut-outs raises ``ValueError``."""
        self._mapped = None

    @property
    def path(self) -> Path:
        """Absolute path of the file."""
        return self._path

    @property
    def labels(self) -> NDArray[np.int64]:
        """Label of every cut-out: int64 ``[n]``, read-only."""
        return self._labels

    @property
    def extents(self) -> NDArray[np.float32]:
        """Natural size of every cut-out, see :class:`Foreground`: float32 ``[n]``, read-only."""
        return self._selected("extents")

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Height and width of every cut-out in px: int32 ``[n, 2]``, read-only."""
        return self._selected("sizes")

    @property
    def centers(self) -> NDArray[np.float32]:
        """Where each was in its image, see :class:`Foreground`: float32 ``[n, 2]``, read-only, NaN if not known."""
        return self._selected("centers")

    @property
    def categories(self) -> dict[int, str]:
        """Name of every label that has cut-outs here; after :meth:`relabel` with the detector's labels."""
        return dict(self._categories)

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        """Names of the keypoints, empty where the cut-outs have none."""
        return self._description.keypoint_names

    @property
    def fingerprint(self) -> str:
        """Hash of all cut-outs in the file, hexadecimal: equal for equal content."""
        return self._description.fingerprint

    @property
    def identity(self) -> str:
        """Equal for banks in which equal positions are equal cut-outs, whatever their labels."""
        every = np.arange(self._description.count)
        chosen = (every if self._selection is None else self._selection).astype(np.int64).tobytes()
        return f"{self.fingerprint}/{hashlib.blake2b(chosen, digest_size=8).hexdigest()}"

    @property
    def dropped(self) -> dict[str, int]:
        """Cut-outs that :meth:`relabel` with ``unknown="drop"`` left out, per category name."""
        return dict(self._dropped)

    def select(self, indices: ArrayLike | None = None, *, categories: Iterable[int] | None = None) -> ForegroundBank:
        """A bank of some of these cut-outs.

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
            return self._view(self._positions_of(set(categories)), self._labels)
        return self._view(checked_positions(np.asarray(indices), len(self)), self._labels)

    def relabel(
        self,
        classes: Mapping[str, int] | Sequence[str],
        *,
        unknown: Literal["error", "drop"] = "error",
        offset: int = 0,
    ) -> ForegroundBank:
        """A bank whose labels are the detector's. Categories are matched by name; spaces around one do not count.

        Args:
            classes: the detector's label per category name, or its class names in order.
            unknown: what to do with categories of this bank that ``classes`` lacks: raise, or leave their
                cut-outs out and count them in :attr:`dropped`.
            offset: label of the first class where ``classes`` is a sequence of names (torchvision's
                detectors have background at 0, so 1).

        Returns:
            Another bank on the same file; its :attr:`categories` has the new labels.

        Raises:
            ValueError: a category is unknown, a name is listed twice, or nothing is left.
        """
        known = label_per_name(classes, offset)
        if unknown not in ("error", "drop"):
            raise ValueError(f'expected unknown="error" or "drop", got {unknown!r}')
        plain = {label: name.strip() for label, name in self._categories.items()}
        lacking = {label: name for label, name in plain.items() if name not in known}
        if lacking and (unknown == "error" or len(lacking) == len(self._categories)):
            raise ValueError(
                f"the bank has categories that the detector lacks: {listed(lacking.values())}; "
                f"the detector knows: {listed(known)}. " + unknown_advice(len(lacking) < len(self._categories))
            )
        positions = np.flatnonzero(~np.isin(self._labels, list(lacking)))
        view = self._view(positions, mapped_labels(self._labels, plain, known))
        names: dict[int, list[str]] = {}
        for name in (name for label, name in plain.items() if label not in lacking):
            names.setdefault(known[name], []).append(name)
        view._categories = {label: "/".join(dict.fromkeys(same)) for label, same in sorted(names.items())}
        counts = Counter(self._labels.tolist())
        for label, name in lacking.items():
            view._dropped[name] = view._dropped.get(name, 0) + counts[label]
        return view

    def info(self) -> dict[str, Any]:
        """What is in the bank, ready for JSON: counts, sizes in px, extents, and how it was built."""
        labels, counts = np.unique(self._labels, return_counts=True)
        per_category: Counter[str] = Counter()  # several ids may have one name
        for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
            per_category[self._categories[label]] += count
        return {
            "path": str(self._path),
            "bytes": self._path.stat().st_size,
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "cut_outs": len(self),
            "categories": {str(label): name for label, name in self._categories.items()},
            "cut_outs_per_category": dict(per_category),
            "keypoint_names": list(self.keypoint_names),
            "height_px": _quantiles(self.sizes[:, 0]),
            "width_px": _quantiles(self.sizes[:, 1]),
            "relative_size": _quantiles(self.extents),
            "built": self._description.built,
        }

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: SupportsIndex) -> Foreground:
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"index {position} is out of range for a bank of {len(self)} cut-outs")
        if self._mapped is None:
            raise ValueError(f"the bank {self._path} is closed; open it again")
        position %= len(self)
        stored = position if self._selection is None else int(self._selection[position])
        return self._read(stored, int(self._labels[position]))

    def __iter__(self) -> Iterator[Foreground]:
        return (self[index] for index in range(len(self)))

    def __enter__(self) -> ForegroundBank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        names = listed(self._categories.values())
        return f"ForegroundBank({str(self._path)!r}, {len(self)} cut-outs of {names})"

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
                f"{state['path']} was built anew since this bank was opened; open it again before starting workers"
            )
        self.__dict__.update(fresh.__dict__)
        self._selection, self._dropped = state["selection"], state["dropped"]
        self._categories = state["categories"]
        if state["labels"] is not None:
            self._labels = _read_only(state["labels"])
        if state["closed"]:
            self.close()

    def _read(self, stored: int, label: int) -> Foreground:
        assert self._mapped is not None
        record = self._mapped.get(record_key(stored))
        try:
            if record is None:
                raise ValueError("its record is missing")
            height, width = self._stored["sizes"][stored].tolist()
            x, y = self._stored["centers"][stored].tolist()
            center = None if math.isnan(x) else (x, y)
            return decode_record(record, (height, width), label, float(self._stored["extents"][stored]), center)
        except ValueError as error:
            raise ValueError(f"cut-out {stored} of {self._path} is damaged: {error}") from error

    def _selected(self, name: str) -> NDArray[Any]:
        stored = self._stored[name]
        return stored if self._selection is None else _read_only(stored[self._selection])

    def _positions_of(self, labels: set[int]) -> NDArray[np.int64]:
        missing = labels - set(self._categories)
        if missing:
            raise ValueError(
                f"the bank has no categories {sorted(missing)}; it has "
                + listed(f"{label} ({name})" for label, name in self._categories.items())
            )
        return np.flatnonzero(np.isin(self._labels, list(labels)))

    def _view(self, positions: NDArray[np.int64], labels: NDArray[np.int64]) -> ForegroundBank:
        if not len(positions):
            raise ValueError(f"no cut-out of {self._path} is selected; a bank has at least one")
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._selection = positions if self._selection is None else self._selection[positions]
        view._labels = _read_only(labels[positions])
        kept = set(np.unique(self._labels[positions]).tolist())
        view._categories = {label: name for label, name in self._categories.items() if label in kept}
        view._dropped = dict(self._dropped)
        return view


def _read_indices(path: Path, mapped: MappedFile, count: int) -> dict[str, NDArray[Any]]:
    if count < 1:
        raise ValueError(f"{path} has no cut-outs; build it again from data that keeps some")
    arrays: dict[str, NDArray[Any]] = {}
    for key, dtype in (INDEX_DTYPES | {CENTERS_KEY: CENTERS_DTYPE}).items():
        stored = mapped.array(key)
        if stored is None and key == CENTERS_KEY:
            arrays["centers"] = np.broadcast_to(np.float32(np.nan), (count, 2))
            continue
        if stored is None:
            raise ValueError(f"{path} is damaged: its {key.decode()} are missing; build it again")
        try:
            check_index(key, stored, count)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}; build it again") from error
        arrays[key.decode()] = _aligned(stored).view(dtype)
    for name in ("sizes", "centers"):
        arrays[name] = arrays[name].reshape(count, 2)
    arrays["centers"] = _read_only(known_centers(arrays["centers"]))
    return arrays


def _aligned(stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Short values lie at any even address; only those are copied, long ones start on their own page."""
    return stored if stored.ctypes.data % 8 == 0 else _read_only(stored.copy())


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def _quantiles(values: NDArray[Any]) -> dict[str, float]:
    low, median, high = np.quantile(values, (0.0, 0.5, 1.0)).tolist()
    return {"min": round(low, 4), "median": round(median, 4), "max": round(high, 4)}

"""The arguments of a bank's ``select`` and ``relabel``: checked, and what follows from them. Pure functions."""

from __future__ import annotations

import difflib
import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class UnknownClassesError(ValueError):
    """A bank has categories that a detector lacks.

    Args:
        lacking: names that the detector lacks.
        known: names of the detector.
        some_left: whether the bank has other categories, so that leaving these out helps.
        option: how their foregrounds are left out.
    """

    def __init__(
        self,
        lacking: Sequence[str],
        known: Sequence[str],
        some_left: bool,
        option: str = 'bank.relabel(..., unknown="drop")',
    ) -> None:
        advice = (
            f"Add them to the detector, or leave their foregrounds out with {option}"
            if some_left
            else f"None of the bank's categories would be left, so {option} cannot help: check the names"
        )
        super().__init__(
            f"the bank has categories that the detector lacks: {listed(_with_guess(name, known) for name in lacking)}; "
            f"the detector knows: {listed(known)}. {advice}"
        )
        self._parts = lacking, known, some_left

    def with_option(self, option: str) -> UnknownClassesError:
        """The same error, where another option leaves foregrounds out."""
        return UnknownClassesError(*self._parts, option)


class Relabelling(NamedTuple):
    """A bank with the detector's labels.

    Attributes:
        positions: int64 ``[m]``, the foregrounds that are left.
        labels: int64 ``[n]``, the new label of every foreground; those to leave out keep theirs.
        categories: name per new label; categories of one label share it, joined by a slash.
        dropped: number of foregrounds left out, per category name.
    """

    positions: NDArray[np.int64]
    labels: NDArray[np.int64]
    categories: dict[int, str]
    dropped: dict[str, int]


def checked_positions(indices: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Positions 0 to ``count - 1`` of a list of numbers, negative ones counted from the end, or of a bool mask."""
    if indices.dtype == bool:
        if indices.shape != (count,):
            raise ValueError(f"expected a bool mask of shape ({count},), got {indices.shape}")
        return np.flatnonzero(indices)
    if indices.ndim != 1 or (indices.size and not np.issubdtype(indices.dtype, np.integer)):
        raise ValueError(f"expected a list of whole numbers, got {indices.dtype} of shape {indices.shape}")
    positions = indices.astype(np.int64)
    wrong = positions[(positions < -count) | (positions >= count)]
    if wrong.size:
        raise IndexError(f"index {wrong[0]} is out of range for a bank of {count} foregrounds")
    return positions % count


def positions_of_labels(
    labels: NDArray[np.int64], categories: Mapping[int, str], wanted: set[int]
) -> NDArray[np.int64]:
    """Positions at which ``labels`` is one of those wanted; ``ValueError`` for one that is no category."""
    if missing := wanted - set(categories):
        raise ValueError(
            f"the bank has no categories {sorted(missing)}; it has "
            + listed(f"{label} ({name})" for label, name in categories.items())
        )
    return np.flatnonzero(np.isin(labels, list(wanted)))


def label_per_name(
    classes: Mapping[str, int] | Sequence[str], offset: int, needed: Iterable[str] = ()
) -> dict[str, int]:
    """The detector's label per class name, without spaces around it.

    Args:
        classes: as a mapping, or names in the order of the labels. In such a list names may occur several times, as
            the "N/A" of COCO's 91 labels, and are left out.
        offset: label of the first name of a list.
        needed: names of the bank.

    Raises:
        ValueError: a name with several labels in a mapping, or one of those that are needed; names that are no text.
    """
    if isinstance(classes, str):
        raise ValueError(f"expected a list of class names or a mapping of them to labels, got {classes!r}")
    if odd := [name for name in classes if not isinstance(name, str)]:
        raise ValueError(f"expected class names as text, got {odd[0]!r}")
    if isinstance(classes, Mapping):
        if offset:
            raise ValueError("offset is for a list of class names; a mapping already has the labels")
        known: dict[str, int] = {}
        for name, label in classes.items():
            if known.setdefault(name.strip(), operator.index(label)) != operator.index(label):
                raise ValueError(f"class names are listed twice: {name.strip()}")
        return known
    names = [name.strip() for name in classes]
    twice = {name for name, times in Counter(names).items() if times > 1}
    if ambiguous := sorted(twice.intersection(name.strip() for name in needed)):
        raise ValueError(f"class names are listed twice: {listed(ambiguous)}")
    return {name: position + offset for position, name in enumerate(names) if name not in twice}


def first_labels(categories: Iterable[Mapping[int, str]]) -> dict[str, int]:
    """A label for each class name, without spaces around it, of several data sets.

    It is the label in the first of them that has the class. Where an earlier class has that label, it is the next
    number above all labels.

    Args:
        categories: name of each label, of each data set.
    """
    every = list(categories)
    label_of: dict[str, int] = {}
    largest = max((label for own in every for label in own), default=0)
    for own in every:
        for label, name in sorted(own.items()):
            if name.strip() not in label_of:
                is_taken = label in label_of.values()
                largest += is_taken
                label_of[name.strip()] = largest if is_taken else label
    return label_of


def relabelling(
    labels: NDArray[np.int64], categories: Mapping[int, str], known: Mapping[str, int], drop_unknown: bool
) -> Relabelling:
    """What a bank becomes whose categories are mapped to the detector's labels by name.

    Raises ``ValueError`` if the detector lacks a category that is not to be left out, or all of them.
    """
    plain = {label: name.strip() for label, name in categories.items()}
    lacking = {label: name for label, name in plain.items() if name not in known}
    if lacking and (not drop_unknown or len(lacking) == len(plain)):
        raise UnknownClassesError(list(lacking.values()), list(known), len(lacking) < len(plain))
    names: dict[int, list[str]] = {}
    for name in (name for label, name in plain.items() if label not in lacking):
        names.setdefault(known[name], []).append(name)
    values, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
    renamed = np.asarray([known.get(plain[value], value) for value in values.tolist()], dtype=np.int64)
    dropped: Counter[str] = Counter()
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value in lacking:
            dropped[lacking[value]] += count
    return Relabelling(
        np.flatnonzero(~np.isin(labels, list(lacking))),
        renamed[which],
        {label: "/".join(dict.fromkeys(same)) for label, same in sorted(names.items())},
        dict(dropped),
    )


def listed(names: Iterable[str]) -> str:
    """Names for a sentence, the first twenty at most."""
    every = list(names)
    return ", ".join(every[:20]) + (f" and {len(every) - 20} more" if len(every) > 20 else "")


def _with_guess(name: str, known: Iterable[str]) -> str:
    """A name, and the one of those known that differs by case, spelling of spaces, or a typo."""
    plain = {own.casefold().replace("_", " ").replace("-", " "): own for own in known}
    near = difflib.get_close_matches(name.casefold().replace("_", " ").replace("-", " "), plain, 1, 0.75)
    return f"{name} (did you mean {plain[near[0]]}?)" if near else name

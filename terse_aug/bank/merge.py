"""Merges banks into one: foreground by foreground, so that memory does not depend on their size."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from terse_aug.bank.bank import ForegroundBank
from terse_aug.bank.inputs.file_names import distinct_ends
from terse_aug.bank.selection import first_labels, listed
from terse_aug.bank.storage.fingerprint import Fingerprint
from terse_aug.bank.storage.index import IndexColumns
from terse_aug.bank.storage.record import encode_record
from terse_aug.bank.storage.writer import BankWriter, check_place
from terse_aug.viz.text import printable

_FROM = "merge"


class NewLabel(NamedTuple):
    """A class whose label in the merged bank is another than in one of the banks that it is of."""

    bank: str
    name: str
    before: int
    after: int


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        path: the bank.
        banks: number of foregrounds of each bank that it was merged of, by the shortest end of its path that tells it
            from the others.
        kept: number of foregrounds of each class, by bank.
        labels: label of each class.
        new_labels: labels that are not those of a bank that the class is of.
        seconds: duration of the merge.
        bytes: size of the bank.
    """

    path: Path
    banks: dict[str, int]
    kept: dict[str, dict[str, int]]
    labels: dict[str, int]
    new_labels: list[NewLabel]
    seconds: float
    bytes: int

    def summary(self) -> str:
        """Text for a person: foregrounds per bank and class, labels that changed, size and duration."""
        total = sum(self.banks.values())
        lines = [
            f"{self.path}: {total} foregrounds of {len(self.banks)} banks, {self.bytes / 1e6:.1f} MB, "
            f"{self.seconds:.1f} s",
            "merged from",
            *(f"{count:>8}  {bank}" for bank, count in self.banks.items()),
            "kept",
        ]
        for name, counts in self.kept.items():
            banks = listed(f"{bank} {count}" for bank, count in counts.items())
            lines.append(f"{sum(counts.values()):>8}  {name} (label {self.labels[name]}; {banks})")
        if self.new_labels:
            lines.append("labels that changed")
            lines += [f"{own.after:>8}  {own.name}, {own.before} in {own.bank}" for own in self.new_labels]
        return "\n".join(map(printable, lines))


def merge_banks(
    banks: Sequence[str | Path],
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Merge banks into one, which has their foregrounds one bank after the other.

    Classes are joined by name, without spaces around it. Their labels are those of the first bank that has the class;
    where an earlier class has that label, the next number above all. Everything else of a foreground is kept, its
    source, too. ``built`` of the new bank has that of each bank under ``merged``, with its fingerprint and its number
    of foregrounds, and sums of what was rejected and repaired; banks that were merged themselves are listed by those
    that they are of.

    One foreground is in memory at a time, beside some 30 bytes of each. The bank is put in place when it is complete.

    Args:
        banks: the files, at least two.
        out: the bank to write.
        overwrite: replace an existing bank, but none of ``banks``.
        progress: called with the number of foregrounds done and in total.

    Raises:
        FileNotFoundError: a bank or the folder of ``out`` does not exist.
        FileExistsError: ``out`` exists and ``overwrite`` is false.
        ValueError: a file is no bank, or one of another format version, or damaged (the fingerprints of all are
            computed anew); ``out`` is one of the banks; two of them have the same foregrounds, or different keypoints.
        OSError: the disk is full or cannot be written.
    """
    start = time.perf_counter()
    paths = [Path(path) for path in ([banks] if isinstance(banks, str | Path) else banks)]
    _check_paths(paths, Path(out))
    check_place(Path(out).absolute(), overwrite)
    parts = [_Part.read(path, name) for path, name in zip(paths, distinct_ends(paths), strict=True)]
    _check_different(parts)
    label_of = first_labels(part.categories for part in parts)
    names = {label: name for name, label in label_of.items()}
    total = sum(part.count for part in parts)
    with BankWriter(out, names, keypoint_names=_keypoint_names(parts), overwrite=overwrite) as writer:
        for part in parts:
            _copy(part, label_of, writer, lambda: progress and progress(writer.count, total))
        writer.built = _record(parts)
    return MergeReport(
        path=writer.path,
        banks={part.name: part.count for part in parts},
        kept={name: {part.name: n for part in parts if (n := part.classes[name])} for _, name in sorted(names.items())},
        labels=label_of,
        new_labels=[
            NewLabel(part.name, name.strip(), label, label_of[name.strip()])
            for part in parts
            for label, name in part.categories.items()
            if label != label_of[name.strip()]
        ],
        seconds=time.perf_counter() - start,
        bytes=writer.path.stat().st_size,
    )


@dataclass(frozen=True)
class _Part:
    """What is known of a bank before its foregrounds are read."""

    path: Path
    name: str
    count: int
    categories: dict[int, str]
    classes: Counter[str]
    keypoint_names: tuple[str, ...]
    fingerprint: str
    built: dict[str, Any]

    @classmethod
    def read(cls, path: Path, name: str) -> _Part:
        with ForegroundBank.open(path) as bank:
            classes: Counter[str] = Counter()
            for label, count in Counter(bank.labels.tolist()).items():
                if label not in bank.categories:
                    raise ValueError(f"{path} is damaged: label {label} has no name; copy or build it again")
                classes[bank.categories[label].strip()] += count
            built = bank.info()["built"]
            return cls(path, name, len(bank), bank.categories, classes, bank.keypoint_names, bank.fingerprint, built)

    def banks(self) -> list[dict[str, Any]]:
        """The bank for the record, or those that it was merged of."""
        merged = self.built.get("merged") if self.built.get("from") == _FROM else None
        if isinstance(merged, list) and all(isinstance(own, dict) and "fingerprint" in own for own in merged):
            return merged
        own = {"bank": self.name, "fingerprint": self.fingerprint, "foregrounds": self.count}
        return [own | {"classes": dict(self.classes), "built": self.built}]


def _check_paths(paths: Sequence[Path], out: Path) -> None:
    """Raise ``ValueError`` for a single bank, or one that is the output."""
    if len(paths) < 2:
        raise ValueError(f"expected two banks or more to merge, got {len(paths)}")
    for path in paths:
        if out.exists() and path.exists() and path.samefile(out):
            raise ValueError(f"{out} is one of the banks to merge; write to another file")


def _check_different(parts: Sequence[_Part]) -> None:
    """Raise ``ValueError`` if foregrounds would be in the new bank twice."""
    owner: dict[str, _Part] = {}
    for part in parts:
        for fingerprint in [str(own["fingerprint"]) for own in part.banks()]:
            other = owner.setdefault(fingerprint, part)
            if other is not part:
                raise ValueError(f"{other.path} and {part.path} have the same foregrounds, or some; give one of them")


def _keypoint_names(parts: Sequence[_Part]) -> tuple[str, ...]:
    part_of = {part.keypoint_names: part for part in parts if part.keypoint_names}
    if len(part_of) > 1:
        banks = " and ".join(str(part.path) for part in part_of.values())
        raise ValueError(f"{banks} have different keypoints, and one bank has one list of them; do not merge these")
    return next(iter(part_of), ())


def _copy(part: _Part, label_of: Mapping[str, int], writer: BankWriter, on_foreground: Callable[[], object]) -> None:
    """Add the foregrounds of a bank, and check that its fingerprint is theirs."""
    fingerprint, columns = Fingerprint(), IndexColumns()
    new_labels = {label: label_of[name.strip()] for label, name in part.categories.items()}
    with ForegroundBank.open(part.path) as bank:
        for foreground in bank:
            fingerprint.add(encode_record(foreground))
            columns.add(foreground)
            try:
                writer.add(replace(foreground, label=new_labels.get(foreground.label, foreground.label)))
            except ValueError as error:
                raise ValueError(f"{part.path} is damaged, or was changed: {error}") from error
            on_foreground()
        found = fingerprint.finish(columns.encode(), bank.categories, bank.keypoint_names)
    if found != part.fingerprint:
        raise ValueError(
            f"{part.path} is damaged, or was changed: expected the fingerprint {part.fingerprint}, its foregrounds "
            f"have {found}; copy or build it again"
        )


def _record(parts: Sequence[_Part]) -> dict[str, Any]:
    """How the bank was built: the record of each bank, and sums."""
    records = [part.built for part in parts]
    sums = {key: _summed(own.get(key) for own in records) for key in ("rejected", "repaired", "mask_sources")}
    known = {key: counts for key, counts in sums.items() if counts is not None}
    return {"from": _FROM, "merged": [own for part in parts for own in part.banks()], **known}


def _summed(counts: Iterable[Any]) -> dict[str, int] | None:
    """Counts by name together; ``None`` if no bank has any."""
    known = [own for own in counts if isinstance(own, Mapping)]
    total: Counter[str] = Counter()
    for own in known:
        total.update({str(name): count for name, count in own.items() if isinstance(count, int)})
    return dict(total) if known else None

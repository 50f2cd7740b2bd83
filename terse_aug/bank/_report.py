"""What a build kept and dropped, and the frame that all builders share. Imports the writer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from terse_aug._text import printable
from terse_aug.bank._exhibit import Exhibit, Spread
from terse_aug.bank._foreground import Foreground
from terse_aug.bank._gallery import Locate, Section, check_target, write_sheets
from terse_aug.bank._writer import BankWriter

EXAMPLES_PER_REASON = 3
BY_MASK = "mask"
"""How an object with an annotated mask is cut out."""

Progress = Callable[[int, int], None]
"""Called with the number of images done and their total."""


@dataclass
class Tally:
    """Objects by what became of them.

    Attributes:
        counts: objects per reason.
        examples: for every reason, where its first objects are found.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: str, times: int = 1) -> None:
        """Count ``times`` objects for ``reason``."""
        self.counts[reason] += times
        known = self.examples.setdefault(reason, [])
        if len(known) < EXAMPLES_PER_REASON:
            known.append(printable(example))  # file names may have bytes that are no text

    def take(self, before: Tally) -> None:
        """Count what another has counted."""
        for reason, count in before.counts.items():
            self.counts[reason] += count
            self.examples[reason] = (self.examples.get(reason, []) + before.examples[reason])[:EXAMPLES_PER_REASON]

    def lines(self) -> list[str]:
        """One line per reason, the most frequent first, with an example each."""
        return [
            f"{count:>8}  {reason} (such as {self.examples[reason][0]})" for reason, count in self.counts.most_common()
        ]


@dataclass
class Ledger:
    """What a build has to tell of.

    Attributes:
        dropped: objects left out.
        mended: objects and images with something odd that could mean one thing only, and was taken for it.
        cut_by: cut-outs per way in which they were cut out.
        exhibits: for reasons to leave objects out, some of these to look at.
    """

    dropped: Tally = field(default_factory=Tally)
    mended: Tally = field(default_factory=Tally)
    cut_by: Counter[str] = field(default_factory=Counter)
    exhibits: dict[str, Spread[Exhibit]] = field(default_factory=dict)

    def drop(self, reason: str, example: str, times: int = 1, *, shown: Exhibit | None = None) -> None:
        """Count ``times`` objects left out for ``reason``, of which one can be shown."""
        self.dropped.add(reason, example, times)
        if shown is not None:
            self.exhibits.setdefault(reason, Spread()).add(shown)

    def mend(self, notes: Iterable[str], example: str) -> None:
        """Count an object or image of which this and that was mended."""
        for reason in sorted(notes):
            self.mended.add(reason, example)

    def take(self, before: Ledger) -> None:
        """Count what was counted before the build began."""
        self.dropped.take(before.dropped)
        self.mended.take(before.mended)
        self.cut_by.update(before.cut_by)
        for reason, exhibits in before.exhibits.items():
            self.exhibits.setdefault(reason, Spread()).take(exhibits)

    def sections(self, kept: Sequence[Foreground], total: int) -> list[Section]:
        """What to show: every reason to leave objects out, and some of those that were kept."""
        sections = [
            Section(f"{count}  {reason}", self.exhibits.get(reason, Spread()).items(), self.dropped.examples[reason])
            for reason, count in self.dropped.counts.most_common()
        ]
        return [*sections, *([Section(f"{total}  kept", kept)] if kept else [])]


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        path: the bank.
        kept: cut-outs per category name.
        dropped: objects left out per reason.
        mended: objects and images per oddity that was put right; they are not among the dropped ones for that.
        examples: for every reason of both, where up to three of its objects are found (file name and object).
        cut_by: cut-outs per way in which they were cut out: ``mask`` for those that were annotated with one, else the
            name of the way that made one of a box.
        seconds: duration of the build.
        bytes: size of the bank.
        drops: where pictures of what was dropped are, if they were asked for.
    """

    path: Path
    kept: dict[str, int]
    dropped: dict[str, int]
    mended: dict[str, int]
    examples: dict[str, list[str]]
    cut_by: dict[str, int]
    seconds: float
    bytes: int
    drops: Path | None = None

    def summary(self) -> str:
        """Text for a person: what was kept per class, what was mended or dropped and why, size and duration."""
        total = sum(self.kept.values())
        lines = [f"{self.path}: {total} cut-outs, {self.bytes / 1e6:.1f} MB, {self.seconds:.1f} s", "kept"]
        lines += [f"{count:>8}  {name}" for name, count in self.kept.items()]
        if set(self.cut_by) - {BY_MASK}:
            lines += ["cut out by", *(f"{count:>8}  {way}" for way, count in self.cut_by.items())]
        for title, counts in (("mended", self.mended), ("dropped", self.dropped)):
            if counts:
                lines += [title, *Tally(Counter(counts), self.examples).lines()]
        if self.drops is not None:
            lines.append(f"pictures of them: {self.drops}")
        return "\n".join(lines)


def build(
    writer: BankWriter,
    cut_outs: Callable[[Ledger], Iterator[Foreground]],
    categories: Mapping[int, str],
    built: dict[str, Any],
    drops: str | Path | None = None,
    locate: Locate = Path,
) -> BuildReport:
    """Write all cut-outs of a source, and report.

    Args:
        writer: for the new bank, not entered yet.
        cut_outs: gives the cut-outs in a fixed order, and counts what it mends and leaves out; also in which way each
            was cut out, unless all were by their masks.
        categories: name of every label.
        built: how the bank is built; stored in it together with what was dropped and mended.
        drops: a PNG file or a folder for pictures of what was dropped, see :func:`write_sheets`.
        locate: finds the images of exhibits.

    Raises:
        FileExistsError, FileNotFoundError: there cannot be pictures where they are wanted.
        ValueError: nothing was kept; the message says why.
        OSError: the disk is full or cannot be written.
    """
    start = time.perf_counter()
    pictures = None if drops is None else Path(drops)
    if pictures is not None:
        check_target(pictures, writer.overwrite)
    ledger = Ledger()
    kept: Counter[int] = Counter()
    shown: Spread[Foreground] = Spread()
    with writer:
        for foreground in cut_outs(ledger):
            writer.add(foreground)
            kept[foreground.label] += 1
            if pictures is not None:
                shown.add(foreground)
        if pictures is not None:
            write_sheets(pictures, ledger.sections(shown.items(), kept.total()), locate)
        if not kept:
            raise ValueError(_nothing_kept(writer.path, ledger.dropped))
        cut_by = dict(ledger.cut_by.most_common()) or {BY_MASK: kept.total()}
        counted = {name: dict(sorted(getattr(ledger, name).counts.items())) for name in ("dropped", "mended")}
        writer.built = built | counted | {"cut_by": cut_by}
    return BuildReport(
        path=writer.path,
        kept=_by_name(kept, categories),
        dropped=dict(ledger.dropped.counts),
        mended=dict(ledger.mended.counts),
        examples=ledger.mended.examples | ledger.dropped.examples,
        cut_by=cut_by,
        seconds=time.perf_counter() - start,
        bytes=writer.path.stat().st_size,
        drops=pictures,
    )


def _by_name(kept: Counter[int], categories: Mapping[int, str]) -> dict[str, int]:
    """Counts per name; two categories of one name are counted together."""
    counts: Counter[str] = Counter()
    for label, count in sorted(kept.items()):
        counts[categories[label]] += count
    return dict(counts)


def _nothing_kept(path: Path, dropped: Tally) -> str:
    reasons = [line.strip() for line in dropped.lines()]
    return f"no cut-out was kept, so no bank is written to {path}; dropped: " + ("; ".join(reasons) or "nothing")

"""What a build kept and dropped. Imports the standard library, and what is drawn of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from terse_aug.bank.build.contact_sheets import Section
from terse_aug.bank.build.rejected_sample import EvenSample, RejectedSample
from terse_aug.structures.foreground import Foreground
from terse_aug.viz.text import printable

EXAMPLES_PER_REASON = 3
BY_MASK = "mask"
"""How an object with an annotated mask is cut out."""

Progress = Callable[[int, int], None]
"""Called with the number of images done and their total."""


@dataclass
class ReasonCounts:
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

    def take(self, before: ReasonCounts) -> None:
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
        mask_sources: cut-outs per way in which they were cut out.
        exhibits: for reasons to leave objects out, some of these to look at.
    """

    rejected: ReasonCounts = field(default_factory=ReasonCounts)
    repaired: ReasonCounts = field(default_factory=ReasonCounts)
    mask_sources: Counter[str] = field(default_factory=Counter)
    exhibits: dict[str, EvenSample[RejectedSample]] = field(default_factory=dict)

    def drop(self, reason: str, example: str, times: int = 1, *, shown: RejectedSample | None = None) -> None:
        """Count ``times`` objects left out for ``reason``, of which one can be shown."""
        self.rejected.add(reason, example, times)
        if shown is not None:
            self.exhibits.setdefault(reason, EvenSample()).add(shown)

    def repair(self, notes: Iterable[str], example: str) -> None:
        """Count an object or image of which this and that was mended."""
        for reason in sorted(notes):
            self.repaired.add(reason, example)

    def take(self, before: Ledger) -> None:
        """Count what was counted before the build began."""
        self.rejected.take(before.rejected)
        self.repaired.take(before.repaired)
        self.mask_sources.update(before.mask_sources)
        for reason, exhibits in before.exhibits.items():
            self.exhibits.setdefault(reason, EvenSample()).take(exhibits)

    def sections(self, kept: Sequence[Foreground], total: int) -> list[Section]:
        """What to show: every reason to leave objects out, and some of those that were kept."""
        sections = [
            Section(
                f"{count}  {reason}", self.exhibits.get(reason, EvenSample()).items(), self.rejected.examples[reason]
            )
            for reason, count in self.rejected.counts.most_common()
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
        mask_sources: cut-outs per way in which they were cut out: ``mask`` for those that were annotated with one, else the
            name of the way that made one of a box.
        seconds: duration of the build.
        bytes: size of the bank.
        drops: where pictures of what was dropped are, if they were asked for.
        images: that objects were cut out of, or frames of a video.
        resumed: how many of them had been done by a build that was stopped.
    """

    path: Path
    kept: dict[str, int]
    rejected: dict[str, int]
    repaired: dict[str, int]
    examples: dict[str, list[str]]
    mask_sources: dict[str, int]
    seconds: float
    bytes: int
    rejected_sheet: Path | None = None
    images: int = 0
    resumed: int = 0

    def summary(self) -> str:
        """Text for a person: what was kept per class, what was mended or dropped and why, size and duration."""
        total = sum(self.kept.values())
        lines = [f"{self.path}: {total} cut-outs, {self.bytes / 1e6:.1f} MB, {self.seconds:.1f} s"]
        if self.resumed:
            lines.append(f"went on from a build that was stopped: {self.resumed} of {self.images} images")
        lines.append("kept")
        lines += [f"{count:>8}  {name}" for name, count in self.kept.items()]
        if set(self.mask_sources) - {BY_MASK}:
            lines += ["cut out by", *(f"{count:>8}  {way}" for way, count in self.mask_sources.items())]
        for title, counts in (("repaired", self.repaired), ("rejected", self.rejected)):
            if counts:
                lines += [title, *ReasonCounts(Counter(counts), self.examples).lines()]
        if self.rejected_sheet is not None:
            lines.append(f"pictures of them: {self.rejected_sheet}")
        return "\n".join(lines)

"""What a build kept, repaired and rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from terse_aug.structures.foreground import Foreground
from terse_aug.viz.text import printable

BY_MASK = "mask"
"""The mask source of objects that are annotated with a mask."""
_EXAMPLES_PER_REASON = 3

Progress = Callable[[int, int], None]
"""Called with the number of images done and their total."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class RejectedSample:
    """A rejected object on its image.

    Attributes:
        image: the file, or its name as its annotation has it.
        caption: where the object is found, for a person.
        box: x, y, width, height in px as annotated, whatever is there.
        segmentation: likewise.
        size: height and width of the image in px as annotated, 0 where it is not.
    """

    image: str | Path
    caption: str
    box: Any = None
    segmentation: Any = None
    size: tuple[int, int] = (0, 0)


@dataclass
class EvenSample(Generic[Item]):
    """Some of many items, evenly spread; at most twice ``wanted`` are ``held``."""

    wanted: int = 12
    held: list[Item] = field(default_factory=list)
    _step: int = 1
    _seen: int = 0

    def add(self, item: Item) -> None:
        """Add an item; it is held if the even spread includes it."""
        if self._seen % self._step == 0:
            self.held.append(item)
        self._seen += 1
        if len(self.held) > 2 * self.wanted:
            self.held, self._step = self.held[::2], 2 * self._step

    def items(self) -> Sequence[Item]:
        """As many as wanted, in their order."""
        count = min(self.wanted, len(self.held))
        return [self.held[len(self.held) * at // count] for at in range(count)]


class Section(NamedTuple):
    """A part of a sheet: the reason and its count, objects, and where some are found if none can be drawn."""

    title: str
    samples: Sequence[RejectedSample | Foreground]
    examples: Sequence[str] = ()


@dataclass
class ReasonCounts:
    """Number of objects per reason, and where the first of each are found."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: str, times: int = 1) -> None:
        """Count ``times`` objects for ``reason``."""
        self.counts[reason] += times
        known = self.examples.setdefault(reason, [])
        if len(known) < _EXAMPLES_PER_REASON:
            known.append(printable(example))  # file names may have bytes that are no text

    def merge(self, other: ReasonCounts) -> None:
        """Add the counts of another."""
        for reason, count in other.counts.items():
            self.counts[reason] += count
            self.examples[reason] = (self.examples.get(reason, []) + other.examples[reason])[:_EXAMPLES_PER_REASON]

    def lines(self) -> list[str]:
        """One line per reason, the most frequent first, with an example each."""
        return [
            f"{count:>8}  {reason} (such as {self.examples[reason][0]})" for reason, count in self.counts.most_common()
        ]


@dataclass
class BuildLog:
    """What a build counts: objects rejected and repaired, and foregrounds per method by which their masks were made.

    ``samples`` has some rejected objects per reason, to be drawn; ``images`` is the number of images or frames, and
    ``resumed`` that of those done by an earlier run.
    """

    rejected: ReasonCounts = field(default_factory=ReasonCounts)
    repaired: ReasonCounts = field(default_factory=ReasonCounts)
    mask_sources: Counter[str] = field(default_factory=Counter)
    samples: dict[str, EvenSample[RejectedSample]] = field(default_factory=dict)
    images: int = 0
    resumed: int = 0

    def drop(self, reason: str, example: str, times: int = 1, *, shown: RejectedSample | None = None) -> None:
        """Count ``times`` objects rejected for ``reason``; one of them can be drawn."""
        self.rejected.add(reason, example, times)
        if shown is not None:
            self.add_sample(reason, shown)

    def add_sample(self, reason: str, sample: RejectedSample) -> None:
        """Keep an object for drawing, if it is among an even spread."""
        self.samples.setdefault(reason, EvenSample()).add(sample)

    def repair(self, notes: Iterable[str], example: str) -> None:
        """Count an object or image once for each of its repairs."""
        for reason in sorted(notes):
            self.repaired.add(reason, example)

    def merge(self, other: BuildLog) -> None:
        """Add what another has counted of objects."""
        self.rejected.merge(other.rejected)
        self.repaired.merge(other.repaired)
        self.mask_sources.update(other.mask_sources)
        for reason, samples in other.samples.items():
            for sample in samples.held:
                self.add_sample(reason, sample)

    def sections(self, kept: Sequence[Foreground], total: int) -> list[Section]:
        """What contact sheets show: every reason of rejection, and some of the foregrounds that were kept."""
        sections = [
            Section(
                f"{count}  {reason}",
                self.samples[reason].items() if reason in self.samples else [],
                self.rejected.examples[reason],
            )
            for reason, count in self.rejected.counts.most_common()
        ]
        return [*sections, *([Section(f"{total}  kept", kept)] if kept else [])]


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        path: the bank.
        kept: number of foregrounds per category name.
        rejected: number of objects left out, per reason.
        repaired: number of objects and images repaired, per reason.
        examples: for every reason of both, where up to three of its objects are found (file name and object).
        mask_sources: number of foregrounds per method by which their masks were made: ``mask`` for annotated ones, else
            the method that made one of a box.
        seconds: duration of the build.
        bytes: size of the bank.
        rejected_sheet: where images of what was rejected are, if they were requested.
        images: number of images, or of frames of a video.
        resumed: how many of them were done by an earlier run of the build.
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
        """Text for a person: foregrounds per class, what was repaired or rejected and why, size and duration."""
        total = sum(self.kept.values())
        lines = [f"{self.path}: {total} foregrounds, {self.bytes / 1e6:.1f} MB, {self.seconds:.1f} s"]
        if self.resumed:
            lines.append(f"resumed an unfinished build: {self.resumed} of {self.images} images were done")
        lines.append("kept")
        lines += [f"{count:>8}  {name}" for name, count in self.kept.items()]
        if set(self.mask_sources) - {BY_MASK}:
            lines += ["masks from", *(f"{count:>8}  {method}" for method, count in self.mask_sources.items())]
        for title, counts in (("repaired", self.repaired), ("rejected", self.rejected)):
            if counts:
                lines += [title, *ReasonCounts(Counter(counts), self.examples).lines()]
        if self.rejected_sheet is not None:
            lines.append(f"images of what was rejected: {self.rejected_sheet}")
        return "\n".join(lines)

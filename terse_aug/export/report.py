"""What a run wrote, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from terse_aug.preview import RejectionCounts
from terse_aug.viz.text import printable


@dataclass
class ExportReport:
    """What is in an output folder; the same for an interrupted run that was resumed.

    Attributes:
        path: the folder.
        images: image files.
        originals: those of them without pastes.
        objects: labelled objects.
        pasted: those of them that were pasted.
        megabytes: of the image files.
        rejected: images and objects of the data set that were left out, by reason.
        dropped: counts of composing by reason, see :class:`terse_aug.Composites`.
        resumed: images that an earlier run had written.
        finished_before: whether an earlier run had done everything.
    """

    path: Path
    images: int = 0
    originals: int = 0
    objects: int = 0
    pasted: int = 0
    megabytes: float = 0.0
    rejected: RejectionCounts = field(default_factory=RejectionCounts)
    dropped: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    finished_before: bool = False

    @classmethod
    def of(cls, path: Path, rejected: RejectionCounts) -> ExportReport:
        """An empty one, with what was rejected before any image was read."""
        return cls(path, rejected=RejectionCounts(rejected.counts.copy(), dict(rejected.examples)))

    def add(self, record: Mapping[str, Any], is_original: bool) -> None:
        """Count a file that is done, see :meth:`terse_aug.export.samples.ComposeTask.run`."""
        for reason, (count, examples) in record["rejected"].items():
            self.rejected.merge(RejectionCounts(Counter({reason: count}), {reason: examples}))
        if record["image"] is None:
            return
        self.images += 1
        self.originals += is_original
        self.objects += record["objects"]
        self.pasted += record["pasted"]
        self.megabytes += record["bytes"] / 1e6
        self.dropped.update(record["dropped"])

    def as_json(self) -> dict[str, Any]:
        """For the run file."""
        return {
            "images": self.images,
            "originals": self.originals,
            "objects": self.objects,
            "pasted": self.pasted,
            "megabytes": round(self.megabytes, 3),
            "rejected": {reason: [n, self.rejected.examples[reason]] for reason, n in self.rejected.counts.items()},
            "dropped": dict(sorted(self.dropped.items())),
        }

    @classmethod
    def from_json(cls, path: Path, content: Mapping[str, Any]) -> ExportReport:
        """The report in a run file."""
        plain = {name: content[name] for name in ("images", "originals", "objects", "pasted", "megabytes")}
        counts = Counter({reason: count for reason, (count, _) in content["rejected"].items()})
        rejected = RejectionCounts(counts, {reason: examples for reason, (_, examples) in content["rejected"].items()})
        done = {"resumed": plain["images"], "finished_before": True}
        return cls(path, **plain, rejected=rejected, dropped=Counter(content["dropped"]), **done)

    def summary(self) -> str:
        """A few lines for a terminal."""
        what = f"{self.images - self.originals} composites"
        if self.originals:
            what += f" and {self.originals} images without pastes"
        lines = [f"{self.path}: {what}, {self.objects} objects ({self.pasted} pasted), {self.megabytes:.1f} MB"]
        if self.finished_before:
            lines.append("finished before: all images were written by an earlier run")
        elif self.resumed:
            lines.append(f"resumed: {self.resumed} of {self.images} were written before")
        lines += _section("left out of the data set", self.rejected.lines())
        lines += _section("counted while composing", [f"{n} {reason}" for reason, n in self.dropped.most_common()])
        return "\n".join(map(printable, lines))


def _section(title: str, lines: Iterable[str]) -> list[str]:
    found = [f"  {line}" for line in lines]
    return [title, *found] if found else []

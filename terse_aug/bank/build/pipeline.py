"""The frame that all builders share. Imports the parts of this package."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from terse_aug.bank.build.chunks import Source, Task
from terse_aug.bank.build.contact_sheets import Locate, check_target, write_sheets
from terse_aug.bank.build.rejected_sample import EvenSample
from terse_aug.bank.build.report import BY_MASK, BuildReport, Ledger, Progress, ReasonCounts
from terse_aug.bank.build.resumable_writer import ResumableWriter
from terse_aug.bank.build.workers import cut_in_order
from terse_aug.bank.storage.writer import BankWriter


class Filled(NamedTuple):
    """How a bank was filled.

    Attributes:
        images: that objects were cut out of.
        resumed: how many of them had been done by a build that was stopped.
    """

    images: int
    resumed: int = 0


def build_from_source(
    writer: ResumableWriter,
    source: Source,
    built: dict[str, Any],
    *,
    jobs: int | None = None,
    rejected_sheet: str | Path | None = None,
    progress: Progress | None = None,
    locate: Locate = Path,
) -> BuildReport:
    """Write all cut-outs of a source's images, in as many processes as are wanted, and report.

    Args:
        writer: for the new bank, not entered yet.
        source: the images.
        built: how the bank is built; stored in it.
        jobs: processes, see :func:`terse_aug.bank.build.workers.cut_in_order`.
        drops: see :func:`build`.
        progress: called with images done and in total.
        locate: finds the images of exhibits.

    Raises:
        KeyboardInterrupt: likewise, with a message that says what is kept.
        ChildProcessError: a process died.
        FileExistsError, FileNotFoundError, ValueError, OSError: as :func:`build`.
    """

    try:
        return build(
            writer, lambda ledger: _fill(writer, source, ledger, jobs, progress), built, rejected_sheet, locate
        )
    except (KeyboardInterrupt, ChildProcessError) as error:
        total, kept = len(source.units), writer.safe_images
        if not kept:
            raise
        raise type(error)(
            f"{str(error) or 'interrupted'}; {kept} of {total} images are done and kept: "
            "the same build goes on from there"
        ) from error


def build(
    writer: BankWriter,
    fill: Callable[[Ledger], Filled],
    built: dict[str, Any],
    rejected_sheet: str | Path | None = None,
    locate: Locate = Path,
) -> BuildReport:
    """Write all cut-outs of a source, and report.

    Args:
        writer: for the new bank, not entered yet.
        fill: adds the cut-outs to it in a fixed order, and counts what it mends and leaves out; also in which way each
            was cut out, unless all were by their masks.
        built: how the bank is built; stored in it together with what was rejected and repaired.
        drops: a PNG file or a folder for pictures of what was dropped, see :func:`write_sheets`.
        locate: finds the images of exhibits.

    Raises:
        FileExistsError, FileNotFoundError: there cannot be pictures where they are wanted.
        ValueError: nothing was kept; the message says why.
        OSError: the disk is full or cannot be written.
    """
    start = time.perf_counter()
    pictures = None if rejected_sheet is None else Path(rejected_sheet)
    if pictures is not None:
        check_target(pictures, writer.overwrite)
    ledger = Ledger()
    with writer:
        filled = fill(ledger)
        kept = writer.kept()
        if pictures is not None:
            shown: EvenSample[int] = EvenSample()
            for number in range(writer.count):
                shown.add(number)
            with writer.keeping():
                write_sheets(pictures, ledger.sections(writer.read(shown.items()), writer.count), locate)
        if not kept:
            raise ValueError(_nothing_kept(writer.path, ledger.rejected))
        mask_sources = dict(ledger.mask_sources.most_common()) or {BY_MASK: writer.count}
        counted = {name: dict(sorted(getattr(ledger, name).counts.items())) for name in ("rejected", "repaired")}
        writer.built = built | counted | {"mask_sources": mask_sources}
    return BuildReport(
        path=writer.path,
        kept=_by_name(kept, writer.categories),
        rejected=dict(ledger.rejected.counts),
        repaired=dict(ledger.repaired.counts),
        examples=ledger.repaired.examples | ledger.rejected.examples,
        mask_sources=mask_sources,
        seconds=time.perf_counter() - start,
        bytes=writer.path.stat().st_size,
        rejected_sheet=pictures,
        images=filled.images,
        resumed=filled.resumed,
    )


def _fill(
    writer: ResumableWriter, source: Source, ledger: Ledger, jobs: int | None, progress: Progress | None
) -> Filled:
    total, chunks, task = len(source.units), source.chunks(), Task.of(source, writer)
    tell = progress or (lambda done, total: None)
    ledger.take(source.before)
    resumed = number = 0
    writer.adopt(task.identity(source.ready(chunks[0])) if chunks else None)
    with closing(writer.found()) as found:
        for known, chunk in zip(found, chunks, strict=False):
            if known.entry.identity != task.identity(source.ready(chunk)):
                break
            writer.take_over(known)
            ledger.take(known.entry.ledger)
            resumed, number = resumed + known.entry.images, number + 1
    writer.go_on()
    if resumed:
        tell(resumed, total)
    rest = cut_in_order(task, source, chunks[number:], jobs, lambda done: tell(resumed + done, total))
    is_told = False
    with closing(rest):
        for cut in rest:
            if cut.entry is None and source.settings is not None and not is_told:
                is_told = True
                warnings.warn(
                    "from here on this build cannot be gone on with if it is stopped: an annotation holds something "
                    "other than numbers, text, lists, mappings and arrays",
                    stacklevel=2,
                )
            writer.add_cut(cut)
            ledger.take(cut.ledger)
    return Filled(total, resumed)


def _by_name(kept: Counter[int], categories: Mapping[int, str]) -> dict[str, int]:
    """Counts per name; two categories of one name are counted together."""
    counts: Counter[str] = Counter()
    for label, count in sorted(kept.items()):
        counts[categories[label]] += count
    return dict(counts)


def _nothing_kept(path: Path, rejected: ReasonCounts) -> str:
    reasons = [line.strip() for line in rejected.lines()]
    return f"no cut-out was kept, so no bank is written to {path}; rejected: " + ("; ".join(reasons) or "nothing")

"""What all builders share: extract, write, resume, draw what was rejected, report."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from terse_aug.bank.build.chunks import ExtractionTask, Source
from terse_aug.bank.build.contact_sheets import Locate, check_target, write_sheets
from terse_aug.bank.build.partial_build import PartialBuild
from terse_aug.bank.build.report import BY_MASK, BuildLog, BuildReport, EvenSample, Progress, ReasonCounts
from terse_aug.bank.build.workers import extract_in_order
from terse_aug.bank.storage.writer import BankWriter


def build_from_source(
    writer: BankWriter,
    source: Source,
    built: dict[str, Any],
    *,
    jobs: int | None = None,
    rejected_sheet: str | Path | None = None,
    progress: Progress | None = None,
    locate: Locate = Path,
) -> BuildReport:
    """Write all foregrounds of a source, in several processes where that pays, and report.

    Args:
        writer: for the new bank, not entered yet.
        source: the images.
        built: how the bank is built; stored in it.
        jobs: number of processes, see :func:`terse_aug.bank.build.workers.extract_in_order`.
        rejected_sheet: see :func:`build`.
        progress: called with images done and in total.
        locate: finds the images of rejected samples.

    Raises:
        KeyboardInterrupt, ChildProcessError: interrupted, or a process died; the message says what is kept.
        FileExistsError, FileNotFoundError, ValueError, OSError: as :func:`build`.
    """
    target = None if rejected_sheet is None else Path(rejected_sheet)
    if target is not None:
        check_target(target, writer.overwrite)
    partial = PartialBuild(writer.path)
    try:
        with partial:

            def fill(log: BuildLog) -> None:
                _fill(writer, source, partial, log, jobs, progress)
                partial.keep_on_error = writer.count > 0  # an error in drawing should not cost the work

            return build(writer, fill, built, target, locate)
    except (KeyboardInterrupt, ChildProcessError) as error:
        if not partial.images:
            raise
        raise type(error)(
            f"{str(error) or 'interrupted'}; {partial.images} of {len(source.items)} images are done and kept: "
            "run the same build again to resume"
        ) from error


def build(
    writer: BankWriter,
    fill: Callable[[BuildLog], None],
    built: dict[str, Any],
    rejected_sheet: Path | None = None,
    locate: Locate = Path,
) -> BuildReport:
    """Write all foregrounds of a source, and report.

    Args:
        writer: for the new bank, not entered yet.
        fill: adds the foregrounds to it in a fixed order, and logs images, what is repaired and rejected, and the
            method by which each mask was made, unless all were annotated.
        built: how the bank is built; stored in it together with what was rejected and repaired.
        rejected_sheet: a PNG file or a folder for images of what was rejected, see :func:`write_sheets`.
        locate: finds the images of rejected samples.

    Raises:
        FileExistsError, FileNotFoundError: the sheets cannot go where they are wanted.
        ValueError: nothing was kept; the message says why.
        OSError: the disk is full or cannot be written.
    """
    start = time.perf_counter()
    log = BuildLog()
    with writer:
        fill(log)
        if rejected_sheet is not None:
            kept: EvenSample[int] = EvenSample()
            for number in range(writer.count):
                kept.add(number)
            write_sheets(rejected_sheet, log.sections(writer.read(kept.items()), writer.count), locate)
        if not writer.count:
            raise ValueError(_nothing_kept(writer.path, log.rejected))
        mask_sources = dict(log.mask_sources.most_common()) or {BY_MASK: writer.count}
        counted = {name: dict(sorted(getattr(log, name).counts.items())) for name in ("rejected", "repaired")}
        writer.built = built | counted | {"mask_sources": mask_sources}
    return BuildReport(
        path=writer.path,
        kept=_by_name(writer.count_per_label(), writer.categories),
        rejected=dict(log.rejected.counts),
        repaired=dict(log.repaired.counts),
        examples=log.repaired.examples | log.rejected.examples,
        mask_sources=mask_sources,
        seconds=time.perf_counter() - start,
        bytes=writer.path.stat().st_size,
        rejected_sheet=rejected_sheet,
        images=log.images,
        resumed=log.resumed,
    )


def _fill(
    writer: BankWriter,
    source: Source,
    partial: PartialBuild,
    log: BuildLog,
    jobs: int | None,
    progress: Progress | None,
) -> None:
    total, chunks, task = len(source.items), source.chunks(), ExtractionTask.of(source, writer)
    report_progress = progress or (lambda done, total: None)
    log.images = total
    log.merge(source.log)
    resumed = 0
    if task.settings is not None:
        for chunk in partial.resume(task.identity(source.prepared(chunk)) for chunk in chunks):
            writer.add_records(chunk.records, chunk.columns)
            log.merge(chunk.log)
            log.resumed += chunk.images
            resumed += 1
    if resumed:
        report_progress(log.resumed, total)
    is_resumable = task.settings is not None
    rest = extract_in_order(
        task, source, chunks[resumed:], jobs, lambda done: report_progress(log.resumed + done, total)
    )
    with closing(rest):
        for chunk in rest:
            if is_resumable and chunk.identity is None:
                is_resumable = False
                warnings.warn(
                    "this build cannot be resumed beyond this point if it is stopped: an annotation holds something "
                    "other than numbers, text, lists, mappings and arrays",
                    stacklevel=2,
                )
            writer.add_records(chunk.records, chunk.columns)
            log.merge(chunk.log)
            if is_resumable:
                partial.append(chunk)


def _by_name(counts: Counter[int], categories: Mapping[int, str]) -> dict[str, int]:
    """Counts per name; two categories of one name are counted together."""
    by_name: Counter[str] = Counter()
    for label, count in sorted(counts.items()):
        by_name[categories[label]] += count
    return dict(by_name)


def _nothing_kept(path: Path, rejected: ReasonCounts) -> str:
    reasons = [line.strip() for line in rejected.lines()]
    return f"no foreground was kept, so no bank is written to {path}; rejected: " + ("; ".join(reasons) or "nothing")

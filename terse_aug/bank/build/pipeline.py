"""What all builders share: extract, write, resume, draw what was rejected, report."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terse_aug.bank.build.chunks import ExtractionTask, Source
from terse_aug.bank.build.contact_sheets import Locate, check_target, write_sheets
from terse_aug.bank.build.partial_build import PartialBuild
from terse_aug.bank.build.parts import BuildPart, Planned
from terse_aug.bank.build.report import BY_MASK, BuildLog, BuildReport, EvenSample, Progress
from terse_aug.bank.build.workers import check_jobs, run_in_order
from terse_aug.bank.extract import DEFAULT_RULES, ExtractionRules
from terse_aug.bank.inputs.deep_images import DIM_16BIT
from terse_aug.bank.inputs.image_list import ImageList
from terse_aug.bank.storage.writer import BankWriter, check_place

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class BuildOptions:
    """Keyword arguments that builders have in common (``**options``).

    Folders and files that a builder reads may be lists, for several parts of a data set, see ``docs/banks.md``.

    A build that was stopped (Ctrl-C, a kill) leaves its part of the bank in a hidden file beside ``out``,
    and the same build continues from there, see ``docs/banks.md``.

    Attributes:
        image_list: text file of names of the images to use, one a line, such as a training split; all by default. A
            name is a path below the image folder or its last part, with or without extension. In Python also a list.
        rules: which objects are kept, and how large, see :class:`ExtractionRules`.
        rejected_sheet: draw rejected objects, by reason, and some kept ones: ``NAME.png`` for one sheet, or a folder
            for a file of each reason.
        overwrite: replace an existing bank, and sheets.
        progress: called with the number of images done and in total.
        jobs: number of processes; by default one for each core, at most 8, if the build takes long enough. The bank
            does not depend on it.
        only_planned: end with what to build from instead of building, for a part of a data set.

    Raises:
        FileNotFoundError: the text file of ``image_list`` does not exist.
        FileExistsError: ``out`` or ``rejected_sheet`` exists and ``overwrite`` is false.
        ValueError: nothing was kept, or an option is out of range.
        OSError: the disk is full or cannot be written, or a process died (``ChildProcessError``).
    """

    image_list: Iterable[str] | str | Path | None = None
    rules: ExtractionRules = DEFAULT_RULES
    rejected_sheet: str | Path | None = None
    overwrite: bool = False
    progress: Progress | None = None
    jobs: int | None = None
    only_planned: bool = False

    def __post_init__(self) -> None:
        check_jobs(self.jobs)

    @classmethod
    def checked(cls, out: str | Path, options: Mapping[str, Any]) -> Self:
        """The options, checked as far as possible before anything is read; errors as above."""
        settings = cls(**options)
        if settings.image_list is None or isinstance(settings.image_list, str | Path):  # else it may be an iterator
            ImageList(settings.image_list)
        check_place(Path(out), settings.overwrite)
        if settings.rejected_sheet is not None:
            check_target(Path(settings.rejected_sheet), settings.overwrite)
        return settings

    def build(
        self,
        out: str | Path,
        source: Source,
        record: dict[str, Any],
        categories: Mapping[int, str],
        keypoint_names: Sequence[str] = (),
        locate: Locate = Path,
        counted: str = "images",
    ) -> BuildReport:
        """Build a bank, in several processes where that pays; errors as above.

        Args:
            out: the bank to write.
            source: the images.
            record: how the bank is built; stored in it.
            categories: name of each label.
            keypoint_names: of the foregrounds.
            locate: finds the images of rejected samples.
            counted: what the items of the source are.

        Raises:
            KeyboardInterrupt, ChildProcessError: interrupted, or a process died; the message says what is kept.
        """
        if self.only_planned:
            raise Planned(BuildPart(source, record, categories, keypoint_names, locate))
        writer = BankWriter(out, categories, keypoint_names=keypoint_names, overwrite=self.overwrite)
        partial = PartialBuild(writer.path)
        try:
            with partial:

                def fill(log: BuildLog) -> None:
                    _fill(writer, source, partial, log, self)
                    partial.keep_on_error = writer.count > 0  # an error in drawing should not cost the work

                target = None if self.rejected_sheet is None else Path(self.rejected_sheet)
                return build(writer, fill, record, target, locate)
        except (KeyboardInterrupt, ChildProcessError) as error:
            if not partial.images:
                raise
            raise type(error)(
                f"{str(error) or 'interrupted'}; {partial.images} of {len(source.items)} {counted} are done and kept: "
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

    ``fill`` adds the foregrounds to the writer in a fixed order, and logs images, what is repaired and rejected, and
    the method by which each mask was made, unless all were annotated. The other arguments are those of
    :meth:`BuildOptions.build`; what is rejected is drawn at ``rejected_sheet``.

    Warns:
        UserWarning: 16-bit images are dark, since they use fewer bits.

    Raises:
        FileExistsError, FileNotFoundError: the sheets cannot go where they are wanted.
        ValueError: nothing was kept; the message says why.
        OSError: the disk is full or cannot be written.
    """
    start = time.perf_counter()
    log = BuildLog()
    with writer:
        fill(log)
        if rejected_sheet is not None and (writer.count or log.rejected.counts):
            kept: EvenSample[int] = EvenSample()
            for number in range(writer.count):
                kept.add(number)
            write_sheets(rejected_sheet, log.sections(writer.read(kept.items()), writer.count), locate)
        if not writer.count:
            raise ValueError(_nothing_kept(writer.path, log))
        mask_sources = dict(log.mask_sources.most_common()) or {BY_MASK: writer.count}
        if dim := log.repaired.counts[DIM_16BIT]:
            warnings.warn(f"{dim} images of {writer.path}: {DIM_16BIT}", stacklevel=4)
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


def _fill(writer: BankWriter, source: Source, partial: PartialBuild, log: BuildLog, options: BuildOptions) -> None:
    total, chunks, task = len(source.items), source.chunks(), ExtractionTask.of(source, writer)
    report_progress = options.progress or (lambda done, total: None)
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
    rest = run_in_order(
        task, source, chunks[resumed:], options.jobs, lambda done: report_progress(log.resumed + done, total)
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


def _nothing_kept(path: Path, log: BuildLog) -> str:
    reasons = [line.strip() for line in log.rejected.lines()]
    reasons += [f"{dim}  {DIM_16BIT}"] if (dim := log.repaired.counts[DIM_16BIT]) else []
    nothing = f"nothing, since there is no annotated object ({log.images} images with annotations)"
    return f"no foreground was kept, so no bank is written to {path}; rejected: " + ("; ".join(reasons) or nothing)

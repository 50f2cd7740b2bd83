"""Keyword arguments that the builders of banks have in common."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.contact_sheets import Locate, check_target
from terse_aug.bank.build.pipeline import build_from_source
from terse_aug.bank.build.report import BuildReport, Progress
from terse_aug.bank.build.workers import check_jobs
from terse_aug.bank.extract import ExtractionRules
from terse_aug.bank.inputs.image_list import ImageList
from terse_aug.bank.segmenters.box import BoxMaskMethod, BoxMasks
from terse_aug.bank.storage.writer import BankWriter, check_place

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class BuildOptions:
    """Keyword arguments that builders have in common (``**options``).

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

    Raises:
        FileNotFoundError: the text file of ``image_list`` does not exist.
        FileExistsError: ``out`` or ``rejected_sheet`` exists and ``overwrite`` is false.
        ValueError: nothing was kept, or an option is out of range.
        OSError: the disk is full or cannot be written, or a process died (``ChildProcessError``).
    """

    image_list: Iterable[str] | str | Path | None = None
    rules: ExtractionRules | None = None
    rejected_sheet: str | Path | None = None
    overwrite: bool = False
    progress: Progress | None = None
    jobs: int | None = None

    def __post_init__(self) -> None:
        check_jobs(self.jobs)

    @property
    def extraction_rules(self) -> ExtractionRules:
        """``rules`` or the default."""
        return self.rules or ExtractionRules()

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
    ) -> BuildReport:
        """Build a bank.

        Args:
            out: the bank to write.
            source: the images.
            record: how the bank is built; stored in it.
            categories: name of each label.
            keypoint_names: of the foregrounds.
            locate: finds the images of rejected samples.
        """
        writer = BankWriter(out, categories, keypoint_names=keypoint_names, overwrite=self.overwrite)
        return build_from_source(
            writer,
            source,
            record,
            jobs=self.jobs,
            rejected_sheet=self.rejected_sheet,
            progress=self.progress,
            locate=locate,
        )


@dataclass(frozen=True)
class AnnotationOptions(BuildOptions):
    """Keyword arguments that builders from annotations have in common, beside those of :class:`BuildOptions`.

    Attributes:
        categories: names of the categories to keep; all by default.
        boxes: how masks of objects that have a box only are made: ``"grabcut"``, ``"ellipse"``, ``"box"``, a function
            of image and box such as a segmentation model, or :class:`BoxMasks`. By default these objects are rejected.
            With a function, ``jobs`` is 1 by default, and each of more processes has a copy of it.

    Raises:
        ValueError: a category or a method is unknown.
    """

    categories: Collection[str] | None = None
    boxes: BoxMasks | str | BoxMaskMethod | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.box_masks  # an unknown method is an error at once

    @property
    def box_masks(self) -> BoxMasks | None:
        """``boxes`` as :class:`BoxMasks`."""
        return self.boxes if self.boxes is None or isinstance(self.boxes, BoxMasks) else BoxMasks(self.boxes)


def check_relative_size(relative_size: float) -> None:
    """Raise ``ValueError`` unless a relative size is finite and above 0."""
    if not (math.isfinite(relative_size) and relative_size > 0):
        raise ValueError(f"expected a finite relative_size above 0, got {relative_size!r}")

"""Builds a bank from a folder of images with transparency. Imports numpy and pillow only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.pipeline import build_from_source
from terse_aug.bank.build.rejected_sample import RejectedSample
from terse_aug.bank.build.report import BuildLog, BuildReport, Progress
from terse_aug.bank.build.workers import check_jobs
from terse_aug.bank.extract import ExtractionRules, RejectedObject, finish, tight_box, what_is_seen
from terse_aug.bank.inputs.class_folders import class_of, labels_of, visible_files
from terse_aug.bank.inputs.image_list import ImageList
from terse_aug.bank.inputs.images import NoAlphaError, read_rgba
from terse_aug.bank.storage.writer import BankWriter
from terse_aug.structures.foreground import Foreground

_EXTENSIONS = (".png", ".webp", ".tif", ".tiff")


def build_from_rgba(
    folder: str | Path,
    out: str | Path,
    *,
    category: str = "object",
    relative_size: float = 0.3,
    image_list: Iterable[str] | str | Path | None = None,
    rules: ExtractionRules | None = None,
    rejected_sheet: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    jobs: int | None = None,
) -> BuildReport:
    """Build a bank from PNG, WebP or TIFF files whose alpha channel cuts the object out.

    Files in a subfolder (at any depth below it) are of the class that the subfolder is named after. Labels
    are 1, 2, ... in the order of the class names.

    Args:
        folder: where the files are.
        out: the bank to write.
        category: class of the files that lie in ``folder`` itself.
        extent: natural size of all objects, see :class:`Foreground`: larger side over the square root of the
            background's area. The files do not tell, since there is no image they were cut from.
        include: image names to use, see :class:`ImageList`; all by default.
        rules: what is kept, see :class:`ExtractionRules`; ``min_box_agreement`` means nothing here.
        drops: where to draw pictures of what was left out, see :func:`build_from_coco`.
        overwrite: replace an existing bank, and pictures.
        progress: called with images done and in total.
        jobs: processes that cut objects out, see :func:`build_from_coco`.

    Raises:
        FileNotFoundError: ``folder`` does not exist.
        FileExistsError: ``out`` or ``rejected_sheet`` exists and ``overwrite`` is false.
        ValueError: nothing was kept, ``relative_size`` is not above 0, or ``rules`` ask for ``drop_truncated``,
            which a cut-out does not show.
        OSError: the disk is full or cannot be written.
    """
    check_jobs(jobs)
    rules = rules or ExtractionRules()
    if rules.drop_truncated:
        raise ValueError("drop_truncated needs the image an object was cut from; RGBA files have none")
    if not (math.isfinite(relative_size) and relative_size > 0):
        raise ValueError(f"expected a finite relative_size above 0, got {relative_size!r}")
    root, listed = Path(folder), ImageList(image_list)
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder of RGBA images at {root}, found none")
    files = visible_files(root)
    pictured = {path for path in files if path.suffix.lower() in _EXTENSIONS}
    labels = labels_of(root, pictured, category)
    writer = BankWriter(out, {label: name for name, label in labels.items()}, overwrite=overwrite)
    ledger, pictures = BuildLog(), []
    for path in files:
        name = path.relative_to(root).as_posix()
        if name not in listed:
            ledger.drop("image is not in `image_list`", name, shown=RejectedSample(path, name))
        elif path not in pictured:
            ledger.drop("not a PNG, WebP or TIFF file", name, shown=RejectedSample(path, name))
        else:
            pictures.append(_Picture(path, name, labels[class_of(root, path, category)]))
    listed.report_unmatched(ledger)
    built = {"from": "rgba", "folder": root.name, **vars(rules)}
    source = Source(pictures, _Extractor(relative_size, rules), built | {"relative_size": relative_size}, ledger)
    return build_from_source(writer, source, built, jobs=jobs, rejected_sheet=rejected_sheet, progress=progress)


class _Picture(NamedTuple):
    path: Path
    name: str
    label: int


@dataclass(frozen=True)
class _Extractor:
    """Takes objects from files of their own."""

    relative_size: float
    rules: ExtractionRules

    def files(self, unit: _Picture) -> tuple[Path]:
        """The one."""
        return (unit.path,)

    def objects(self, unit: _Picture, ledger: BuildLog) -> Iterator[Foreground]:
        """The one cut-out of a file, if there is one."""
        try:
            yield finish(Foreground(_tight_rgba(unit.path), unit.label, unit.name, self.relative_size), self.rules)
        except RejectedObject as reason:
            ledger.drop(str(reason), unit.name, shown=RejectedSample(unit.path, unit.name))


def _tight_rgba(path: Path) -> NDArray[np.uint8]:
    try:
        rgba = read_rgba(path)
    except NoAlphaError as error:
        raise RejectedObject("no alpha channel: nothing is cut out") from error
    except ValueError as error:
        raise RejectedObject("image cannot be read") from error
    alpha = rgba[..., 3]
    if alpha.min() == 255:
        raise RejectedObject("alpha is opaque everywhere: nothing is cut out")
    alpha = what_is_seen(alpha)
    tight = tight_box(alpha)
    if tight is None:
        raise RejectedObject("alpha is transparent everywhere")
    left, top, width, height = tight
    seen = np.concatenate([rgba[..., :3], alpha[..., None]], axis=2)
    return np.ascontiguousarray(seen[top : top + height, left : left + width])

"""Builds a bank from product photographs on a plain ground. Imports numpy and pillow only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.pipeline import build_from_source
from terse_aug.bank.build.rejected_sample import RejectedSample
from terse_aug.bank.build.report import BuildLog, BuildReport, Progress
from terse_aug.bank.build.workers import check_jobs
from terse_aug.bank.extract import Annotation, ExtractionRules, RejectedObject, extract_from_image
from terse_aug.bank.inputs.class_folders import class_of, labels_of
from terse_aug.bank.inputs.image_list import ImageList
from terse_aug.bank.inputs.images import NoAlphaError, read_image, read_mask, read_rgba
from terse_aug.bank.inputs.mask_pairing import paired
from terse_aug.bank.segmenters.plain_background import PlainBackground
from terse_aug.bank.segmenters.polarity import object_alpha
from terse_aug.bank.storage.writer import BankWriter
from terse_aug.structures.foreground import Foreground

_BY_GROUND = "plain ground"


def build_from_products(
    folder: str | Path,
    out: str | Path,
    *,
    masks: str | Path | None = None,
    ground: PlainBackground | None = None,
    category: str = "object",
    relative_size: float = 0.3,
    image_list: Iterable[str] | str | Path | None = None,
    rules: ExtractionRules | None = None,
    rejected_sheet: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    jobs: int | None = None,
) -> BuildReport:
    """Build a bank from photographs of objects before a plain ground, or with masks.

    Pictures in a subfolder (at any depth below it) are of the class that it is named after. Labels are 1, 2, ... in the
    order of the class names. Without masks the object is what differs from the ground, see :class:`PlainBackground`:
    pictures whose ground is not plain are left out, and shadows stay with their object. With masks, the object of each
    may be white or black; which it was taken for is told, per polarity, by the report.

    Args:
        folder: where the pictures are.
        out: the bank to write.
        masks: folder of masks ``NAME.png`` or ``NAME_mask.png`` of any image format, in the same subfolders or in none;
            grey values are alpha. It may be ``folder`` itself, see :func:`paired`, or lie in it.
        ground: how objects are told from the ground where there are no masks.
        category: class of the pictures that lie in ``folder`` itself.
        extent: natural size of all objects, see :class:`Foreground`: larger side over the square root of the
            background's area. A product's picture does not tell how large it is.
        include: image names to use, see :class:`ImageList`; all by default.
        rules: what is kept, see :class:`ExtractionRules`; ``min_box_agreement`` means nothing here.
        drops: where to draw pictures of what was left out, see :func:`build_from_coco`.
        overwrite: replace an existing bank, and pictures.
        progress: called with images done and in total.
        jobs: processes that cut objects out, see :func:`build_from_coco`.

    Raises:
        FileNotFoundError: a folder does not exist.
        FileExistsError: ``out`` or ``rejected_sheet`` exists and ``overwrite`` is false.
        ValueError: nothing was kept, ``relative_size`` is not above 0, or both ``masks`` and ``ground`` are given.
        OSError: the disk is full or cannot be written.
    """
    check_jobs(jobs)
    if not (math.isfinite(relative_size) and relative_size > 0):
        raise ValueError(f"expected a finite relative_size above 0, got {relative_size!r}")
    if masks is not None and ground is not None:
        raise ValueError("ground is for pictures without masks; leave one of them out")
    root, mask_root = Path(folder), None if masks is None else Path(masks)
    for place in (root, *([] if mask_root is None else [mask_root])):
        if not place.is_dir():
            raise FileNotFoundError(f"expected a folder at {place}, found none")
    ledger = BuildLog()
    pairs = paired(root, mask_root, ledger)
    labels = labels_of(root, pairs.pictures, category)
    categories = {label: name for name, label in labels.items()}
    writer, listed = BankWriter(out, categories, overwrite=overwrite), ImageList(image_list)
    photographs = []
    for path in pairs.pictures:
        name = path.relative_to(root).as_posix()
        if name in listed:
            label = labels[class_of(root, path, category)]
            photographs.append(_Photograph(path, name, label, pairs.mask_of.get(path), path in pairs.shared))
        else:
            ledger.drop("image is not in `image_list`", name)
    listed.report_unmatched(ledger)
    own_rules, own_ground = rules or ExtractionRules(), ground or PlainBackground()
    mask_sources = asdict(own_ground) if mask_root is None else {"masks": mask_root.name}
    built = {"from": "products", "folder": root.name} | mask_sources | vars(own_rules)
    cutter = _Extractor(mask_root is not None, own_ground, own_rules, relative_size)
    source = Source(photographs, cutter, built | {"relative_size": relative_size}, ledger)
    return build_from_source(writer, source, built, jobs=jobs, rejected_sheet=rejected_sheet, progress=progress)


class _Photograph(NamedTuple):
    """One picture, with its mask where it has one, which may be that of another as well."""

    path: Path
    name: str
    label: int
    mask: Path | None
    shared: bool


@dataclass(frozen=True)
class _Extractor:
    """Cuts objects out of photographs.

    Attributes:
        by_mask: whether they are cut out by masks, or from a plain ground.
        ground: what that is.
        rules: what is kept.
        extent: natural size of all objects.
    """

    by_mask: bool
    ground: PlainBackground
    rules: ExtractionRules
    relative_size: float

    def files(self, unit: _Photograph) -> Iterator[Path]:
        """The picture and its mask."""
        yield unit.path
        if unit.mask is not None:
            yield unit.mask

    def objects(self, unit: _Photograph, ledger: BuildLog) -> Iterator[Foreground]:
        """The objects of a picture; what is left out is counted."""
        try:
            pixels = _pixels(unit.path)
            alphas, way = _by_mask(unit, pixels) if self.by_mask else (_by_ground(pixels, self.ground), _BY_GROUND)
        except RejectedObject as reason:
            ledger.drop(str(reason), unit.name, shown=RejectedSample(unit.path, unit.name))
            return
        for number, alpha in enumerate(alphas, 1):
            source = unit.name if len(alphas) == 1 else f"{unit.name}#{number}"
            try:
                cut = extract_from_image(pixels, alpha, Annotation(unit.label, source), self.rules, soft=True)
            except RejectedObject as reason:
                ledger.drop(str(reason), source, shown=RejectedSample(unit.path, source))
            else:
                ledger.mask_sources[way] += 1
                yield replace(cut, relative_size=self.relative_size)


def _pixels(path: Path) -> NDArray[np.uint8]:
    try:
        if read_rgba(path)[..., 3].min() < 255:
            raise RejectedObject("picture is cut out already by its transparency: that is source rgba")
    except NoAlphaError:
        pass
    except ValueError as error:
        raise RejectedObject("image cannot be read") from error
    return read_image(path)


def _by_mask(unit: _Photograph, pixels: NDArray[np.uint8]) -> tuple[list[NDArray[np.uint8]], str]:
    if unit.mask is None:
        raise RejectedObject("picture without a mask of its name")
    if unit.shared:
        raise RejectedObject("picture has its mask in common with another of its name")
    try:
        mask = read_mask(unit.mask)
    except ValueError as error:
        raise RejectedObject("mask file cannot be read") from error
    if mask.shape != pixels.shape[:2]:
        raise RejectedObject("mask file and image differ in size")
    alpha, way = object_alpha(mask, pixels)
    return [alpha], way


def _by_ground(pixels: NDArray[np.uint8], ground: PlainBackground) -> list[NDArray[np.uint8]]:
    if ((pixels == 0) | (pixels == 255)).all() and (pixels == pixels[..., :1]).all():
        raise RejectedObject("picture is black and white only, and so a mask: give it as such (masks)")
    return ground.alphas(pixels)

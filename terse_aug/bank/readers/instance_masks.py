"""Builds a bank from images and instance masks, in the form of Penn-Fudan. Imports numpy and pillow only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.pipeline import build_from_source
from terse_aug.bank.build.rejected_sample import RejectedSample
from terse_aug.bank.build.report import BuildLog, BuildReport, Progress
from terse_aug.bank.build.workers import check_jobs
from terse_aug.bank.extract import Annotation, ExtractionRules, RejectedObject, extract_from_image
from terse_aug.bank.inputs.file_names import fitting
from terse_aug.bank.inputs.image_list import ImageList
from terse_aug.bank.inputs.images import read_image_like, read_index_mask
from terse_aug.bank.inputs.masks import MaskInFile
from terse_aug.bank.storage.writer import BankWriter
from terse_aug.structures.foreground import Foreground

_LABEL = 1
_MASK_SUFFIX = "_mask"
_IMAGE_EXTENSIONS = {
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".gif",
}


def build_from_masks(
    images: str | Path,
    masks: str | Path,
    out: str | Path,
    *,
    category: str = "person",
    image_list: Iterable[str] | str | Path | None = None,
    rules: ExtractionRules | None = None,
    rejected_sheet: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    jobs: int | None = None,
) -> BuildReport:
    """Build a bank from a folder of images and one of instance masks.

    ``NAME.jpg`` belongs to ``NAME_mask.png`` or ``NAME.png``; both folders may be the same when masks have
    the ``_mask``. In a mask, 0 is background and every other number one object.

    Args:
        images: folder of images.
        masks: folder of masks: one integer channel, or a palette whose indices count.
        out: the bank to write.
        category: name of all objects; their label is 1.
        include: image names to use, see :class:`ImageList`; all by default.
        rules: what is kept, see :class:`ExtractionRules`.
        drops: where to draw pictures of what was left out, see :func:`build_from_coco`.
        overwrite: replace an existing bank, and pictures.
        progress: called with images done and in total.
        jobs: processes that cut objects out, see :func:`build_from_coco`.

    Raises:
        FileNotFoundError: a folder does not exist.
        FileExistsError: ``out`` or ``rejected_sheet`` exists and ``overwrite`` is false.
        ValueError: nothing was kept.
        OSError: the disk is full or cannot be written.
    """
    check_jobs(jobs)
    rules = rules or ExtractionRules()
    writer = BankWriter(out, {_LABEL: category}, overwrite=overwrite)
    image_folder, mask_folder, listed = _folder(images), _folder(masks), ImageList(image_list)
    ledger = BuildLog()
    pairs = list(_pairs(image_folder, mask_folder, listed, ledger))
    built = {"from": "masks", "images": image_folder.name, **vars(rules)}
    source = Source(pairs, _Extractor(rules), built, ledger)
    return build_from_source(writer, source, built, jobs=jobs, rejected_sheet=rejected_sheet, progress=progress)


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder of images at {folder}, found none")
    return folder


def _pairs(images: Path, masks: Path, image_list: ImageList, ledger: BuildLog) -> Iterator[tuple[Path, Path]]:
    image_by_stem = _by_stem(images, ledger)
    mask_by_stem = _by_stem(masks, ledger) if masks.resolve() != images.resolve() else image_by_stem
    if mask_by_stem is image_by_stem:
        image_by_stem = {stem: p for stem, p in image_by_stem.items() if not stem.endswith(_MASK_SUFFIX)}
        mask_by_stem = {stem: p for stem, p in mask_by_stem.items() if stem.endswith(_MASK_SUFFIX)}
    mask_of = _named_otherwise(image_by_stem, mask_by_stem, ledger)
    used: set[str] = set()
    for stem, image in image_by_stem.items():
        exact = stem + _MASK_SUFFIX if stem + _MASK_SUFFIX in mask_by_stem else stem
        mask_stem = exact if exact in mask_by_stem else mask_of.get(stem, stem)
        used.add(mask_stem)
        if image.name not in image_list:
            ledger.drop("image is not in `image_list`", image.name)
        elif mask_stem not in mask_by_stem:
            ledger.drop("image without a mask of its name", image.name)
        else:
            yield image, mask_by_stem[mask_stem]
    for stem in sorted(mask_by_stem.keys() - used):
        ledger.drop("mask without an image of its name", mask_by_stem[stem].name)
    image_list.report_unmatched(ledger)


def _named_otherwise(images: dict[str, Path], masks: dict[str, Path], ledger: BuildLog) -> dict[str, str]:
    """Masks of images whose names they spell otherwise, by both names without extension."""
    own = {stem: stem.removesuffix(_MASK_SUFFIX) for stem in masks}
    of_own = {name: stem for stem, name in own.items()}
    fits = fitting(images, own.values())
    for stem, fit in fits.items():
        if fit.name is not None:
            ledger.repair([f"mask: {fit.reason}"], images[stem].name)
    return {stem: of_own[fit.name] for stem, fit in fits.items() if fit.name is not None}


def _by_stem(folder: Path, ledger: BuildLog) -> dict[str, Path]:
    """Image files by name without extension, in the order of their names."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith(".") or path.suffix.lower() not in _IMAGE_EXTENSIONS:
            continue
        if path.stem in found:
            ledger.drop("second file of the same name, of another extension", path.name)
        found.setdefault(path.stem, path)
    return found


@dataclass(frozen=True)
class _Extractor:
    """Cuts the objects out of pairs of image and mask."""

    rules: ExtractionRules

    def files(self, unit: tuple[Path, Path]) -> tuple[Path, Path]:
        """Both."""
        return unit

    def objects(self, unit: tuple[Path, Path], ledger: BuildLog) -> Iterator[Foreground]:
        """The cut-outs of an image."""
        image_path, mask_path = unit
        try:
            ids = read_index_mask(mask_path)
            image = read_image_like(image_path, *ids.shape)
        except ValueError as error:
            ledger.drop("image or mask cannot be read", str(error))
            return
        if image.shape[:2] != ids.shape:
            where = _sizes(image_path, image, ids)
            ledger.drop("image and mask differ in size", where, shown=RejectedSample(image_path, where))
            return
        numbers = [number for number in np.unique(ids).tolist() if number]
        if not numbers:
            ledger.drop("mask has no object", mask_path.name, shown=RejectedSample(image_path, mask_path.name))
        for number in numbers:
            source = f"{image_path.name}#{number}"
            mask = (ids == number).astype(np.uint8)
            try:
                yield extract_from_image(image, mask, Annotation(_LABEL, source), self.rules)
            except RejectedObject as reason:
                shown = RejectedSample(image_path, source, segmentation=MaskInFile(mask_path, number))
                ledger.drop(str(reason), source, shown=shown)


def _sizes(path: Path, image: NDArray[np.uint8], ids: NDArray[np.int32]) -> str:
    return f"{path.name}: image {image.shape[0]}x{image.shape[1]}, mask {ids.shape[0]}x{ids.shape[1]}"

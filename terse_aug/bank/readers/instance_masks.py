"""Images and instance masks of the same names, as in Penn-Fudan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.rejected_sample import RejectedSample
from terse_aug.bank.build.report import BuildLog, BuildReport
from terse_aug.bank.extract import Annotation, ExtractionRules, RejectedObject, extract_from_image
from terse_aug.bank.inputs.file_names import match_names
from terse_aug.bank.inputs.folders import check_folders
from terse_aug.bank.inputs.image_list import NOT_LISTED, ImageList
from terse_aug.bank.inputs.images import read_image_like, read_index_mask
from terse_aug.bank.inputs.mask_pairing import IMAGE_OR_MASK_SUFFIXES, MASK_SUFFIX, NO_IMAGE
from terse_aug.bank.inputs.masks import MaskInFile
from terse_aug.bank.readers.options import BuildOptions
from terse_aug.structures.foreground import Foreground

_LABEL = 1


def build_from_masks(
    images: str | Path, masks: str | Path, out: str | Path, *, category: str = "person", **options: Any
) -> BuildReport:
    """Build a bank from a folder of images and one of instance masks of the same names (Penn-Fudan).

    ``NAME.jpg`` belongs to ``NAME_mask.png`` or ``NAME.png``; both folders may be the same if masks have
    the ``_mask``. In a mask, 0 is background and every other number one object.

    Args:
        images: folder of images NAME.png.
        masks: folder of masks NAME_mask.png or NAME.png: one integer channel, or a palette whose indices count.
        out: the bank to write.
        category: class of all objects; its label is 1.
        options: see :class:`BuildOptions`.

    Raises:
        FileNotFoundError: a folder does not exist.
        FileExistsError, ValueError, OSError: as :class:`BuildOptions`.
    """
    settings = BuildOptions.checked(out, options)
    image_folder, mask_folder = Path(images), Path(masks)
    check_folders(image_folder, mask_folder, content="images")
    log, rules = BuildLog(), settings.extraction_rules
    pairs = pair_instance_masks(image_folder, mask_folder, ImageList(settings.image_list), log)
    record = {"from": "masks", "images": image_folder.name, **vars(rules)}
    return settings.build(out, Source(pairs, _Extractor(rules), record, log), record, {_LABEL: category})


def pair_instance_masks(images: Path, masks: Path, image_list: ImageList, log: BuildLog) -> list[tuple[Path, Path]]:
    """Images of a folder and their masks, in the order of the names; what has no counterpart is counted."""
    image_by_stem = _by_stem(images, log)
    if masks.resolve() == images.resolve():
        mask_by_stem = {stem: path for stem, path in image_by_stem.items() if stem.endswith(MASK_SUFFIX)}
        image_by_stem = {stem: path for stem, path in image_by_stem.items() if stem not in mask_by_stem}
    else:
        mask_by_stem = _by_stem(masks, log)
    similar = _similar_names(image_by_stem, mask_by_stem, log)
    pairs, used = [], set()
    for stem, image in image_by_stem.items():
        candidates = (stem + MASK_SUFFIX, stem, similar.get(stem, stem))
        mask_stem = next((name for name in candidates if name in mask_by_stem), stem)
        used.add(mask_stem)
        if image.name not in image_list:
            log.drop(NOT_LISTED, image.name)
        elif mask_stem not in mask_by_stem:
            log.drop("image without a mask of its name", image.name)
        else:
            pairs.append((image, mask_by_stem[mask_stem]))
    for stem in sorted(mask_by_stem.keys() - used):
        log.drop(NO_IMAGE, mask_by_stem[stem].name)
    image_list.report_unmatched(log)
    return pairs


def _similar_names(images: dict[str, Path], masks: dict[str, Path], log: BuildLog) -> dict[str, str]:
    """Masks of images whose names they spell differently, by both names without extension."""
    stem_of = {stem.removesuffix(MASK_SUFFIX): stem for stem in masks}
    similar = {}
    for stem, match in match_names(images, stem_of).items():
        if match.name is not None:
            log.repair([f"mask: {match.reason}"], images[stem].name)
            similar[stem] = stem_of[match.name]
    return similar


def _by_stem(folder: Path, log: BuildLog) -> dict[str, Path]:
    """Image files by name without extension, in the order of their names."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith(".") or path.suffix.lower() not in IMAGE_OR_MASK_SUFFIXES:
            continue
        if files.setdefault(path.stem, path) != path:
            log.drop("second file of the same name, of another extension", path.name)
    return files


@dataclass(frozen=True)
class _Extractor:
    """Extracts the objects of pairs of image and mask."""

    rules: ExtractionRules

    def files(self, item: tuple[Path, Path]) -> tuple[Path, Path]:
        """Both files."""
        return item

    def objects(self, item: tuple[Path, Path], log: BuildLog) -> Iterator[Foreground]:
        """The foregrounds of an image."""
        image_path, mask_path = item
        try:
            numbers = read_index_mask(mask_path)
            image = read_image_like(image_path, *numbers.shape)
        except ValueError as error:
            log.drop("image or mask cannot be read", str(error))
            return
        if image.shape[:2] != numbers.shape:
            sizes = "image {}x{}, mask {}x{}".format(*image.shape[:2], *numbers.shape)
            where = f"{image_path.name}: {sizes}"
            log.drop("image and mask differ in size", where, shown=RejectedSample(image_path, where))
            return
        objects = [number for number in np.unique(numbers).tolist() if number]
        if not objects:
            log.drop("mask has no object", mask_path.name, shown=RejectedSample(image_path, mask_path.name))
        for number in objects:
            source = f"{image_path.name}#{number}"
            mask = (numbers == number).astype(np.uint8)
            try:
                yield extract_from_image(image, mask, Annotation(_LABEL, source), self.rules)
            except RejectedObject as reason:
                shown = RejectedSample(image_path, source, segmentation=MaskInFile(mask_path, number))
                log.drop(str(reason), source, shown=shown)

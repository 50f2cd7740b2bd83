"""Images and instance masks of the same names, as in Penn-Fudan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.pipeline import BuildOptions
from terse_aug.bank.build.report import BuildLog, BuildReport, RejectedSample
from terse_aug.bank.extract import Annotation, ExtractionRules, RejectedObject, extract_from_image
from terse_aug.bank.inputs.folders import ListedImage, check_folders, find_images
from terse_aug.bank.inputs.image_list import ImageList
from terse_aug.bank.inputs.images import read_image_like, read_index_mask, why_unreadable
from terse_aug.bank.inputs.masks import MaskInFile
from terse_aug.bank.inputs.repair import Repairs
from terse_aug.structures.foreground import Foreground

_LABEL = 1


def build_from_masks(
    images: str | Path, masks: str | Path, out: str | Path, *, category: str = "person", **options: Any
) -> BuildReport:
    """Build a bank from a folder of images and one of instance masks of the same names (Penn-Fudan).

    Both folders may be the same if masks have the ``_mask``; masks may lie in the same subfolders or in none. In a
    mask, 0 is background and every other number one object. ``rules.min_box_agreement`` has no effect.

    Args:
        images: folder of images NAME.png, of any image format.
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
    log, rules = BuildLog(), settings.rules
    items, _ = find_images(image_folder, mask_folder, ImageList(settings.image_list), log)
    record = {"from": "masks", "images": image_folder.name, **vars(rules)}
    return settings.build(out, Source(items, _Extractor(rules), record, log), record, {_LABEL: category})


@dataclass(frozen=True)
class _Extractor:
    """Extracts the objects of pairs of image and mask."""

    rules: ExtractionRules

    def files(self, item: ListedImage) -> tuple[Path, Path]:
        """Both files."""
        assert item.mask is not None
        return item.path, item.mask

    def objects(self, item: ListedImage, log: BuildLog) -> Iterator[Foreground]:
        """The foregrounds of an image."""
        image_path, mask_path = self.files(item)
        try:
            numbers = read_index_mask(mask_path)
            notes: Repairs = set()
            image = read_image_like(image_path, numbers.shape[0], numbers.shape[1], self.rules.levels, notes)
        except ValueError as error:
            log.drop(why_unreadable(error, "image or mask cannot be read"), str(error))
            return
        log.repair(notes, item.name)
        if image.shape[:2] != numbers.shape:
            sizes = "image {}x{}, mask {}x{}".format(*image.shape[:2], *numbers.shape)
            where = f"{item.name}: {sizes}"
            log.drop("image and mask differ in size", where, shown=RejectedSample(image_path, where))
            return
        objects = [number for number in np.unique(numbers).tolist() if number]
        if not objects:
            log.drop("mask has no object", mask_path.name, shown=RejectedSample(image_path, mask_path.name))
        for number in objects:
            source = f"{item.name}#{number}"
            mask = (numbers == number).astype(np.uint8)
            try:
                yield extract_from_image(image, mask, Annotation(_LABEL, source), self.rules)
            except RejectedObject as reason:
                shown = RejectedSample(image_path, source, segmentation=MaskInFile(mask_path, number))
                log.drop(str(reason), source, shown=shown)

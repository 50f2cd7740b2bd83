"""Photographs of objects without annotations, cut out by a cutter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.pipeline import BuildOptions
from terse_aug.bank.build.report import BuildLog, BuildReport
from terse_aug.bank.extract import Annotation, ExtractionRules, RejectedObject, extract_from_image
from terse_aug.bank.inputs.folders import ListedImage, check_folders, class_labels, find_images
from terse_aug.bank.inputs.image_list import ImageList
from terse_aug.bank.inputs.repair import Repairs
from terse_aug.bank.readers.other_formats import names_other_formats
from terse_aug.bank.readers.products import read_opaque, rejected_image
from terse_aug.bank.readers.several_parts import Paths, as_path, takes_several
from terse_aug.bank.segmenters.cutter import (
    SOLID,
    ImageCutter,
    check_healthy,
    checked_alpha,
    cutter_name,
    cutter_record,
    fingerprint_of,
    tidy_alpha,
)
from terse_aug.structures.foreground import Foreground

_FULL = 0.95
"""Fraction of the image from which a mask fills it."""
_MOST_OF_BORDER = 0.9
"""Fraction of the image's border from which a mask is probably that of the background."""


@takes_several()
@names_other_formats
def build_from_unlabelled(
    images: Paths,
    out: str | Path,
    *,
    cutter: ImageCutter,
    category: str = "object",
    accept_unhealthy: bool = False,
    **options: Any,
) -> BuildReport:
    """Build a bank from photographs of objects without annotations, cut out by a learned cutter.

    The whole photograph is given to the cutter, and what it finds is one foreground, without specks. Images in a
    subfolder, at any depth, are of the class that it is named after. Labels are 1, 2, ... in the order of the class
    names. ``rules.min_box_agreement`` has no effect.

    Args:
        images: folder of the photographs; its subfolders are classes.
        out: the bank to write.
        cutter: such as :class:`terse_aug.discovery.Cutter`. Without a text as ``fingerprint`` the build cannot be
            resumed, and runs in one process by default.
        category: class of images in no subfolder.
        accept_unhealthy: use a cutter that is marked as collapsed.
        options: see :class:`BuildOptions`.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the cutter has no ``cut``, or is marked as collapsed.
        FileExistsError, ValueError, OSError: as :class:`BuildOptions`.
    """
    settings = BuildOptions.checked(out, options)
    if not callable(getattr(cutter, "cut", None)):
        raise ValueError(f"expected a cutter with a method cut(image), got {type(cutter).__name__}")
    check_healthy(cutter, accept_unhealthy)
    root = as_path(images)
    check_folders(root, content="images")
    log, rules = BuildLog(), settings.rules
    found, all_images = find_images(root, None, ImageList.of(settings.image_list), log)
    label_of, categories = class_labels(root, all_images, category)
    items = [(image, label_of[image.path]) for image in found]
    record = {"from": "unlabelled", "images": root.name} | cutter_record(cutter) | vars(rules)
    known = None if fingerprint_of(cutter) is None else record
    return settings.build(out, Source(items, _Extractor(cutter, rules), known, log), record, categories)


_Item = tuple[ListedImage, int]
"""An image and its label."""


@dataclass(frozen=True)
class _Extractor:
    """Extracts the object of one image after the other."""

    cutter: ImageCutter
    rules: ExtractionRules

    def files(self, item: _Item) -> list[Path]:
        """The image."""
        return [item[0].path]

    def objects(self, item: _Item, log: BuildLog) -> Iterator[Foreground]:
        """The foreground of an image, if there is one."""
        image, label = item
        alpha: NDArray[np.uint8] | None = None
        try:
            notes: Repairs = set()
            pixels = read_opaque(image.path, self.rules, notes)
            log.repair(notes, image.name)
            alpha = self._alpha(pixels)
            foreground = extract_from_image(pixels, alpha, Annotation(label, image.name), self.rules, soft=True)
        except RejectedObject as reason:
            mask = alpha if reason.mask is None else reason.mask
            log.drop(str(reason), image.name, shown=rejected_image(image, image.name, mask))
            return
        log.mask_sources[cutter_name(self.cutter)] += 1
        yield foreground

    def _alpha(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        try:
            made = self.cutter.cut(pixels)
        except RejectedObject:
            raise
        except Exception as error:
            raise RejectedObject(f"{cutter_name(self.cutter)} failed ({type(error).__name__})") from error
        alpha = checked_alpha(made, pixels.shape)
        solid = (alpha >= SOLID).astype(np.uint8)
        if not solid.any():
            raise RejectedObject(f"the cutter found nothing: no pixel has an alpha of {SOLID} or more", solid)
        if solid.mean() >= _FULL:
            raise RejectedObject(f"the mask fills the image: {100 * _FULL:g} % or more of it", solid)
        if np.concatenate([solid[0], solid[-1], solid[:, 0], solid[:, -1]]).mean() >= _MOST_OF_BORDER:
            raise RejectedObject("the mask covers the image's border, and so is probably that of the background", solid)
        return tidy_alpha(alpha)

"""Product photographs in front of a plain background, or with masks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.pipeline import BuildOptions
from terse_aug.bank.build.report import BuildLog, BuildReport, RejectedSample
from terse_aug.bank.extract import Annotation, ExtractionRules, RejectedObject, extract_from_image
from terse_aug.bank.inputs.folders import ListedImage, check_folders, check_relative_size, class_labels, find_images
from terse_aug.bank.inputs.image_list import ImageList
from terse_aug.bank.inputs.images import NoAlphaError, read_image, read_mask, read_rgba, why_unreadable
from terse_aug.bank.inputs.masks import segmentation_as_json
from terse_aug.bank.inputs.repair import Repairs
from terse_aug.bank.readers.other_formats import names_other_formats
from terse_aug.bank.readers.several_parts import Paths, as_path, takes_several
from terse_aug.bank.segmenters.mask_polarity import object_alpha
from terse_aug.bank.segmenters.plain_background import PlainBackground
from terse_aug.structures.foreground import Foreground

_BY_BACKGROUND = "plain background"
_SETTINGS_OF_MASKS = ("refine", "split")


@takes_several()
@names_other_formats
def build_from_products(
    folder: Paths,
    out: str | Path,
    *,
    masks: Paths | None = None,
    background: PlainBackground | None = None,
    category: str = "object",
    relative_size: float = 0.3,
    **options: Any,
) -> BuildReport:
    """Build a bank from photographs of objects in front of a plain background, or with masks.

    Images in a subfolder, at any depth, are of the class that it is named after. Labels are 1, 2, ... in the order of
    the class names. Without masks the object is what differs from the background, see :class:`PlainBackground`; images
    whose background is not plain are rejected, and shadows are part of their object. With masks, the object of each
    may be white or black; the report counts both. ``rules.min_box_agreement`` has no effect.

    Args:
        folder: folder of the images; its subfolders are classes.
        out: the bank to write.
        masks: folder of masks NAME.png or NAME_mask.png of any image format, in the same subfolders or in none; grey
            values are alpha. It may be the folder of images, or lie in it.
        background: how objects are separated from the background. With masks, ``split`` and ``refine`` apply to them,
            and the other settings have no meaning.
        category: class of images in no subfolder.
        relative_size: longer side of every object over the square root of its background's area, which a product's
            image does not show.
        options: see :class:`BuildOptions`.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: ``relative_size`` is not above 0, or ``masks`` and settings without meaning for them are given.
        FileExistsError, ValueError, OSError: as :class:`BuildOptions`.
    """
    settings = BuildOptions.checked(out, options)
    check_relative_size(relative_size)
    background = background or PlainBackground()
    if masks is not None:
        _check_settings_of_masks(background)
    root, mask_root = as_path(folder), None if masks is None else as_path(masks)
    check_folders(root, mask_root)
    log, rules = BuildLog(), settings.rules
    images, all_images = find_images(root, mask_root, ImageList.of(settings.image_list), log)
    label_of, categories = class_labels(root, all_images, category)
    items = [(image, label_of[image.path]) for image in images]
    if mask_root is None:
        mask_settings = asdict(background)
    else:
        mask_settings = {"masks": mask_root.name} | {name: getattr(background, name) for name in _SETTINGS_OF_MASKS}
    record = {"from": "products", "folder": root.name} | mask_settings | vars(rules)
    extractor = _Extractor(background, rules, relative_size)
    source = Source(items, extractor, record | {"relative_size": relative_size}, log)
    return settings.build(out, source, record, categories)


def _check_settings_of_masks(background: PlainBackground) -> None:
    default = asdict(PlainBackground())
    changed = {name for name, value in asdict(background).items() if value != default[name]}
    if unused := sorted(changed - {*_SETTINGS_OF_MASKS}):
        raise ValueError(f"expected masks or {', '.join(unused)}, got both; {unused[0]} is for images without masks")


_Item = tuple[ListedImage, int]
"""An image and its label."""


@dataclass(frozen=True)
class _Extractor:
    """Extracts the objects of one image after the other, by masks where it has some."""

    background: PlainBackground
    rules: ExtractionRules
    relative_size: float

    def files(self, item: _Item) -> list[Path]:
        """The image and its mask."""
        return [path for path in (item[0].path, item[0].mask) if path is not None]

    def objects(self, item: _Item, log: BuildLog) -> Iterator[Foreground]:
        """The foregrounds of an image."""
        image, label = item
        try:
            notes: Repairs = set()
            pixels = read_opaque(image.path, self.rules, notes)
            log.repair(notes, image.name)
            if image.mask is not None:
                alpha, mask_source = _read_alpha(image.mask, pixels)
                alphas = self.background.alphas_of_mask(pixels, alpha)
            else:
                alphas, mask_source = _alphas_on_background(pixels, self.background), _BY_BACKGROUND
        except RejectedObject as reason:
            log.drop(str(reason), image.name, shown=rejected_image(image, image.name, reason.mask))
            return
        for number, alpha in enumerate(alphas, 1):
            source = image.name if len(alphas) == 1 else f"{image.name}#{number}"
            try:
                foreground = extract_from_image(pixels, alpha, Annotation(label, source), self.rules, soft=True)
            except RejectedObject as reason:
                log.drop(str(reason), source, shown=rejected_image(image, source, alpha))
            else:
                log.mask_sources[mask_source] += 1
                yield replace(foreground, relative_size=self.relative_size)


def rejected_image(image: ListedImage, caption: str, mask: NDArray[np.uint8] | None) -> RejectedSample:
    """For a sheet: an image, what it is called there, and the mask if one was made."""
    segmentation = None if mask is None else segmentation_as_json(mask > 0)
    return RejectedSample(image.path, caption, segmentation=segmentation)


def read_opaque(path: Path, rules: ExtractionRules, notes: Repairs) -> NDArray[np.uint8]:
    """A photograph uint8 ``[H, W, 3]``; one that cannot be read, or has transparency, is rejected."""
    try:
        with contextlib.suppress(NoAlphaError):
            if read_rgba(path)[..., 3].min() < 255:
                raise RejectedObject("image has transparency: build from it with source rgba")
        return read_image(path, rules.levels, notes)
    except ValueError as error:
        raise RejectedObject(why_unreadable(error, "image cannot be read")) from error


def _read_alpha(path: Path, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], str]:
    try:
        mask = read_mask(path)
    except ValueError as error:
        raise RejectedObject("mask file cannot be read") from error
    if mask.shape != pixels.shape[:2]:
        raise RejectedObject("mask file and image differ in size")
    return object_alpha(mask, pixels)


def _alphas_on_background(pixels: NDArray[np.uint8], background: PlainBackground) -> list[NDArray[np.uint8]]:
    if ((pixels == 0) | (pixels == 255)).all() and (pixels == pixels[..., :1]).all():
        raise RejectedObject("image is black and white only, and so a mask: give its folder as masks")
    return background.alphas(pixels)

"""A mask file for each object, as in the 2018 Data Science Bowl."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.pipeline import BuildOptions
from terse_aug.bank.build.report import BuildLog, BuildReport, RejectedSample
from terse_aug.bank.extract import Annotation, ExtractionRules, RejectedObject, extract_from_image
from terse_aug.bank.inputs.folders import check_folders, outside, visible_files
from terse_aug.bank.inputs.image_endings import is_image_name
from terse_aug.bank.inputs.image_list import NOT_LISTED, ImageList
from terse_aug.bank.inputs.images import read_image_like, why_unreadable
from terse_aug.bank.inputs.mask_files import most_are_dark, read_object_numbers
from terse_aug.bank.inputs.masks import segmentation_as_json
from terse_aug.bank.inputs.repair import Repairs
from terse_aug.bank.readers.other_formats import names_other_formats
from terse_aug.bank.readers.several_parts import Paths, as_path, takes_several
from terse_aug.structures.foreground import Foreground

_LABEL = 1
_MASK_FOLDER = "masks"
_SEPARATORS = "_-. "


@takes_several()
@names_other_formats
def build_from_object_masks(
    images: Paths, out: str | Path, *, masks: Paths | None = None, category: str = "object", **options: Any
) -> BuildReport:
    """Build a bank from images with a mask file for each object, as in the 2018 Data Science Bowl.

    Without ``masks``, the masks of an image are the files of the folder "masks" beside the folder that the image is the
    only one of: ID/images/ID.png and ID/masks/*.png. In a mask, everything but 0 is the object, or what is dark on
    white. ``rules.min_box_agreement`` has no effect.

    Args:
        images: folder of the images, searched at any depth.
        out: the bank to write.
        masks: folder of the masks, in a folder named after the image (NAME/*.png) or with names that begin with it
            (NAME_1.png), in the same subfolders or in none. It may be the folder of images.
        category: class of all objects; its label is 1.
        options: see :class:`BuildOptions`.

    Raises:
        FileNotFoundError: a folder does not exist.
        FileExistsError, ValueError, OSError: as :class:`BuildOptions`.
    """
    settings = BuildOptions.checked(out, options)
    image_folder, mask_folder = as_path(images), None if masks is None else as_path(masks)
    check_folders(image_folder, mask_folder, content="images")
    log = BuildLog()
    found = _beside(image_folder, log) if mask_folder is None else _named(image_folder, mask_folder, log)
    image_list, items = ImageList.of(settings.image_list), []
    for item in found:
        if item.name not in image_list:
            log.drop(NOT_LISTED, item.name)
        elif item.masks and item.is_rival:
            reason = "image has its masks in common with another of its name"
            log.drop(reason, item.name, shown=RejectedSample(item.path, item.name))
        elif not item.masks:
            log.drop("image without masks", item.name, shown=RejectedSample(item.path, item.name))
        else:
            items.append(item)
    image_list.report_unmatched(log)
    dark = most_are_dark([path for item in items for path in item.masks])
    record = {"from": "object_masks", "images": image_folder.name, "dark": dark, **vars(settings.rules)}
    source = Source(items, _Extractor(settings.rules, dark), record, log, object_count=lambda item: len(item.masks))
    return settings.build(out, source, record, {_LABEL: category})


class _Item(NamedTuple):
    """An image, its name relative to the folder of images, and the masks of its objects.

    A rival is an image whose name differs from another's in the extension only.
    """

    path: Path
    name: str
    masks: tuple[Path, ...]
    is_rival: bool = False


def _images(folder: Path) -> list[Path]:
    return [path for path in visible_files(folder) if is_image_name(path)]


def _beside(root: Path, log: BuildLog) -> list[_Item]:
    """Images with the masks of the folder beside theirs; masks of folders with several images are counted."""
    files = _images(root)
    masks: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        if path.parent.name.lower() == _MASK_FOLDER:
            masks[path.parent.parent].append(path)
    place_of = {
        path: path.parent if path.parent in masks else path.parent.parent
        for path in files
        if path.parent.name.lower() != _MASK_FOLDER
    }
    images_at = Counter(place_of.values())
    for place, own in masks.items():
        if images_at[place] != 1:
            log.drop("mask beside several images, or none", place.relative_to(root).as_posix(), len(own))
    return [
        _Item(path, path.relative_to(root).as_posix(), tuple(masks.get(place, ()) if images_at[place] == 1 else ()))
        for path, place in place_of.items()
    ]


def _named(root: Path, mask_root: Path, log: BuildLog) -> list[_Item]:
    """Images with the masks that are named after them."""
    if mask_root.resolve() == root.resolve():
        images, masks = _of_one_folder(root, log)
    else:
        images, masks = outside(root, _images(root), mask_root), outside(mask_root, _images(mask_root), root)
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        by_stem[_stem(root, path)].append(path)
    keys = _keys(by_stem)
    masks_of: dict[str, list[Path]] = defaultdict(list)
    for path in masks:
        owner = next(_owners(path.relative_to(mask_root), keys), None)
        if owner is None:
            log.drop("mask without an image of its name", path.name)
        else:
            masks_of[owner].append(path)
    return [
        _Item(path, path.relative_to(root).as_posix(), tuple(masks_of.get(stem, ())), len(rivals) > 1)
        for stem, rivals in by_stem.items()
        for path in rivals
    ]


def _of_one_folder(root: Path, log: BuildLog) -> tuple[list[Path], list[Path]]:
    """The images and the masks of one folder: a mask is named after another file, which is named after none."""
    files = _images(root)
    stem_of = {path: _stem(root, path) for path in files}
    keys = _keys(stem_of.values())
    owners = {
        path: next((own for own in _owners(path.relative_to(root), keys) if own != stem), None)
        for path, stem in stem_of.items()
    }
    images = [path for path in files if owners[path] is None]
    image_stems = {stem_of[path] for path in images}
    owning = set(owners.values())
    masks = []
    for path in files:
        if owners[path] is not None and (stem_of[path] in owning or owners[path] not in image_stems):
            name = path.relative_to(root).as_posix()
            log.drop("file may be an image or a mask of one", name, shown=RejectedSample(path, name))
        elif owners[path] is not None:
            masks.append(path)
    return images, masks


def _stem(root: Path, path: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _keys(stems: Iterable[str]) -> dict[str, str]:
    """Images by their names without extension, and by the last parts of these that only one has."""
    stems = dict.fromkeys(stems)
    flat = Counter(stem.rpartition("/")[2] for stem in stems)
    return {last: stem for stem in stems if flat[last := stem.rpartition("/")[2]] == 1} | {stem: stem for stem in stems}


def _owners(mask: Path, keys: dict[str, str]) -> Iterator[str]:
    """The images that a mask may be named after: by its folder, or else by the longest beginning of its name."""
    for parent in mask.parents:
        if parent.as_posix() in keys:
            yield keys[parent.as_posix()]
    name = mask.with_suffix("").as_posix()
    for end in range(len(name), 0, -1):
        if (end == len(name) or name[end] in _SEPARATORS) and name[:end] in keys:
            yield keys[name[:end]]


@dataclass(frozen=True)
class _Extractor:
    """Extracts the object of each mask of an image."""

    rules: ExtractionRules
    dark: bool

    def files(self, item: _Item) -> tuple[Path, ...]:
        """The image and its masks."""
        return (item.path, *item.masks)

    def objects(self, item: _Item, log: BuildLog) -> Iterator[Foreground]:
        """The foregrounds of an image."""
        image = None
        for path in item.masks:
            source = f"{item.name}#{path.stem}"
            try:
                mask, repair = read_object_numbers(path).with_object_white(self.dark)
                if image is None:
                    notes: Repairs = set()
                    height, width = mask.numbers.shape
                    image = read_image_like(item.path, height, width, self.rules.levels, notes)
                    log.repair(notes, item.name)
            except ValueError as error:
                log.drop(why_unreadable(error, "image or mask cannot be read"), str(error))
                continue
            segmentation = None
            try:
                if mask.numbers.shape != image.shape[:2]:
                    raise RejectedObject("image and mask differ in size")
                binary = (mask.numbers != 0).astype(np.uint8)
                segmentation = segmentation_as_json(binary)
                foreground = extract_from_image(image, binary, Annotation(_LABEL, source), self.rules)
            except RejectedObject as reason:
                log.drop(str(reason), source, shown=RejectedSample(item.path, source, segmentation=segmentation))
                continue
            log.repair([repair] if repair else [], source)
            yield foreground

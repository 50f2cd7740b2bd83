"""Pairs images and masks by their names."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from terse_aug.bank.build.report import BuildLog
from terse_aug.bank.inputs.file_names import IMAGE_SUFFIXES, match_names
from terse_aug.bank.inputs.folders import visible_files

MASK_SUFFIX = "_mask"
IMAGE_OR_MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".pbm")
NO_IMAGE = "mask without an image of its name"


@dataclass(frozen=True)
class MaskPairs:
    """Images and their masks.

    Attributes:
        images: in the order of their names.
        mask_of: masks of the images that have one.
        shared: images that have one mask in common, such as ``a.jpg`` and ``a.png`` with ``a_mask.png``.
    """

    images: list[Path]
    mask_of: dict[Path, Path]
    shared: set[Path]


def pair_masks(root: Path, masks: Path | None, log: BuildLog) -> MaskPairs:
    """Images below ``root``, and masks of the same names below ``masks``, in the same subfolders or in none.

    A mask has its image's name, or that name and ``_mask``. If both folders are the same, masks are files with
    ``_mask``, PBM files, and PNG files beside a JPEG of the same name. If one lies in the other, its files do not
    belong to the other.

    Args:
        root: folder of images.
        masks: folder of masks; ``None`` if there are none.
        log: counts masks without an image, and names that were repaired.
    """
    if masks is None:
        return MaskPairs(_images(root), {}, set())
    if masks.resolve() == root.resolve():
        files = _images(root)
        jpegs = {_stem(root, path) for path in files if path.suffix.lower() in (".jpg", ".jpeg")}
        known = [path for path in files if _is_mask(root, path, jpegs)]
        files = sorted(set(files) - set(known), key=lambda path: path.relative_to(root).as_posix())
    else:
        files, known = outside(root, _images(root), masks), outside(masks, _images(masks), root)
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        by_stem[_stem(root, path)].append(path)
    mask_by_stem = _match_masks(by_stem, {path: _stem(masks, path) for path in known}, log)
    with_mask = {stem: paths for stem, paths in by_stem.items() if stem in mask_by_stem}
    mask_of = {path: mask_by_stem[stem] for stem, paths in with_mask.items() for path in paths}
    return MaskPairs(files, mask_of, {path for paths in with_mask.values() if len(paths) > 1 for path in paths})


def outside(root: Path, files: Iterable[Path], other: Path) -> list[Path]:
    """Files of ``root`` that do not lie in the folder ``other`` below it."""
    place, inner = root.resolve(), other.resolve()
    if inner == place or not inner.is_relative_to(place):
        return list(files)
    parts = inner.relative_to(place).parts
    return [path for path in files if path.relative_to(root).parts[: len(parts)] != parts]


def _images(root: Path) -> list[Path]:
    return [path for path in visible_files(root) if path.suffix.lower() in IMAGE_OR_MASK_SUFFIXES]


def _match_masks(image_stems: Iterable[str], stem_of: dict[Path, str], log: BuildLog) -> dict[str, Path]:
    """Masks by the names of images without extension; those without an image are counted."""
    names = dict.fromkeys(image_stems)
    flat_names = Counter(_last_part(name) for name in names)
    exact = {path: stem for path, stem in stem_of.items() if stem in names or stem in flat_names}
    stripped = {path: stem.removesuffix(MASK_SUFFIX) for path, stem in stem_of.items() if path not in exact}
    masks: dict[str, Path] = {}
    for path, stem in [*exact.items(), *stripped.items()]:
        if masks.setdefault(stem, path) != path:
            log.drop("second mask of the same name", path.name)
    for name in names:  # masks may lie in no subfolders
        flat = _last_part(name)
        if name not in masks and flat in masks and flat_names[flat] == 1:
            masks[name] = masks.pop(flat)
    for name, match in match_names(names, masks).items():
        if match.name is not None:
            log.repair([f"mask: {match.reason}"], name)
            masks[name] = masks.pop(match.name)
    for stem in sorted(masks.keys() - names.keys()):
        log.drop(NO_IMAGE, masks.pop(stem).name)
    return masks


def _stem(root: Path, path: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _last_part(name: str) -> str:
    return name.rpartition("/")[2]


def _is_mask(root: Path, path: Path, jpegs: set[str]) -> bool:
    """Whether a file of a folder with images and masks is a mask."""
    if path.stem.endswith(MASK_SUFFIX) or path.suffix.lower() == ".pbm":
        return True
    return path.suffix.lower() == ".png" and _stem(root, path) in jpegs

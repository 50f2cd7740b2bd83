"""Folders of images: their classes, and masks of the same names."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from terse_aug.bank.build.report import BuildLog, RejectedSample
from terse_aug.bank.inputs.file_names import match_names
from terse_aug.bank.inputs.image_endings import is_image_name
from terse_aug.bank.inputs.image_list import NOT_LISTED, ImageList

_MASK_SUFFIX = "_mask"


def check_folders(*folders: Path | None, content: str = "files") -> None:
    """Raise ``FileNotFoundError`` unless all folders exist; ``None`` is ignored."""
    for folder in folders:
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"expected a folder of {content} at {folder}, found none")


def check_relative_size(relative_size: float) -> None:
    """Raise ``ValueError`` unless a relative size is finite and above 0."""
    if not (math.isfinite(relative_size) and relative_size > 0):
        raise ValueError(f"expected a finite relative_size above 0, got {relative_size!r}")


def visible_files(root: Path) -> list[Path]:
    """All visible files, at any depth, in the order of their names."""
    relative = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    visible = [path for path in relative if not any(part.startswith(".") for part in path.parts)]
    return [root / path for path in sorted(visible, key=lambda path: path.as_posix())]


def class_labels(
    root: Path, files: Iterable[Path], category: str, without: Collection[str] = ()
) -> tuple[dict[Path, int], dict[int, str]]:
    """Labels of files, and names of the labels 1, 2, ..., in the order of the names.

    A file's class is the subfolder of ``root`` that it lies in, at any depth, or ``category`` for a file in no
    subfolder. Subfolders of the names ``without``, in small letters, are no classes.
    """
    folders = {
        path: [part for part in path.relative_to(root).parts[:-1] if part.lower() not in without] for path in files
    }
    class_of = {path: (*parts, category)[0] for path, parts in folders.items()}
    label_of = {name: label for label, name in enumerate(sorted(set(class_of.values())), 1)}
    return {path: label_of[name] for path, name in class_of.items()}, {label: name for name, label in label_of.items()}


class ListedImage(NamedTuple):
    """An image, its name relative to its folder, and its mask if masks are given."""

    path: Path
    name: str
    mask: Path | None = None


def find_images(
    root: Path, masks: Path | None, image_list: ImageList, log: BuildLog
) -> tuple[list[ListedImage], list[Path]]:
    """Images on a list that have a mask of their own, if there are masks; and all images. The others are counted."""
    images, mask_of, shared = _pair(root, masks, log)
    found = []
    for path in images:
        name = path.relative_to(root).as_posix()
        if name not in image_list:
            log.drop(NOT_LISTED, name)
        elif path in shared:
            reason = "image has its mask in common with another of its name"
            log.drop(reason, name, shown=RejectedSample(path, name))
        elif masks is not None and path not in mask_of:
            log.drop("image without a mask of its name", name, shown=RejectedSample(path, name))
        else:
            found.append(ListedImage(path, name, mask_of.get(path)))
    image_list.report_unmatched(log)
    return found, images


def _pair(root: Path, masks: Path | None, log: BuildLog) -> tuple[list[Path], dict[Path, Path], set[Path]]:
    """Images below ``root``, their masks below ``masks``, in the same subfolders or in none, and those that share one.

    A mask has its image's name, or that name and ``_mask``. If both folders are the same, masks are files with
    ``_mask``, PBM files, and PNG files beside a JPEG of the same name. If one lies in the other, its files do not
    belong to the other.
    """
    if masks is None:
        return _images(root), {}, set()
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
    return files, mask_of, {path for paths in with_mask.values() if len(paths) > 1 for path in paths}


def outside(root: Path, files: Iterable[Path], other: Path) -> list[Path]:
    """Files of ``root`` that do not lie in the folder ``other`` below it."""
    place, inner = root.resolve(), other.resolve()
    if inner == place or not inner.is_relative_to(place):
        return list(files)
    parts = inner.relative_to(place).parts
    return [path for path in files if path.relative_to(root).parts[: len(parts)] != parts]


def _images(root: Path) -> list[Path]:
    return [path for path in visible_files(root) if is_image_name(path)]


def _match_masks(image_stems: Iterable[str], stem_of: dict[Path, str], log: BuildLog) -> dict[str, Path]:
    """Masks by the names of images without extension; those without an image are counted."""
    names = dict.fromkeys(image_stems)
    flat_names = Counter(_last_part(name) for name in names)
    exact = {path: stem for path, stem in stem_of.items() if stem in names or stem in flat_names}
    stripped = {path: stem.removesuffix(_MASK_SUFFIX) for path, stem in stem_of.items() if path not in exact}
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
        log.drop("mask without an image of its name", masks.pop(stem).name)
    return masks


def _stem(root: Path, path: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _last_part(name: str) -> str:
    return name.rpartition("/")[2]


def _is_mask(root: Path, path: Path, jpegs: set[str]) -> bool:
    """Whether a file of a folder with images and masks is a mask."""
    if path.stem.endswith(_MASK_SUFFIX) or path.suffix.lower() == ".pbm":
        return True
    return path.suffix.lower() == ".png" and _stem(root, path) in jpegs

"""Which mask is of which picture. Imports parts of this package only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from terse_aug.bank.build.report import BuildLog
from terse_aug.bank.inputs.class_folders import visible_files
from terse_aug.bank.inputs.file_names import IMAGE_SUFFIXES, fitting

_MASK_SUFFIX = "_mask"
_MASK_ONLY = (".pbm",)
_PHOTOGRAPHS = (".jpg", ".jpeg")


@dataclass(frozen=True)
class MaskPairs:
    """Pictures and their masks.

    Attributes:
        pictures: in the order of their names.
        mask_of: of those that have one.
        shared: those that have one mask for several, as ``a.jpg`` and ``a.png`` with ``a_mask.png``.
    """

    pictures: list[Path]
    mask_of: dict[Path, Path]
    shared: set[Path]


def paired(root: Path, masks: Path | None, ledger: BuildLog) -> MaskPairs:
    """Pictures below ``root``, and masks of the same names below ``masks``, in the same subfolders or in none.

    A mask is called as its picture, or that and ``_mask``. Where both are ``root``, masks are those with ``_mask``, PBM
    files, and PNG files beside a JPEG of the same name. Where one lies in the other, its files are not the other's.

    Args:
        root: folder of pictures.
        masks: folder of masks; ``None`` where there are none, and all files are pictures.
        ledger: counts masks without a picture, and names that differ a little.
    """
    if masks is None:
        return MaskPairs(_images(root), {}, set())
    if masks.resolve() == root.resolve():
        files = _images(root)
        photographs = {_stem(root, path) for path in files if path.suffix.lower() in _PHOTOGRAPHS}
        known = [path for path in files if _is_mask(root, path, photographs)]
        files = sorted(set(files) - set(known), key=lambda path: path.relative_to(root).as_posix())
    else:
        files, known = outside(root, _images(root), masks), outside(masks, _images(masks), root)
    wanted: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        wanted[_stem(root, path)].append(path)
    there = _by_picture(wanted, {path: _stem(masks, path) for path in known}, ledger)
    mask_of = {path: there[stem] for stem in wanted if stem in there for path in wanted[stem]}
    shared = {path for stem in wanted if stem in there and len(wanted[stem]) > 1 for path in wanted[stem]}
    return MaskPairs(files, mask_of, shared)


def outside(root: Path, files: Iterable[Path], other: Path) -> list[Path]:
    """Files of ``root`` that do not lie in the folder ``other`` below it."""
    place, inner = root.resolve(), other.resolve()
    if inner == place or not inner.is_relative_to(place):
        return list(files)
    parts = inner.relative_to(place).parts
    return [path for path in files if path.relative_to(root).parts[: len(parts)] != parts]


def _images(root: Path) -> list[Path]:
    return [path for path in visible_files(root) if path.suffix.lower() in (*IMAGE_SUFFIXES, *_MASK_ONLY)]


def _by_picture(wanted: Iterable[str], stem_of: dict[Path, str], ledger: BuildLog) -> dict[str, Path]:
    """Masks by the names of pictures without extension; those that are of none are counted."""
    names = dict.fromkeys(wanted)
    flat_names = Counter(_last(name) for name in names)
    exact = {path: stem for path, stem in stem_of.items() if stem in names or stem in flat_names}
    stripped = {path: stem.removesuffix(_MASK_SUFFIX) for path, stem in stem_of.items() if path not in exact}
    there: dict[str, Path] = {}
    for path, stem in [*exact.items(), *stripped.items()]:
        if there.setdefault(stem, path) != path:
            ledger.drop("second mask of the same name", path.name)
    for name in names:  # masks may lie in no subfolders
        flat = _last(name)
        if name not in there and flat in there and flat_names[flat] == 1:
            there[name] = there.pop(flat)
    for name, fit in fitting(names, there).items():
        if fit.name is not None:
            ledger.repair([f"mask: {fit.reason}"], name)
            there[name] = there.pop(fit.name)
    for stem in sorted(there.keys() - names.keys()):
        ledger.drop("mask without an image of its name", there.pop(stem).name)
    return there


def _stem(root: Path, path: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _is_mask(root: Path, path: Path, photographs: set[str]) -> bool:
    """Of a folder with pictures and masks."""
    if path.stem.endswith(_MASK_SUFFIX) or path.suffix.lower() in _MASK_ONLY:
        return True
    return path.suffix.lower() == ".png" and _stem(root, path) in photographs

"""Where the files of a data set in the format of Pascal VOC lie."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from terse_aug.bank.build.report import BuildLog
from terse_aug.bank.inputs.image_endings import image_endings, is_image_name
from terse_aug.bank.inputs.images import is_file, is_folder
from terse_aug.bank.inputs.text_files import read_text

_XML_FOLDERS = ("Annotations", "Annotation", "xmls", "xml", "labels", "label")
_IMAGE_FOLDERS = ("JPEGImages", "images", "image", "imgs", "img", "photos")
_MASK_FOLDER = "SegmentationObject"
_LIST_FOLDERS = ("ImageSets/Main", "ImageSets/Segmentation", "ImageSets/Layout", "ImageSets", ".")


@dataclass(frozen=True)
class VocLayout:
    """The folders of XML files, images and instance masks; images may lie beside the XML files."""

    root: Path
    annotations: Path
    images: Path
    masks: Path

    @classmethod
    def find(cls, root: Path, annotations: Path | None, images: Path | None) -> VocLayout:
        """The folders as given, or by their usual names in any capitals; ``FileNotFoundError`` if there is none."""
        for folder in (root, annotations, images):
            if folder is not None and not folder.is_dir():
                raise FileNotFoundError(f"expected a folder in the layout of Pascal VOC at {folder}, found none")
        if annotations is None:
            places = [*_subfolders(root, _XML_FOLDERS), root]
            annotations = next((place for place in places if _xml_files(place)), None)
        if annotations is None:
            masks = " (without XML files, source masks reads SegmentationObject)" if _has_masks(root) else ""
            raise FileNotFoundError(
                f"expected XML files of Pascal VOC in a folder such as {', '.join(_XML_FOLDERS[:3])} or beside the "
                f"images, {root} has no Annotations{masks}; give the folder (--annotations)"
            )
        if images is None:
            images = next(iter(_subfolders(root, _IMAGE_FOLDERS)), annotations)
        return cls(root, annotations, images, root / _MASK_FOLDER)

    def xml_files(self, split: str | None, log: BuildLog) -> list[Path]:
        """The XML files at any depth, or those of a list of names; names without one are counted."""
        files = _xml_files(self.annotations)
        if split is None:
            return files
        folders = ["ImageSets"] if "/" in split else _LIST_FOLDERS
        lists = [self.root / folder / f"{split}.txt" for folder in folders]
        path = next((path for path in lists if is_file(path)), None)
        if path is None:
            raise FileNotFoundError(f"expected one of {', '.join(str(path) for path in lists)}, found none")
        lines = [line.strip() for line in read_text(path).splitlines()]
        by_name = self._by_name(files)
        names = [line if line in by_name else _listed_name(line) for line in lines]
        names = [
            str(Path(name).with_suffix("")) if name not in by_name and is_image_name(name) else name for name in names
        ]
        found = []
        for name in dict.fromkeys(name for name in names if name):
            if name in by_name:
                found.append(by_name[name])
            else:
                log.drop("image of the split has no XML file", name)
        return found

    def _by_name(self, files: Sequence[Path]) -> dict[str, Path]:
        """XML files by their paths without extension, and by their last part where only one has it."""
        counts = Counter(path.stem for path in files)
        flat = {path.stem: path for path in files if counts[path.stem] == 1}
        return flat | {path.relative_to(self.annotations).with_suffix("").as_posix(): path for path in files}

    def image(self, path: Path, written_name: str) -> tuple[str, bool]:
        """The image of an XML file: its name relative to the folder of images, or a whole path; and whether it lies in
        another subfolder than the XML file.

        It has the name in the XML file; or that of the file itself, if the written one does not exist, as in exports of
        another machine, or belongs to another XML file that this one is a copy of.
        """
        own_bases = (self._beside(self.images, path), path.parent, *self._siblings(path, _IMAGE_FOLDERS))
        bases = dict.fromkeys((*own_bases, self.images))
        own_names = [path.stem + suffix for ending in image_endings() for suffix in (ending, ending.upper())]
        is_own = written_name and not has_own_file(written_name, path)
        for base in bases:
            for name in [written_name, *own_names] if is_own else own_names:
                if is_file(base / name):
                    return self._relative(base / name), base not in own_bases
        default = written_name or f"{path.stem}.jpg"
        parent = path.parent.relative_to(self.annotations)
        return (parent / default).as_posix() if (self.images / parent).is_dir() else default, False

    def mask(self, path: Path) -> Path | None:
        """The instance mask of an XML file."""
        folders = (self._beside(self.masks, path), *self._siblings(path, (_MASK_FOLDER,)), self.masks)
        return next((place for folder in folders if is_file(place := folder / f"{path.stem}.png")), None)

    def count_unused(self, used: Iterable[str], log: BuildLog) -> None:
        """Count images without an XML file, in folders of images with one."""
        paths = {(self.images / name).resolve() for name in used}
        for folder in sorted({path.parent for path in paths if is_folder(path.parent)}):
            for path in sorted(folder.iterdir()):
                if is_image_name(path) and not path.name.startswith(".") and path.resolve() not in paths:
                    log.drop("image without an XML file", path.name)

    def _beside(self, folder: Path, path: Path) -> Path:
        """The subfolder that an XML file has."""
        return folder / path.parent.relative_to(self.annotations)

    def _siblings(self, path: Path, names: Sequence[str]) -> list[Path]:
        """Folders of these names beside the folder of an XML file, as in train/Annotations and train/images."""
        folder = path.parent
        is_own = folder != self.annotations and folder.name.lower() in map(str.lower, _XML_FOLDERS)
        return _subfolders(folder.parent, names) if is_own else []

    def _relative(self, path: Path) -> str:
        file, root = os.path.abspath(path), os.path.abspath(self.images)  # a link keeps its own name
        return Path(os.path.relpath(file, root)).as_posix() if file.startswith(root + os.sep) else file


def has_own_file(image: str, path: Path) -> bool:
    """Whether an image has an XML file of its name other than ``path``."""
    stem = Path(image).stem
    return stem != path.stem and is_file(path.with_name(f"{stem}.xml"))


def _xml_files(folder: Path) -> list[Path]:
    """The XML files at any depth, without hidden ones, such as macOS writes beside every file."""
    files = sorted(folder.rglob("*.xml"))
    return [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _subfolders(root: Path, names: Sequence[str]) -> list[Path]:
    """Folders in ``root`` of these names, in the order of the names, in any capitals."""
    by_name = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    return [by_name[name.lower()] for name in names if name.lower() in by_name]


def _has_masks(root: Path) -> bool:
    return (root / _MASK_FOLDER).is_dir()


def _listed_name(line: str) -> str:
    """The name on a line of a list, which may contain a space; empty if the image does not show the list's class."""
    parts = line.rsplit(maxsplit=1)
    if len(parts) == 2 and parts[1] in ("-1", "0", "1"):
        return "" if parts[1] == "-1" else parts[0].strip()
    return line

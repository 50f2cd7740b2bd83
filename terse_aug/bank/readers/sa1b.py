"""SA-1B (Segment Anything): a JSON of masks without classes for each image."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.pipeline import BuildOptions
from terse_aug.bank.build.report import BuildLog, BuildReport, RejectedSample
from terse_aug.bank.extract import Annotation, ExtractionRules, RejectedObject, extract_from_image
from terse_aug.bank.inputs.file_names import FileFinder
from terse_aug.bank.inputs.folders import check_folders, visible_files
from terse_aug.bank.inputs.image_list import NOT_LISTED, ImageList
from terse_aug.bank.inputs.images import is_file, read_image_like, why_unreadable
from terse_aug.bank.inputs.masks import segmentation_to_mask
from terse_aug.bank.inputs.repair import Malformed, Repairs, as_number
from terse_aug.bank.readers.other_formats import names_other_formats
from terse_aug.bank.readers.several_parts import Paths, as_path, takes_several
from terse_aug.structures.foreground import Foreground

_LABEL = 1
_HEAD_BYTES = 4096
_FILE_NAME = re.compile(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_NOT_SA1B = "JSON file is not of SA-1B"
OTHER_NAME = "image has the name of its JSON file instead of the one in it"
"""A repair."""


@takes_several()
@names_other_formats
def build_from_sa1b(
    folder: Paths,
    out: str | Path,
    *,
    images: Paths | None = None,
    category: str = "object",
    **options: Any,
) -> BuildReport:
    """Build a bank from SA-1B, the data set of Segment Anything: a JSON of masks for each image.

    Masks are of things and stuff of any size, whole or parts, and have no class.

    Args:
        folder: folder of the JSON files, searched at any depth.
        out: the bank to write.
        images: folder of the images; by default each lies beside its JSON file. An image has the name in its JSON
            file or, if there is no such image, that of the JSON file.
        category: class of all objects; its label is 1.
        options: see :class:`BuildOptions`.

    Raises:
        FileNotFoundError: a folder does not exist, or there is no JSON file.
        FileExistsError, ValueError, OSError: as :class:`BuildOptions`.
    """
    settings = BuildOptions.checked(out, options)
    root = as_path(folder)
    image_folder = root if images is None else as_path(images)
    check_folders(root, image_folder, content="JSON files")
    log, image_list = BuildLog(), ImageList.of(settings.image_list)
    names = {path: _names(path, root) for path in visible_files(root) if path.suffix.lower() == ".json"}
    if not names:
        raise FileNotFoundError(f"expected JSON files of SA-1B in {root}, found no JSON file")
    files = FileFinder(image_folder, [name for own in names.values() for name in own])
    items = []
    for path, own in names.items():
        listed = [name in image_list for name in own]  # of all, since the list notes which of its names are found
        if not any(listed):
            log.drop(NOT_LISTED, own[0])
            continue
        try:
            found, differences = _find(own, image_folder, files)
        except LookupError as error:
            log.drop(f"image file is missing, and several may be meant ({error})", own[0])
            continue
        log.repair(differences, own[0])
        items.append(_Item(path, image_folder / found, found))
    image_list.report_unmatched(log)
    record = {"from": "sa1b", "folder": root.name, **vars(settings.rules)}
    return settings.build(out, Source(items, _Extractor(settings.rules), record, log), record, {_LABEL: category})


def _names(path: Path, root: Path) -> list[str]:
    """Names that the image of a JSON file may have: the one in the file, and that of the file itself."""
    place = path.relative_to(root)
    own, written = place.with_suffix(".jpg").as_posix(), _written_name(path)
    return list(dict.fromkeys([(place.parent / written).as_posix(), own] if written else [own]))


def _written_name(path: Path) -> str | None:
    """The ``file_name`` in a JSON file, in whose beginning it usually lies, so that the masks need not be parsed."""
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES).decode(errors="replace")
    try:
        if match := _FILE_NAME.search(head):
            name = json.loads(match[1])
        else:
            name = json.loads(path.read_bytes())["image"]["file_name"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return name.strip().replace("\\", "/") if isinstance(name, str) else None


def _find(names: list[str], folder: Path, files: FileFinder) -> tuple[str, list[str]]:
    """The name of an image on disk, or the first of its names if there is none, and how the name differs."""
    for name in names:
        found, difference = files.find(name)
        if is_file(folder / found):
            return found, [own for own in (difference, None if name == names[0] else OTHER_NAME) if own]
    return names[0], []


class _Item(NamedTuple):
    """A JSON file, its image, and the name of the image relative to its folder."""

    annotations: Path
    image: Path
    name: str


@dataclass(frozen=True)
class _Extractor:
    """Extracts the objects of one image after the other."""

    rules: ExtractionRules

    def files(self, item: _Item) -> tuple[Path, Path]:
        """Both files."""
        return item.annotations, item.image

    def objects(self, item: _Item, log: BuildLog) -> Iterator[Foreground]:
        """The foregrounds of an image."""
        try:
            content = json.loads(item.annotations.read_bytes())
            entries, size = content["annotations"], (content["image"]["height"], content["image"]["width"])
            if not isinstance(entries, list) or not all(isinstance(side, int) for side in size):
                raise TypeError("no list of annotations, or no size of the image")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            log.drop(_NOT_SA1B, f"{item.annotations.name}: {error!r}")
            return
        try:
            notes: Repairs = set()
            pixels = read_image_like(item.image, *size, self.rules.levels, notes)
            log.repair(notes, item.name)
        except FileNotFoundError:
            log.drop("image file is missing", item.name, len(entries))
            return
        except ValueError as error:
            log.drop(why_unreadable(error, "image file cannot be read"), str(error), len(entries))
            return
        for row, entry in enumerate(entries, 1):
            entry = entry if isinstance(entry, dict) else {}
            source = f"{item.name}#{entry.get('id', row)}"
            try:
                mask = segmentation_to_mask(entry.get("segmentation"), *pixels.shape[:2])
                annotation = Annotation(_LABEL, source, _box(entry.get("bbox")))
                yield extract_from_image(pixels, mask, annotation, self.rules)
            except RejectedObject as reason:
                shown = RejectedSample(item.image, source, entry.get("bbox"), entry.get("segmentation"), size)
                log.drop(str(reason), source, shown=shown)


def _box(box: Any) -> tuple[float, float, float, float] | None:
    if box is None:
        return None
    try:
        x, y, width, height = (as_number(value) for value in box)
    except (Malformed, TypeError, ValueError) as error:
        raise RejectedObject("box is not x, y, width, height") from error
    return x, y, width, height

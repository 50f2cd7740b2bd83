"""SA-1B (Segment Anything): a JSON of masks without classes for each image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.pipeline import BuildOptions
from terse_aug.bank.build.report import BuildLog, BuildReport, RejectedSample
from terse_aug.bank.extract import Annotation, ExtractionRules, RejectedObject, extract_from_image
from terse_aug.bank.inputs.file_names import FileFinder
from terse_aug.bank.inputs.folders import check_folders
from terse_aug.bank.inputs.image_list import NOT_LISTED, ImageList
from terse_aug.bank.inputs.images import read_image_like, why_unreadable
from terse_aug.bank.inputs.masks import segmentation_to_mask
from terse_aug.bank.inputs.repair import Malformed, Repairs, as_number
from terse_aug.structures.foreground import Foreground

_LABEL = 1
_NOT_SA1B = "JSON file is not of SA-1B"


def build_from_sa1b(
    folder: str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    category: str = "object",
    **options: Any,
) -> BuildReport:
    """Build a bank from SA-1B, the data set of Segment Anything: a JSON of masks for each image.

    Masks are of things and stuff of any size, whole or parts, and have no class.

    Args:
        folder: folder of the JSON files, searched at any depth.
        out: the bank to write.
        images: folder of the images; by default each lies beside its JSON file.
        category: class of all objects; its label is 1.
        options: see :class:`BuildOptions`.

    Raises:
        FileNotFoundError: a folder does not exist.
        FileExistsError, ValueError, OSError: as :class:`BuildOptions`.
    """
    settings = BuildOptions.checked(out, options)
    root = Path(folder)
    image_folder = root if images is None else Path(images)
    check_folders(root, image_folder, content="JSON files")
    log, image_list = BuildLog(), ImageList(settings.image_list)
    names = {path: path.relative_to(root).with_suffix(".jpg").as_posix() for path in sorted(root.rglob("*.json"))}
    files = FileFinder(image_folder, names.values())
    items = []
    for path, name in names.items():
        if name not in image_list:
            log.drop(NOT_LISTED, name)
            continue
        try:
            found, difference = files.find(name)
        except LookupError as error:
            log.drop(f"image file is missing, and several may be meant ({error})", name)
            continue
        log.repair([difference] if difference else [], name)
        items.append(_Item(path, image_folder / found, found))
    image_list.report_unmatched(log)
    record = {"from": "sa1b", "folder": root.name, **vars(settings.rules)}
    return settings.build(out, Source(items, _Extractor(settings.rules), record, log), record, {_LABEL: category})


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

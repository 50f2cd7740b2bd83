"""A folder of images with transparency."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.pipeline import BuildOptions
from terse_aug.bank.build.report import BuildLog, BuildReport, RejectedSample
from terse_aug.bank.extract import ExtractionRules, RejectedObject, finish_foreground, remove_faint_alpha, tight_box
from terse_aug.bank.inputs.folders import check_folders, check_relative_size, class_labels, visible_files
from terse_aug.bank.inputs.image_endings import is_image_name
from terse_aug.bank.inputs.image_list import NOT_LISTED, ImageList
from terse_aug.bank.inputs.images import NoAlphaError, read_rgba, why_unreadable
from terse_aug.bank.inputs.repair import Repairs
from terse_aug.bank.readers.other_formats import names_other_formats
from terse_aug.bank.readers.several_parts import Paths, as_path, takes_several
from terse_aug.structures.foreground import Foreground


@takes_several()
@names_other_formats
def build_from_rgba(
    folder: Paths,
    out: str | Path,
    *,
    category: str = "object",
    relative_size: float = 0.3,
    **options: Any,
) -> BuildReport:
    """Build a bank from image files with transparency (PNG, WebP, TIFF and others).

    Files in a subfolder, at any depth, are of the class that it is named after. Labels are 1, 2, ... in the order of
    the class names. ``rules.min_box_agreement`` has no effect.

    Args:
        folder: folder of the files; its subfolders are classes.
        out: the bank to write.
        category: class of files in no subfolder.
        relative_size: longer side of every object over the square root of its background's area, which the files do
            not show.
        options: see :class:`BuildOptions`.

    Raises:
        FileNotFoundError: ``folder`` does not exist.
        ValueError: ``relative_size`` is not above 0, or ``rules`` have ``drop_truncated``, which needs an image.
        FileExistsError, ValueError, OSError: as :class:`BuildOptions`.
    """
    settings = BuildOptions.checked(out, options)
    rules = settings.rules
    if rules.drop_truncated:
        raise ValueError("drop_truncated needs the image an object was extracted from; RGBA files have none")
    check_relative_size(relative_size)
    root, image_list = as_path(folder), ImageList.of(settings.image_list)
    check_folders(root, content="RGBA images")
    files = visible_files(root)
    label_of, categories = class_labels(root, (p for p in files if is_image_name(p)), category)
    log, items = BuildLog(), []
    for path in files:
        name = path.relative_to(root).as_posix()
        if name not in image_list:
            log.drop(NOT_LISTED, name, shown=RejectedSample(path, name))
        elif path not in label_of:
            log.drop("not an image file", name, shown=RejectedSample(path, name))
        else:
            items.append((path, name, label_of[path]))
    image_list.report_unmatched(log)
    record = {"from": "rgba", "folder": root.name, **vars(rules)}
    source = Source(items, _Extractor(relative_size, rules), record | {"relative_size": relative_size}, log)
    return settings.build(out, source, record, categories)


@dataclass(frozen=True)
class _Extractor:
    """Reads the object of one file after the other."""

    relative_size: float
    rules: ExtractionRules

    def files(self, item: tuple[Path, str, int]) -> tuple[Path]:
        """The file."""
        return (item[0],)

    def objects(self, item: tuple[Path, str, int], log: BuildLog) -> Iterator[Foreground]:
        """The foreground of a file, if there is one."""
        path, name, label = item
        try:
            notes: Repairs = set()
            rgba = _read_tight(path, self.rules, notes)
            log.repair(notes, name)
            yield finish_foreground(Foreground(rgba, label, name, self.relative_size), self.rules)
        except RejectedObject as reason:
            log.drop(str(reason), name, shown=RejectedSample(path, name))


def _read_tight(path: Path, rules: ExtractionRules, notes: Repairs) -> NDArray[np.uint8]:
    try:
        rgba = read_rgba(path, rules.levels, notes)
    except NoAlphaError as error:
        raise RejectedObject("no alpha channel") from error
    except ValueError as error:
        raise RejectedObject(why_unreadable(error, "image cannot be read")) from error
    alpha = rgba[..., 3]
    if alpha.min() == 255:
        raise RejectedObject("alpha is opaque everywhere")
    alpha = remove_faint_alpha(alpha)
    tight = tight_box(alpha)
    if tight is None:
        raise RejectedObject("alpha is transparent everywhere")
    left, top, width, height = tight
    visible = np.concatenate([rgba[..., :3], alpha[..., None]], axis=2)
    return np.ascontiguousarray(visible[top : top + height, left : left + width])

"""File names of what is written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

_FORBIDDEN = re.compile(r'[\x00-\x1f<>:"|?*]')


def output_stems(names: Sequence[str], copies: int, with_originals: bool) -> list[list[str]]:
    """File names without ending, in subfolders as the images; no two differ by case alone.

    Args:
        names: of the images.
        copies: composites of each image.
        with_originals: whether there are files for the originals, too, which then keep their names.

    Returns:
        For each image ``copies + 1`` names: that of the original (empty without originals), then of each composite.
    """
    own = [_plain(name) for name in _without_common_folder(names)]
    taken: set[str] = set()
    originals = [_free(stem, taken) if with_originals else "" for stem in own]
    return [
        [original, *(_free(f"{stem}_composite{copy}", taken) for copy in range(1, copies + 1))]
        for original, stem in zip(originals, own, strict=True)
    ]


def _without_common_folder(names: Sequence[str]) -> list[str]:
    """Names with absolute paths (of images beside the folder that is read) relative to the folder they have in common.

    Paths on several drives of Windows have none, and are left as they are.
    """
    try:
        folder = os.path.commonpath([os.path.dirname(name) for name in names if os.path.isabs(name)])
    except ValueError:
        return list(names)
    return [os.path.relpath(name, folder) if os.path.isabs(name) else name for name in names]


def _plain(name: str) -> str:
    """A name below the output folder, without ending.

    Folders named "images" are left out: YOLO's trainers look for labels where the last of them is named "labels".
    """
    parts = [_FORBIDDEN.sub("_", part) for part in re.split(r"[\\/]+", name)]
    *folders, last = [part for part in parts if part not in ("", ".", "..")] or ["image"]
    return "/".join([*_without_images(folders), re.sub(r"(?<=.)\.[^.]*$", "", last)])


def _without_images(folders: Iterable[str]) -> list[str]:
    return [folder for folder in folders if folder.casefold() not in ("images", "labels")]


def _free(stem: str, taken: set[str]) -> str:
    """The name, with a number if it is taken; it is taken then."""
    number, free = 1, stem
    while free.casefold() in taken:
        number += 1
        free = f"{stem}-{number}"
    taken.add(free.casefold())
    return free

"""Which files are images, by the endings of their names: one list for all that look for images in a folder."""

from __future__ import annotations

from functools import lru_cache
from pathlib import PurePath

from PIL import Image

_USUAL = (".jpg", ".png", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_NOT_DECODED = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that pillow recognizes and cannot decode."""
_OTHERS = (".avif", ".heic", ".heif", ".jp2", ".jxl", ".mpo", ".dng", ".arw", ".cr2", ".cr3", ".nef", ".orf", ".raf")
"""Photographs that pillow may need a plug-in for; without it they are counted as unreadable."""


def image_endings() -> tuple[str, ...]:
    """Endings of image files in lower case, with their dot, the most usual first.

    These are all that pillow can decode, with the plug-ins that are registered, and those of photographs that need one.
    """
    return _endings(len(Image.registered_extensions()), len(Image.OPEN))


@lru_cache(maxsize=1)
def _endings(extensions: int, formats: int) -> tuple[str, ...]:
    """Anew when another plug-in was registered, which changes a number."""
    kinds = Image.registered_extensions().items()
    known = {ending for ending, kind in kinds if kind in Image.OPEN and kind not in _NOT_DECODED}
    return tuple(dict.fromkeys((*_USUAL, *_OTHERS, *sorted(known))))


def is_image_name(path: str | PurePath) -> bool:
    """Whether a file has the ending of an image; nothing is opened."""
    return PurePath(path).suffix.lower() in image_endings()

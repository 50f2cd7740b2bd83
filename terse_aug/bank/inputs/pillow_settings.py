"""How pillow decodes images in this process: its global settings, and formats that plug-ins have registered."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image

_SETTINGS = (
    ("PIL.Image", "MAX_IMAGE_PIXELS"),
    ("PIL.ImageFile", "LOAD_TRUNCATED_IMAGES"),
    ("PIL.PngImagePlugin", "MAX_TEXT_CHUNK"),
    ("PIL.PngImagePlugin", "MAX_TEXT_MEMORY"),
    ("PIL.GifImagePlugin", "LOADING_STRATEGY"),
)


@dataclass(frozen=True)
class PillowSettings:
    """What pillow does with an image file, for another process.

    Attributes:
        values: of pillow's settings, in the order of a fixed list.
        formats: of plug-ins: name of the format, how it is opened, and the endings of its files.
    """

    values: tuple[Any, ...]
    formats: tuple[tuple[str, tuple[Any, Any], tuple[str, ...]], ...]

    @classmethod
    def of_this_process(cls) -> PillowSettings:
        """Those of this process."""
        extensions = Image.registered_extensions()  # loads pillow's own formats
        formats = [
            (name, opener, tuple(sorted(ending for ending, kind in extensions.items() if kind == name)))
            for name, opener in sorted(Image.OPEN.items())
            if not _is_pillows_own(opener[0])
        ]
        values = tuple(getattr(importlib.import_module(module), name) for module, name in _SETTINGS)
        return cls(values, tuple(formats))

    @property
    def record(self) -> list[Any]:
        """The settings as JSON can hold them."""
        return [[str(value) for value in self.values], [name for name, _, _ in self.formats]]

    def apply(self) -> None:
        """Make them those of this process."""
        for (module, name), value in zip(_SETTINGS, self.values, strict=True):
            setattr(importlib.import_module(module), name, value)
        Image.init()  # or pillow's own formats would replace those of plug-ins later
        for name, (factory, accept), endings in self.formats:
            Image.register_open(name, factory, accept)
            Image.register_extensions(name, list(endings))


@contextmanager
def limited_pixels(limit: int | None) -> Iterator[None]:
    """Within the block images of more pixels cannot be read; 0 reads all, ``None`` leaves pillow's own limit.

    Raises:
        ValueError: the limit is below 0.
    """
    before = Image.MAX_IMAGE_PIXELS
    if limit is not None:
        if limit < 0:
            raise ValueError(f"expected a limit of 0 or more pixels, got {limit}")
        Image.MAX_IMAGE_PIXELS = None if limit == 0 else limit // 2 or 1  # pillow's limit is twice its setting
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _is_pillows_own(factory: Any) -> bool:
    return str(getattr(factory, "__module__", "")).startswith("PIL.")

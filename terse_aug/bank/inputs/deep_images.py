"""Images of 16 bits a channel, whose values may use fewer: 12 or 14 bits of a camera, or a range of temperatures."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

DIM_16BIT = "16-bit image without values from 16384 on, which is dark: give its range (--black-16bit, --white-16bit)"
"""What is noted of an image that is read with the full range."""

_DIM = 1 << 14
_IS_DEEP_COLOR = "terse_aug: 16 bits a channel"


class Levels(NamedTuple):
    """The values of a 16-bit image that are black and white."""

    black: int = 0
    white: int = 65535


FULL_RANGE = Levels()


def check_levels(black: int, white: int) -> None:
    """Raise ``ValueError`` unless 0 <= black < white <= 65535."""
    if not 0 <= black < white <= 65535:
        raise ValueError(f"expected 0 <= black_16bit < white_16bit <= 65535, got {black} and {white}")


def mark_deep_color(image: Image.Image) -> None:
    """Note in an image that is not decoded yet whether it is a color image of 16 bits a channel."""
    tiles = getattr(image, "tile", [])
    image.info[_IS_DEEP_COLOR] = image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in tiles)


def is_deep_color(image: Image.Image) -> bool:
    """Whether it is one."""
    return bool(image.info.get(_IS_DEEP_COLOR))


def read_deep_color(path: str | Path, levels: Levels, data: bytes | None = None) -> NDArray[np.uint8]:
    """A color image of 16 bits a channel, of which pillow keeps the upper 8: uint8 ``[H, W, 3]``, RGB, as stored.

    ``data`` is the content of the image file, if it is not at ``path``.

    Raises:
        ValueError: OpenCV cannot read it.
    """
    content = np.fromfile(path, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    values = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        raise ValueError(f"{path}: cannot be read with 16 bits a channel; convert it to 8 bits")
    return to_8_bits(np.asarray(values)[..., 2::-1], levels)


def to_8_bits(values: NDArray[np.generic], levels: Levels) -> NDArray[np.uint8]:
    """Black and what is below becomes 0, white and what is above 255."""
    span = levels.white - levels.black
    shifted = values.astype(np.int64).clip(*levels) - levels.black
    return ((shifted * 255 + span // 2) // span).astype(np.uint8)


def dim_note(highest: int, levels: Levels) -> set[str]:
    """The note on an image with values up to ``highest``, if its range has to be given."""
    return {DIM_16BIT} if levels == FULL_RANGE and 0 < highest < _DIM else set()

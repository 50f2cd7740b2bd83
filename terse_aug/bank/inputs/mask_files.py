"""Masks of several objects in one file, as numbers or colours, and masks drawn in black and white."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from terse_aug.bank.inputs.images import load_image

_VOID = (224, 224, 192)
VOID_COLOR = 224 + 256 * 224 + 65536 * 192
"""The colour, and its number, of pixels of no class in Pascal VOC."""
_MAX_COLORS = 1000
_LOSSY = ("JPEG", "MPO")
_NEARLY = 32
"""Grey levels of black or white that JPEG may change."""
_WHOLE_BORDER = 0.95


DARK_OBJECT = "mask with a dark object on white"
NO_ZERO = "mask of two values without 0; the one on most of the border was taken as background"
"""Repairs."""


class ObjectNumbers(NamedTuple):
    """A mask file.

    Attributes:
        numbers: int32 ``[H, W]``, 0 for background and another number for each object. Numbers of colours are
            R + 256 G + 65536 B.
        drawn: the mask is a picture in black and white, of numbers 0 and 255.
    """

    numbers: NDArray[np.int32]
    drawn: bool = False

    def white_border(self) -> float:
        """The fraction of the image's border that is not of the least number."""
        sides = (self.numbers[0], self.numbers[-1], self.numbers[:, 0], self.numbers[:, -1])
        return float((np.concatenate(sides) > self.numbers.min()).mean())

    def with_object_white(self, dark: bool) -> tuple[ObjectNumbers, str | None]:
        """A mask with 0 for background if it has two values, and the repair if that was needed.

        Args:
            dark: whether most masks of the data set that are drawn in black and white have a dark object.
        """
        values = np.unique(self.numbers)
        if self.drawn and dark and len(values) == 1:
            return ObjectNumbers(np.zeros_like(self.numbers), True), None
        if len(values) != 2:
            return self, None
        white = self.white_border()
        if values[0]:
            is_dark = white > 0.5
        else:
            is_dark = white >= _WHOLE_BORDER or (self.drawn and dark and white > 1 - _WHOLE_BORDER)
        if not is_dark and not values[0]:
            return self, None
        numbers = np.where(self.numbers == values[0 if is_dark else 1], values[1], 0).astype(np.int32)
        return ObjectNumbers(numbers, self.drawn), NO_ZERO if values[0] else DARK_OBJECT


def most_are_dark(masks: Sequence[Path]) -> bool:
    """Whether most masks that are drawn in black and white have a dark object on white, by up to 32 of them."""
    votes = []
    for at in range(min(32, len(masks))):
        try:
            mask = read_object_numbers(masks[len(masks) * at // min(32, len(masks))])
        except ValueError:
            continue
        if mask.drawn:
            votes.append(mask.white_border() > 0.5)
    return 2 * sum(votes) > len(votes)


def read_object_numbers(path: Path, colors: bool = False, may_be_drawn: bool = True) -> ObjectNumbers:
    """Read a mask of one channel (numbers; of a palette the indices) or of colours.

    Black is background. In a mask of colours without black, the colour of most of the border is. Pascal VOC's colour of
    pixels of no class counts as background. With ``colors``, neither is done, since a label map may name them.

    Args:
        path: the file.
        colors: read the colours of a palette or of grey values instead of the numbers.
        may_be_drawn: whether a mask of numbers may be a picture in black and white with soft edges.

    Raises:
        FileNotFoundError: there is no file at ``path``.
        ValueError: the file is damaged, or holds a photograph or the traces of a lossy format.
    """
    image = load_image(path)
    lossy = image.format in _LOSSY
    if image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;16"):
        if not colors and not (may_be_drawn and _is_black_and_white_palette(image)):
            return _from_channel(_without_void(image), image.mode == "1", lossy, may_be_drawn, path)
    elif image.mode not in ("RGB", "RGBA", "LA", "PA"):
        raise ValueError(f"{path}: expected a mask of numbers or of colours, got mode {image.mode}")
    rgba = np.asarray(image.convert("RGBA"))
    rgb = np.where(rgba[..., 3:] > 0, rgba[..., :3], np.uint8(0))
    if not colors and (rgb == rgb[..., :1]).all():
        return _from_channel(rgb[..., 0].astype(np.int32), False, lossy, may_be_drawn, path)
    numbers: NDArray[np.int32] = rgb.astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    if lossy or (count := len(np.unique(numbers))) > _MAX_COLORS:
        found = "JPEG, which changes colours" if lossy else f"{count} colours"
        raise ValueError(f"{path}: expected a mask with a colour for each object, got {found}")
    return ObjectNumbers(numbers if colors else _without_background(numbers))


def _from_channel(numbers: NDArray[np.int32], bits: bool, lossy: bool, may_be_drawn: bool, path: Path) -> ObjectNumbers:
    if bits or np.isin(numbers, (0, 255)).all():
        return ObjectNumbers(np.where(numbers, 255, 0).astype(np.int32), drawn=True)
    if may_be_drawn and numbers.max() <= 255 and _is_drawn(numbers.astype(np.uint8), lossy):
        return ObjectNumbers(np.where(numbers > 127, 255, 0).astype(np.int32), drawn=True)
    if lossy:
        raise ValueError(f"{path}: expected a number for each object, got JPEG, which changes numbers")
    return ObjectNumbers(numbers)


def _is_drawn(grey: NDArray[np.uint8], lossy: bool) -> bool:
    """Whether grey values are those of soft edges between black and white, and no objects of their own."""
    if lossy:
        return bool(((grey <= _NEARLY) | (grey >= 255 - _NEARLY)).mean() > 0.9)
    if grey.min() != 0 or grey.max() != 255:
        return False
    square = np.ones((3, 3), np.uint8)
    uniform = np.asarray(cv2.erode(grey, square)) == np.asarray(cv2.dilate(grey, square))
    return not (uniform & (grey > 0) & (grey < 255)).any()


def _is_black_and_white_palette(image: Image.Image) -> bool:
    return image.mode == "P" and {color for _, color in image.convert("RGB").getcolors(2) or ()} == {
        (0, 0, 0),
        (255, 255, 255),
    }


def _without_void(image: Image.Image) -> NDArray[np.int32]:
    numbers = np.asarray(image).astype(np.int32)
    palette = image.getpalette() if image.mode == "P" else None
    if palette is not None and tuple(palette[3 * 255 :]) == _VOID:
        numbers = np.where(numbers == 255, 0, numbers)
    return numbers


def color_number(red: int, green: int, blue: int) -> int:
    """The number of a colour."""
    return red + 256 * green + 65536 * blue


def _without_background(numbers: NDArray[np.int32]) -> NDArray[np.int32]:
    if numbers.all():
        border = np.concatenate([numbers[0], numbers[-1], numbers[:, 0], numbers[:, -1]])
        found, counts = np.unique(border, return_counts=True)
        numbers = np.where(numbers == found[counts.argmax()], 0, numbers)
    return np.where(numbers == VOID_COLOR, 0, numbers)

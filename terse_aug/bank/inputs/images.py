"""Decodes image files of all usual modes to uint8 arrays."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from terse_aug.bank.inputs.deep_images import (
    FULL_RANGE,
    Levels,
    dim_note,
    is_deep_color,
    mark_deep_color,
    read_deep_color,
    to_8_bits,
)
from terse_aug.bank.inputs.repair import Repairs

_ORIENTATION_TAG = 0x0112
_ROTATED_ORIENTATIONS = (5, 6, 7, 8)
BROKEN_FILE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What pillow raises on broken files, found by truncating files and flipping bytes of each format."""
TOO_LARGE = "image has more pixels than pillow's limit (PIL.Image.MAX_IMAGE_PIXELS, --max-image-pixels)"
"""Reason to reject the objects of an image."""
_CANNOT_BE_READ = "cannot be read as an image"
_COLOR_MODES = ("RGB", "RGBA", "CMYK", "YCbCr")


class NoAlphaError(ValueError):
    """The image file has no alpha channel, and so no mask."""


def load_image(path: str | Path) -> Image.Image:
    """The decoded pixels as stored, in their mode, with their ``format``; errors as :func:`read_image`."""
    return _load(path)[0]


def read_image(path: str | Path, levels: Levels = FULL_RANGE, notes: Repairs | None = None) -> NDArray[np.uint8]:
    """Read an image as a viewer shows it: EXIF orientation applied, 16-bit grey scaled to 8 bit.

    Grey, palette, CMYK and other modes are converted to RGB. An alpha channel is ignored; the colour under
    it is kept as stored.

    Args:
        path: of the file.
        levels: values of 16-bit images that are black and white.
        notes: where it is noted that a 16-bit image is dark, because it uses fewer bits.

    Returns:
        uint8 ``[H, W, 3]``, RGB.

    Raises:
        FileNotFoundError: there is no file at ``path``.
        ValueError: the file is no image, is damaged, or holds values with no known range (32-bit, float).
    """
    image, orientation = _load(path)
    return _oriented(_to_rgb(image, path, levels, notes), orientation)


def read_image_like(
    path: str | Path,
    height: int,
    width: int,
    levels: Levels = FULL_RANGE,
    notes: Repairs | None = None,
    data: bytes | None = None,
) -> NDArray[np.uint8]:
    """Read an image in the raster that annotations of ``height`` x ``width`` refer to; otherwise as :func:`read_image`.

    Annotations do not record whether they refer to the stored raster or to the one with the EXIF orientation applied,
    which labelling tools show. The stored raster is returned if only that one has the annotated size. ``data`` is the
    content of the image file, if it is not at ``path``.
    """
    image, orientation = _load(path, data)
    rgb = _to_rgb(image, path, levels, notes, data)
    stored_fits = rgb.shape[:2] == (height, width)
    oriented_fits = rgb.shape[1::-1] == (height, width)
    if orientation in _ROTATED_ORIENTATIONS and stored_fits and not oriented_fits:
        return rgb
    return _oriented(rgb, orientation)


def read_rgba(path: str | Path, levels: Levels = FULL_RANGE, notes: Repairs | None = None) -> NDArray[np.uint8]:
    """Read an image with transparency, EXIF orientation applied.

    Palettes with transparent entries, grey with alpha, and premultiplied TIFF are converted to straight RGBA.
    Arguments are those of :func:`read_image`.

    Returns:
        uint8 ``[H, W, 4]``, RGB and straight alpha.

    Raises:
        FileNotFoundError: there is no file at ``path``.
        NoAlphaError: the file has no alpha channel and no transparent colour.
        ValueError: the file is no image or is damaged.
    """
    image, orientation = _load(path)
    if not image.has_transparency_data:
        raise NoAlphaError(f"{path}: expected an image with an alpha channel, got mode {image.mode}")
    rgba = np.asarray(image.convert("RGBA"))
    if is_deep_color(image):
        rgba = np.dstack([_deep_to_rgb(image, path, levels, notes), rgba[..., 3]])
    return _oriented(rgba, orientation)


def read_index_mask(path: str | Path) -> NDArray[np.int32]:
    """Read an instance mask: the stored numbers (palette indices, not colours), 0 for background; int32 ``[H, W]``.

    Raises:
        FileNotFoundError: there is no file at ``path``.
        ValueError: the file is damaged or has several channels.
    """
    image, _ = _load(path)
    if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        raise ValueError(
            f"{path}: expected a mask of one integer channel (0 background, 1..n objects), got mode {image.mode}"
        )
    return np.asarray(image).astype(np.int32)


def read_mask(path: str | Path) -> NDArray[np.uint8]:
    """Read a grey mask of one object, EXIF orientation applied: uint8 ``[H, W]``; errors as :func:`read_index_mask`.

    A mask of one bit, or of more than 8 with 0 and one other value, such as a class number, becomes 0 and 255.
    """
    image, orientation = _load(path)
    if image.mode == "I" or image.mode.startswith("I;16"):
        numbers = np.asarray(image)[..., None]
        if numbers.min() == 0 and ((numbers == 0) | (numbers == numbers.max())).all():
            return np.ascontiguousarray(_oriented(np.where(numbers, np.uint8(255), np.uint8(0)), orientation)[..., 0])
    rgb = _oriented(_to_rgb(image, path), orientation)
    if (rgb != rgb[..., :1]).any():
        raise ValueError(f"{path}: expected a mask in grey, got colours")
    return np.ascontiguousarray(rgb[..., 0])


def read_color_mask(path: str | Path) -> NDArray[np.int32]:
    """Read a mask whose colours are numbers, R + 256 G + 65536 B (COCO's panoptic format): int32 ``[H, W]``.

    Raises:
        FileNotFoundError: there is no file at ``path``.
        ValueError: the file is damaged or has no colours.
    """
    image, _ = _load(path)
    if image.mode not in ("RGB", "RGBA"):
        raise ValueError(f"{path}: expected a mask in RGB, got mode {image.mode}")
    colors = np.asarray(image)[..., :3].astype(np.int32)
    numbers: NDArray[np.int32] = colors[..., 0] + 256 * colors[..., 1] + 65536 * colors[..., 2]
    return numbers


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width in px of an image as a viewer shows it, without decoding it; errors as :func:`read_image`."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            with Image.open(path) as image:
                width, height = image.size
                return (width, height) if _orientation(image) in _ROTATED_ORIENTATIONS else (height, width)
    except BROKEN_FILE as error:
        raise ValueError(f"{path}: {_CANNOT_BE_READ} ({type(error).__name__}: {error})") from error


def why_unreadable(error: ValueError, otherwise: str) -> str:
    """The reason to reject the objects of an image that the functions of this module cannot read."""
    return TOO_LARGE if isinstance(error.__cause__, Image.DecompressionBombError) else otherwise


def is_color_image(path: str | Path) -> bool:
    """Whether a file is a colour image, unlike masks of class numbers and depth maps."""
    try:
        with Image.open(path) as image:
            return image.mode in _COLOR_MODES
    except BROKEN_FILE:
        return False


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; false for names that no file can have, as in some exports."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | Path) -> bool:
    """Whether there is such a folder; false for names that none can have."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def _load(path: str | Path, data: bytes | None = None) -> tuple[Image.Image, int]:
    """The decoded image and its EXIF orientation, 1 to 8; of a file, or of its content."""
    if data is None and not is_file(path):
        raise FileNotFoundError(f"no image file at {path}")
    try:
        with warnings.catch_warnings():
            # Pillow warns about TIFF and EXIF tags that do not affect the pixels.
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            with Image.open(path if data is None else io.BytesIO(data)) as image:
                mark_deep_color(image)
                image.load()
                copied = image.copy()
                copied.format = image.format  # copy() drops it, and _to_rgb needs it
                return copied, _orientation(image)
    except BROKEN_FILE as error:
        raise ValueError(f"{path}: {_CANNOT_BE_READ} ({type(error).__name__}: {error})") from error


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except BROKEN_FILE:  # EXIF is damaged far more often than pixels; viewers then show the stored raster
        return 1
    return orientation if orientation in range(1, 9) else 1


def _to_rgb(
    image: Image.Image,
    path: str | Path,
    levels: Levels = FULL_RANGE,
    notes: Repairs | None = None,
    data: bytes | None = None,
) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _grey16_to_rgb(np.asarray(image), path, levels, notes)
    if is_deep_color(image):
        return _deep_to_rgb(image, path, levels, notes, data)
    if image.mode in ("I", "F"):
        raise ValueError(f"{path}: expected 8 or 16 bits per channel, got mode {image.mode}; convert it first")
    if image.has_transparency_data:  # a direct conversion loses transparent palette entries
        return np.asarray(image.convert("RGBA"))[..., :3]
    return np.asarray(image.convert("RGB"))


def _deep_to_rgb(
    image: Image.Image, path: str | Path, levels: Levels, notes: Repairs | None, data: bytes | None = None
) -> NDArray[np.uint8]:
    if levels != FULL_RANGE:
        return read_deep_color(path, levels, data)
    rgb = np.asarray(image.convert("RGB"))
    if notes is not None:
        notes |= dim_note(256 * int(rgb.max(initial=0)), levels)
    return rgb


def _grey16_to_rgb(
    grey: NDArray[np.generic], path: str | Path, levels: Levels, notes: Repairs | None
) -> NDArray[np.uint8]:
    wide = grey.astype(np.int64)
    if wide.size and (wide.min() < 0 or wide.max() > 65535):
        raise ValueError(f"{path}: expected 16-bit values, got up to {wide.max()}; convert the image first")
    if notes is not None:
        notes |= dim_note(int(wide.max(initial=0)), levels)
    return np.repeat(to_8_bits(wide, levels)[..., None], 3, axis=2)


def _oriented(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply an EXIF orientation to ``[H, W, C]`` (EXIF 2.32, table 4.6.4)."""
    if orientation in _ROTATED_ORIENTATIONS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)

"""Image files of all usual modes are read as a viewer shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bank_samples import gradient
from PIL import Image

from terse_aug.bank import NoAlphaError, read_image, read_rgba
from terse_aug.bank.inputs.images import read_image_like, read_index_mask, read_mask

# EXIF orientation -> what a viewer does to the stored raster, spelled out independently of the implementation.
TRANSPOSES = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def save_oriented(path: Path, pixels: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


@pytest.mark.parametrize("orientation", TRANSPOSES)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    pixels = gradient(5, 9)
    save_oriented(tmp_path / "a.png", pixels, orientation)
    transpose = TRANSPOSES[orientation]
    expected = Image.fromarray(pixels) if transpose is None else Image.fromarray(pixels).transpose(transpose)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(expected))


def test_the_annotated_size_selects_the_raster(tmp_path: Path) -> None:
    save_oriented(tmp_path / "a.png", gradient(5, 9), 6)
    assert read_image_like(tmp_path / "a.png", 9, 5).shape == (9, 5, 3)
    np.testing.assert_array_equal(read_image_like(tmp_path / "a.png", 5, 9), gradient(5, 9))
    assert read_image_like(tmp_path / "a.png", 100, 100).shape == (9, 5, 3)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 128, 256, 257], [32768, 65278, 65407, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        expected = np.rint(values / 257).astype(np.uint8)
        np.testing.assert_array_equal(read_image(tmp_path / name), np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "YCbCr", "PA"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(gradient(16, 16)).convert("L" if mode in ("PA",) else "RGB").convert(mode)
    name = "a.tif" if mode in ("CMYK", "YCbCr", "PA") else "a.png"
    image.save(tmp_path / name)
    read = read_image(tmp_path / name)
    assert (read.shape, read.dtype) == ((16, 16, 3), np.uint8)
    expected = np.asarray(image.convert("RGBA").convert("RGB") if mode == "PA" else image.convert("RGB"))
    np.testing.assert_allclose(read.astype(int), expected.astype(int), atol=2)


def test_transparency_of_palettes_and_of_grey(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=bytes([0, 255]))
    assert read_rgba(tmp_path / "a.png").tolist() == [[[10, 20, 30, 0], [200, 100, 50, 255]]]
    assert read_image(tmp_path / "a.png").tolist() == [[[10, 20, 30], [200, 100, 50]]]
    path = tmp_path / "größe 写真.png"
    Image.merge("LA", (Image.new("L", (2, 2), 90), Image.new("L", (2, 2), 40))).save(path)
    assert read_rgba(path)[0, 0].tolist() == [90, 90, 90, 40]


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tif", "bmp"])
def test_truncated_files_are_refused(tmp_path: Path, extension: str) -> None:
    Image.fromarray(gradient(60, 60)).save(tmp_path / f"a.{extension}")
    whole = (tmp_path / f"a.{extension}").read_bytes()
    for length in (0, 1, 10, 40, len(whole) // 2, len(whole) * 3 // 4):
        (tmp_path / f"b.{extension}").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be read as an image"):
            read_image(tmp_path / f"b.{extension}")


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(gradient(4, 4)).save(tmp_path / "rgb.png")
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.arange(48, dtype=np.int32).reshape(6, 8)).save(tmp_path / "int.tif")  # not read as black
    cases: list[tuple[Callable[[Path], object], str, type[Exception], str]] = [
        (read_image, "missing.png", FileNotFoundError, "no image file"),
        (read_image, "text.png", ValueError, "cannot be read"),
        (read_image, "float.tif", ValueError, "8 or 16 bits"),
        (read_image, "int.tif", ValueError, "expected 8 or 16 bits per channel, got mode I"),
        (read_rgba, "rgb.png", NoAlphaError, "alpha channel"),
        (read_index_mask, "rgb.png", ValueError, "one integer channel"),
    ]
    for read, name, error, message in cases:
        with pytest.raises(error, match=message):
            read(tmp_path / name)


@pytest.mark.parametrize("value", [1, 7, 65535])
def test_a_mask_of_sixteen_bits_with_two_values_is_binary(tmp_path: Path, value: int) -> None:
    mask = np.zeros((6, 8), np.uint16)
    mask[2:4, 3:] = value
    Image.fromarray(mask).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), 255 * (mask > 0))


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_masks_keep_their_numbers(tmp_path: Path, mode: str) -> None:
    top = {"1": 1, "I;16": 700}.get(mode, 3)
    if mode == "I;16":
        image = Image.fromarray(np.array([[0, top]], np.uint16))
    else:
        image = Image.new(mode, (2, 1))
        image.putdata([0, 255 if mode == "1" else top])
    if mode == "P":
        image.putpalette([9, 9, 9] * 4)  # all colours are equal: only the index distinguishes objects
    image.save(tmp_path / "m.png")
    assert read_index_mask(tmp_path / "m.png").tolist() == [[0, top]]

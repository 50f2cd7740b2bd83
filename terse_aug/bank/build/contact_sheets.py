"""Contact sheets of what a build rejected, and of some of what it kept."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from terse_aug.bank.build.report import RejectedSample, Section
from terse_aug.bank.extract import RejectedObject
from terse_aug.bank.inputs.images import BROKEN_FILE, NoAlphaError, read_image_like, read_rgba
from terse_aug.bank.inputs.masks import segmentation_to_mask
from terse_aug.bank.inputs.repair import Malformed, as_number, parse_text, repair_segmentation
from terse_aug.structures.foreground import Foreground
from terse_aug.viz.contact_sheet import GAP, PAPER, contact_sheet, paragraph
from terse_aug.viz.images import ORANGE, SKY_BLUE, Color, RGBImage, resize_within

Locate = Callable[[str | Path], Path]
"""From the image of a rejected sample to its file."""

_COLUMNS, _CELL_PX = 4, 300
_WIDTH = _COLUMNS * _CELL_PX
_MAX_SECTIONS = 24
_MIN_WINDOW_PX = 64
_MARGIN = 0.5
"""Around an annotation, as a fraction of its larger side."""
_CHECKERBOARD_PX = 8
_MAX_COORDINATE = 1e6
_SOFTWARE = "terse-aug"


def check_target(target: Path, overwrite: bool) -> None:
    """Check that sheets can be written to a PNG file, or into a folder.

    Raises:
        FileNotFoundError: the parent folder does not exist.
        FileExistsError: the target exists and is not to be replaced, or is a folder with other files.
    """
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist; create it first")
    taken = target.exists() if _is_sheet(target) else target.is_dir() and any(target.iterdir())
    if taken and not overwrite:
        raise FileExistsError(f"{target} exists; choose another place for the sheets, or overwrite=True (--overwrite)")
    if target.exists() and target.is_dir() == _is_sheet(target):
        raise FileExistsError(f"{target}: expected NAME.png for one sheet, or a folder for one sheet per reason")
    if target.is_dir() and (others := [path.name for path in target.iterdir() if not _is_own(path)]):
        raise FileExistsError(
            f"{target} holds files that terse-aug did not write (such as {min(others)}); choose another folder"
        )


def write_sheets(target: Path, sections: Sequence[Section], locate: Locate) -> None:
    """Draw the sections, the most frequent first, into one PNG file, or each into one of a folder, which is made.

    A sheet has at most 24 sections of 4 images; a file in a folder has 12 images of at most 300 px. Raises ``OSError``
    where the disk is full or cannot be written.
    """
    if _is_sheet(target):
        parts = [_drawn(section, locate, _COLUMNS) for section in sections[:_MAX_SECTIONS]]
        if rest := sections[_MAX_SECTIONS:]:
            parts.append(paragraph("Not shown: " + "; ".join(section.title for section in rest), _WIDTH, GAP))
        _save(_stacked(parts), target)
        return
    target.mkdir(exist_ok=True)
    for path in target.iterdir():
        if _is_own(path):  # of an earlier build, which may have had other reasons
            path.unlink()
    for number, section in enumerate(sections, 1):
        slug = re.sub("[^a-z0-9]+", "-", section.title.lower().lstrip("0123456789 ")).strip("-")[:60]
        name = "kept.png" if slug.startswith("kept") else f"{number:02d}-{slug}.png"
        _save(_drawn(section, locate, 3 * _COLUMNS), target / name)


def _is_sheet(target: Path) -> bool:
    return target.suffix.lower() == ".png"


def _save(image: RGBImage, path: Path) -> None:
    text = PngInfo()
    text.add_text("Software", _SOFTWARE)
    Image.fromarray(image).save(path, pnginfo=text)


def _is_own(path: Path) -> bool:
    """Whether a file is a sheet, by its metadata: the name is not enough."""
    try:
        with Image.open(path) as image:
            return bool(image.info.get("Software") == _SOFTWARE)
    except BROKEN_FILE:
        return False


def _drawn(section: Section, locate: Locate, count: int) -> RGBImage:
    images, captions = [], []
    count = min(count, len(section.samples))
    for sample in (section.samples[len(section.samples) * number // count] for number in range(count)):
        image = _drawn_foreground(sample) if isinstance(sample, Foreground) else draw_rejected(sample, locate)
        if image is not None:
            images.append(image)
            captions.append(sample.source if isinstance(sample, Foreground) else sample.caption)
    if not images:
        return paragraph(f"{section.title}\nNo image; such as {', '.join(section.examples)}", _WIDTH, GAP)
    return contact_sheet(images, _COLUMNS, captions, title=section.title, cell_width=_CELL_PX)


def _stacked(parts: Sequence[RGBImage]) -> RGBImage:
    """One below the other, padded to one width."""
    width = max(part.shape[1] for part in parts)
    padded = [np.pad(part, ((0, 0), (0, width - part.shape[1]), (0, 0)), constant_values=PAPER) for part in parts]
    return np.concatenate(padded)


def _drawn_foreground(foreground: Foreground) -> RGBImage:
    return resize_within(_on_checkerboard(foreground.rgba), _CELL_PX, _CELL_PX)


def _on_checkerboard(rgba: NDArray[np.uint8]) -> RGBImage:
    rows, columns = np.ogrid[: rgba.shape[0], : rgba.shape[1]]
    squares = np.where((rows // _CHECKERBOARD_PX + columns // _CHECKERBOARD_PX) % 2, 205.0, 255.0)[..., None]
    alpha = rgba[..., 3:] / 255
    image: RGBImage = np.rint(alpha * rgba[..., :3] + (1 - alpha) * squares).astype(np.uint8)
    return image


def draw_rejected(sample: RejectedSample, locate: Locate) -> RGBImage | None:
    """The part of an image around a rejected object, with its box and the outline of its mask as annotated.

    Returns:
        uint8 ``[H, W, 3]``, RGB, the larger side 300 px; ``None`` where the image cannot be read.
    """
    try:
        path = locate(sample.image)
        try:
            pixels = _on_checkerboard(read_rgba(path))
        except NoAlphaError:
            pixels = read_image_like(path, *sample.size)
    except (OSError, ValueError, LookupError):
        return None
    box, outlines = _corners(sample.box), _outlines(sample.segmentation, pixels.shape)
    shapes = [*([] if box is None else [box]), *outlines]
    left, top, right, bottom = _window(shapes, pixels.shape)
    columns, rows = np.arange(left, right), np.arange(top, bottom)
    crop = pixels[rows.clip(0, len(pixels) - 1)][:, columns.clip(0, pixels.shape[1] - 1)].copy()
    crop[(rows < 0) | (rows >= len(pixels))] = PAPER
    crop[:, (columns < 0) | (columns >= pixels.shape[1])] = PAPER
    image = resize_within(np.ascontiguousarray(crop), _CELL_PX, _CELL_PX)
    scale = np.array([image.shape[1] / crop.shape[1], image.shape[0] / crop.shape[0]])
    for outline in outlines:
        _draw_outline(image, (outline - [left, top]) * scale, SKY_BLUE)
    if box is not None:
        _draw_outline(image, (box - [left, top]) * scale, ORANGE)
    return image


def _corners(box: Any) -> NDArray[np.float64] | None:
    """Four corners ``[4, 2]``; ``None`` where the annotation is no box."""
    try:
        x, y, width, height = (as_number(value) for value in parse_text(box, set()))
    except (Malformed, TypeError, ValueError):
        return None
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]]).clip(
        -_MAX_COORDINATE, _MAX_COORDINATE
    )


def _outlines(segmentation: Any, shape: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """Outlines ``[n, 2]`` of a mask; the points of polygons that make no mask."""
    if segmentation is None:
        return []
    segmentation = repair_segmentation(segmentation, set())
    try:
        mask = segmentation_to_mask(segmentation, *shape[:2])
    except RejectedObject:
        return _polygon_points(segmentation)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [contour[:, 0].astype(np.float64) + 0.5 for contour in contours]


def _polygon_points(segmentation: Any) -> list[NDArray[np.float64]]:
    outlines = []
    for polygon in segmentation if isinstance(segmentation, list) else ():
        try:
            values = [as_number(value) for value in polygon]
        except (Malformed, TypeError):
            continue
        if len(values) >= 2:
            outlines.append(
                np.array(values[: len(values) // 2 * 2]).reshape(-1, 2).clip(-_MAX_COORDINATE, _MAX_COORDINATE)
            )
    return outlines


def _window(shapes: Sequence[NDArray[np.float64]], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in px of the part of an image to show, which may reach beyond it by half its size."""
    height, width = shape[:2]
    if not shapes:
        return 0, 0, width, height
    size = np.array([width, height])
    points = np.concatenate(shapes).clip(-size / 2, 1.5 * size)
    low, high = points.min(0), points.max(0)
    if (high <= 0).any() or (low >= size).any():  # entirely outside: the image has to be in view
        low, high = np.minimum(low, 0), np.maximum(high, size)
    margin = max(_MARGIN * float((high - low).max()), _MIN_WINDOW_PX / 2)
    # Beyond the image only what the annotation needs.
    left, top = (max(math.floor(value - margin), min(math.floor(value), 0)) for value in low)
    right, bottom = (
        min(math.ceil(value + margin), max(math.ceil(value), side))
        for value, side in zip(high, (width, height), strict=True)
    )
    return left, top, right, bottom


def _draw_outline(image: RGBImage, outline: NDArray[np.float64], color: Color) -> None:
    """A closed line with a dark rim, which is visible on any background; a point is a dot."""
    limit = 4 * max(image.shape)
    points = [np.rint(outline.clip(-limit, limit) - 0.5).astype(np.int32)]
    for thickness, ink in ((4, (0, 0, 0)), (2, color)):
        cv2.polylines(image, points, True, ink, thickness, cv2.LINE_AA)

"""Pictures of what a build left out, and of some of what it kept. Imports numpy, opencv and pillow."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from terse_aug.bank.build.rejected_sample import RejectedSample
from terse_aug.bank.extract import RejectedObject
from terse_aug.bank.inputs.images import BROKEN_FILE, NoAlphaError, read_image_like, read_rgba
from terse_aug.bank.inputs.masks import segmentation_to_mask
from terse_aug.bank.inputs.repair import Malformed, as_number, parse_text, repair_segmentation
from terse_aug.structures.foreground import Foreground
from terse_aug.viz.contact_sheet import GAP, PAPER, contact_sheet, paragraph
from terse_aug.viz.images import ORANGE, SKY_BLUE, Color, RGBImage, resize_within

Locate = Callable[[str | Path], Path]
"""From the image of an exhibit to its file."""

_COLUMNS = 4
_CELL = 300
_WIDTH = _COLUMNS * _CELL
_MOST_SECTIONS = 24
_LEAST_WINDOW = 64
_MARGIN = 0.5
_CHEQUER = 8
_FAR = 1e6
_WRITER = "terse-aug"


class Section(NamedTuple):
    """A part of a sheet.

    Attributes:
        title: the reason, and how often it was met.
        exhibits: objects of it.
        examples: where some are found, for want of pictures.
    """

    title: str
    exhibits: Sequence[RejectedSample | Foreground]
    examples: Sequence[str] = ()


def check_target(target: Path, overwrite: bool) -> None:
    """See that pictures can go to a PNG file, or to a folder.

    Raises:
        FileNotFoundError: the folder that it lies in does not exist.
        FileExistsError: it exists, and is not to be replaced; or is a folder with files that are no such pictures.
    """
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist; create it first")
    taken = target.exists() if _is_sheet(target) else target.is_dir() and any(target.iterdir())
    if taken and not overwrite:
        raise FileExistsError(
            f"{target} exists; choose another place for pictures, or give overwrite=True (--overwrite)"
        )
    if target.exists() and target.is_dir() == _is_sheet(target):
        raise FileExistsError(f"{target}: expected NAME.png for one sheet, or else a folder for one of each reason")
    if target.is_dir() and (others := [path.name for path in target.iterdir() if not _is_own(path)]):
        raise FileExistsError(
            f"{target} holds files that are no sheets of terse-aug (such as {min(others)}); choose another folder"
        )


def write_sheets(target: Path, sections: Sequence[Section], locate: Locate) -> None:
    """Draw the sections into one PNG file, or each into one of a folder.

    A sheet has at most 24 sections of 4 pictures; a file in a folder has 12 pictures of at most 300 px.

    Args:
        target: a name that ends with ``.png``, or a folder, which is made.
        sections: what is shown, the most frequent first.
        locate: finds images.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    if _is_sheet(target):
        parts = [_drawn(section, locate, _COLUMNS) for section in sections[:_MOST_SECTIONS]]
        if rest := sections[_MOST_SECTIONS:]:
            parts.append(paragraph("Not shown: " + "; ".join(section.title for section in rest), _WIDTH, GAP))
        _save(_stacked(parts), target)
        return
    target.mkdir(exist_ok=True)
    for path in target.iterdir():
        if _is_own(path):  # of an earlier build, whose reasons may have been others
            path.unlink()
    for number, section in enumerate(sections, 1):
        slug = re.sub("[^a-z0-9]+", "-", section.title.lower().lstrip("0123456789 ")).strip("-")[:60]
        name = "kept.png" if slug.startswith("kept") else f"{number:02d}-{slug}.png"
        _save(_drawn(section, locate, 3 * _COLUMNS), target / name)


def _is_sheet(target: Path) -> bool:
    return target.suffix.lower() == ".png"


def _save(picture: RGBImage, path: Path) -> None:
    text = PngInfo()
    text.add_text("Software", _WRITER)
    Image.fromarray(picture).save(path, pnginfo=text)


def _is_own(path: Path) -> bool:
    """Whether it is a sheet, by what is written in it: names may be anyone's."""
    try:
        with Image.open(path) as image:
            return bool(image.info.get("Software") == _WRITER)
    except BROKEN_FILE:
        return False


def _drawn(section: Section, locate: Locate, count: int) -> RGBImage:
    pictures, captions = [], []
    for exhibit in _some(section.exhibits, count):
        picture = _cut_out(exhibit) if isinstance(exhibit, Foreground) else _on_image(exhibit, locate)
        if picture is not None:
            pictures.append(picture)
            captions.append(exhibit.source if isinstance(exhibit, Foreground) else exhibit.caption)
    if not pictures:
        return paragraph(f"{section.title}\nNo picture; such as {', '.join(section.examples)}", _WIDTH, GAP)
    return contact_sheet(pictures, _COLUMNS, captions, title=section.title, cell_width=_CELL)


def _some(exhibits: Sequence[Any], count: int) -> Iterator[Any]:
    """Evenly spread."""
    count = min(count, len(exhibits))
    return (exhibits[len(exhibits) * at // count] for at in range(count))


def _stacked(parts: Sequence[RGBImage]) -> RGBImage:
    """One below the other, on paper."""
    width = max(part.shape[1] for part in parts)
    padded = [np.pad(part, ((0, 0), (0, width - part.shape[1]), (0, 0)), constant_values=PAPER) for part in parts]
    return np.concatenate(padded)


def _cut_out(foreground: Foreground) -> RGBImage:
    return resize_within(_on_chequers(foreground.rgba), _CELL, _CELL)


def _on_chequers(rgba: NDArray[np.uint8]) -> RGBImage:
    """A picture with transparency, on grey squares."""
    rows, columns = np.ogrid[: rgba.shape[0], : rgba.shape[1]]
    squares = np.where((rows // _CHEQUER + columns // _CHEQUER) % 2, 205.0, 255.0)[..., None]
    alpha = rgba[..., 3:] / 255
    shown: RGBImage = np.rint(alpha * rgba[..., :3] + (1 - alpha) * squares).astype(np.uint8)
    return shown


def _on_image(exhibit: RejectedSample, locate: Locate) -> RGBImage | None:
    """The part of an image with the object and what is known of it; ``None`` where the image cannot be read."""
    try:
        path = locate(exhibit.image)
        try:
            pixels = _on_chequers(read_rgba(path))
        except NoAlphaError:
            pixels = read_image_like(path, *exhibit.size)
    except (OSError, ValueError, LookupError):
        return None
    box, outlines = _corners(exhibit.box), _outlines(exhibit.segmentation, pixels.shape)
    shapes = [*([] if box is None else [box]), *outlines]
    left, top, right, bottom = _window(shapes, pixels.shape)
    across = np.arange(left, right)
    down = np.arange(top, bottom)
    crop = pixels[down.clip(0, len(pixels) - 1)][:, across.clip(0, pixels.shape[1] - 1)].copy()
    crop[(down < 0) | (down >= len(pixels))] = PAPER
    crop[:, (across < 0) | (across >= pixels.shape[1])] = PAPER
    shown = resize_within(np.ascontiguousarray(crop), _CELL, _CELL)
    scale = np.array([shown.shape[1] / crop.shape[1], shown.shape[0] / crop.shape[0]])
    for outline in outlines:
        _line(shown, (outline - [left, top]) * scale, SKY_BLUE)
    if box is not None:
        _line(shown, (box - [left, top]) * scale, ORANGE)
    return shown


def _corners(box: Any) -> NDArray[np.float64] | None:
    """Four corners ``[4, 2]``, if that is what the annotation has."""
    try:
        x, y, width, height = (as_number(value) for value in parse_text(box, set()))
    except (Malformed, TypeError, ValueError):
        return None
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]]).clip(-_FAR, _FAR)


def _outlines(segmentation: Any, shape: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """Outlines ``[n, 2]`` of a mask, or the points of polygons that make none."""
    if segmentation is None:
        return []
    segmentation = repair_segmentation(segmentation, set())
    try:
        mask = segmentation_to_mask(segmentation, *shape[:2])
    except RejectedObject:
        return _raw_points(segmentation)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [contour[:, 0].astype(np.float64) + 0.5 for contour in contours]


def _raw_points(segmentation: Any) -> list[NDArray[np.float64]]:
    outlines = []
    for polygon in segmentation if isinstance(segmentation, list) else ():
        try:
            values = [as_number(value) for value in polygon]
        except (Malformed, TypeError):
            continue
        if len(values) >= 2:
            outlines.append(np.array(values[: len(values) // 2 * 2]).reshape(-1, 2).clip(-_FAR, _FAR))
    return outlines


def _window(shapes: Sequence[NDArray[np.float64]], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in px of the part of an image to show; it may reach beyond the image by half of it."""
    height, width = shape[:2]
    if not shapes:
        return 0, 0, width, height
    size = np.array([width, height])
    points = np.concatenate(shapes).clip(-size / 2, 1.5 * size)
    low, high = points.min(0), points.max(0)
    if (high <= 0).any() or (low >= size).any():  # wholly outside: the image has to be in view
        low, high = np.minimum(low, 0), np.maximum(high, size)
    margin = max(_MARGIN * float((high - low).max()), _LEAST_WINDOW / 2)
    left, top = (math.floor(value - margin) for value in low)
    right, bottom = (math.ceil(value + margin) for value in high)
    # Beyond the image only what the annotation needs.
    left, top = (max(edge, min(math.floor(need), 0)) for edge, need in zip((left, top), low, strict=True))
    right, bottom = (
        min(edge, max(math.ceil(need), side))
        for edge, need, side in zip((right, bottom), high, (width, height), strict=True)
    )
    return left, top, right, bottom


def _line(picture: RGBImage, outline: NDArray[np.float64], color: Color) -> None:
    """A closed line with a dark rim, which is seen on any ground; a point is a dot."""
    far = 4 * max(picture.shape)
    fixed = [np.rint(outline.clip(-far, far) - 0.5).astype(np.int32)]
    for thickness, ink in ((4, (0, 0, 0)), (2, color)):
        cv2.polylines(picture, fixed, True, ink, thickness, cv2.LINE_AA)

"""Pictures in a grid with captions, as one picture. Imports OpenCV and pillow."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from terse_aug.viz.pictures import Picture
from terse_aug.viz.text import font_of, line_height, wrapped

PAPER = 250
"""The grey of the ground."""
_INK = (32, 32, 32)
_FONT = 15
GAP = 16
"""Between pictures, px."""


def contact_sheet(
    pictures: Sequence[Picture],
    columns: int,
    captions: Sequence[str] | None = None,
    *,
    title: str = "",
    cell_width: int = 560,
) -> Picture:
    """Pictures in rows from the left, each with its caption below.

    Args:
        pictures: uint8 ``[H, W, 3]`` each, RGB, of any sizes; wider ones than a cell are scaled down.
        columns: pictures in a row.
        captions: one text per picture, broken into lines as needed; none by default.
        title: text above the grid.
        cell_width: width of a cell in px.

    Returns:
        uint8 ``[H', W', 3]``, RGB, on light ground.

    Raises:
        ValueError: there is no picture, one is not uint8 ``[H, W, 3]``, the captions are not as many, or
            ``columns`` or ``cell_width`` is below 1.
    """
    if not pictures or columns < 1 or cell_width < 1:
        raise ValueError(
            f"expected pictures, and columns and cell_width of at least 1, got {len(pictures)} pictures, "
            f"{columns} columns and cell_width {cell_width}"
        )
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"expected one caption per picture, got {len(captions)} for {len(pictures)} pictures")
    for index, picture in enumerate(pictures):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"picture {index}: expected uint8 [H, W, 3], got {picture.dtype} {list(picture.shape)}")
    cells = [
        _cell(picture, caption, cell_width)
        for picture, caption in zip(pictures, captions or [""] * len(pictures), strict=True)
    ]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    width = min(columns, len(cells)) * (cell_width + GAP) + GAP
    bands = [_band(row, width) for row in rows]
    if title:
        bands.insert(0, paragraph(title, width, margin=GAP))
    return np.concatenate([*bands, _blank(GAP, width)])


def _cell(picture: Picture, caption: str, width: int) -> Picture:
    if picture.shape[1] > width:
        size = (width, max(round(picture.shape[0] * width / picture.shape[1]), 1))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    framed = _blank(picture.shape[0], width)
    framed[:, : picture.shape[1]] = picture
    return np.concatenate([framed, paragraph(caption, width)]) if caption else framed


def _band(cells: Sequence[Picture], width: int) -> Picture:
    """A row of cells of one width, aligned at their tops."""
    band = _blank(max(len(cell) for cell in cells) + GAP, width)
    for index, cell in enumerate(cells):
        left = GAP + index * (cell.shape[1] + GAP)
        band[GAP : GAP + len(cell), left : left + cell.shape[1]] = cell
    return band


def paragraph(text: str, width: int, margin: int = 0) -> Picture:
    """Text in lines of at most ``width`` px, as a picture of that width."""
    lines = wrapped(text, _FONT, width - 2 * margin)
    height = line_height(_FONT)
    image = Image.fromarray(_blank(len(lines) * height + _FONT // 2 + margin, width))
    draw = ImageDraw.Draw(image)
    for index, line in enumerate(lines):
        middle = (margin, margin + _FONT // 2 + (index + 0.5) * height)
        draw.text(middle, line, fill=_INK, font=font_of(_FONT), anchor="lm")
    return np.array(image)


def _blank(height: int, width: int) -> Picture:
    return np.full((height, width, 3), PAPER, dtype=np.uint8)

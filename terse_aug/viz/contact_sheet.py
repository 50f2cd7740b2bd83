"""Images with captions in a grid, as one image; free of torch, for the bank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from terse_aug.viz.images import RGBImage, resize
from terse_aug.viz.text import font_of, wrap

PAPER = 250
"""Gray value of the sheet."""
GAP = 16
"""Space between images, px."""
_INK = (32, 32, 32)
_FONT = 15
_LINE_SPACING = 5


def contact_sheet(
    images: Sequence[RGBImage],
    columns: int,
    captions: Sequence[str] | None = None,
    *,
    title: str = "",
    cell_width: int = 560,
) -> RGBImage:
    """Arrange images in rows, each with its caption below.

    Args:
        images: uint8 ``[H, W, 3]`` each, RGB, of any sizes; those wider than a cell are scaled down.
        columns: images in a row.
        captions: one text for each image, wrapped to the cell; none by default.
        title: text above the grid.
        cell_width: width of a cell in px.

    Returns:
        uint8 ``[H', W', 3]``, RGB.

    Raises:
        ValueError: there are no images, one is not uint8 ``[H, W, 3]``, the number of captions differs, or ``columns``
            or ``cell_width`` is below 1.
    """
    captions = [""] * len(images) if captions is None else captions
    if not images or columns < 1 or cell_width < 1 or len(captions) != len(images):
        raise ValueError(
            "expected at least one image, a caption for each, and columns and cell_width of at least 1, got "
            f"{len(images)} images, {len(captions)} captions, {columns} columns and cell_width {cell_width}"
        )
    for index, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"image {index}: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    cells = [_cell(image, caption, cell_width) for image, caption in zip(images, captions, strict=True)]
    width = min(columns, len(cells)) * (cell_width + GAP) + GAP
    parts = [paragraph(title, width, GAP)] if title else []
    for start in range(0, len(cells), columns):
        row = cells[start : start + columns]
        size = (max(map(len, row)) + GAP, cell_width + GAP)
        parts.append(_padded(np.concatenate([_padded(cell, size, GAP) for cell in row], 1), (size[0], width)))
    return np.concatenate([*parts, np.full((GAP, width, 3), PAPER, np.uint8)])


def paragraph(text: str, width: int, margin: int = 0) -> RGBImage:
    """Text wrapped to ``width`` px, as an image of that width."""
    wrapped, font = "\n".join(wrap(text, _FONT, width - 2 * margin)), font_of(_FONT)
    measure = ImageDraw.Draw(Image.new("L", (1, 1)))
    bottom = measure.multiline_textbbox((0, 0), wrapped, font, spacing=_LINE_SPACING)[3]
    image = Image.new("RGB", (width, round(bottom) + 2 * _LINE_SPACING + margin), (PAPER,) * 3)
    corner = (margin, margin + _LINE_SPACING)
    ImageDraw.Draw(image).multiline_text(corner, wrapped, _INK, font, spacing=_LINE_SPACING)
    return np.array(image)


def _cell(image: RGBImage, caption: str, width: int) -> RGBImage:
    scaled = resize(image, min(width / image.shape[1], 1))
    framed = _padded(scaled, (len(scaled), width))
    return np.concatenate([framed, paragraph(caption, width)]) if caption else framed


def _padded(image: RGBImage, size: tuple[int, int], margin: int = 0) -> RGBImage:
    """An image on paper of a size (height, width), ``margin`` px from its top left corner."""
    below, beside = size[0] - len(image) - margin, size[1] - image.shape[1] - margin
    return np.pad(image, ((margin, below), (margin, beside), (0, 0)), constant_values=PAPER)

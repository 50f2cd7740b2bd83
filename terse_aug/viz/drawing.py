"""Draws a sample: the image, and on it boxes, masks, keypoints, class names and ids. Imports torch, OpenCV, pillow.

Pixel (i, j) of an image covers the square from (j, i) to (j + 1, i + 1), in image and picture alike.
Shape letters: N objects, H and W the image, H' and W' the picture.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from terse_aug.structures.annotations import Target, check_samples
from terse_aug.viz.pictures import ORANGE, SKY_BLUE, Color, Picture, enlarged
from terse_aug.viz.text import font_of, line_height, printable, width_of

ORIGINAL_COLOR: Color = SKY_BLUE
"""Of what was on the image before."""
PASTED_COLOR: Color = ORANGE
"""Of what was pasted."""

_INK: Color = (0, 0, 0)
_MASK_OPACITY = 0.12
_CROWD = 8
_SUBPIXEL_BITS = 4
_VISIBLE = 2


def draw_sample(
    image: Tensor,
    target: Target,
    classes: Mapping[int, str],
    pasted_rows: Collection[int] = (),
    *,
    smallest: int = 640,
    largest: int = 1024,
) -> Picture:
    """A picture of a sample with all that its target says.

    Boxes are lines just inside their edges, masks are outlined and tinted, visible keypoints are dots and hidden
    ones (flag 1) rings. Each object is named by class and, where the target has ``ids``, by id. A box without
    area, not finite, or outside the image cannot be drawn and is passed over.

    Args:
        image: float ``[3, H, W]``, RGB in [0, 1], on any device; values beyond are clipped.
        target: ``boxes`` float ``[N, 4]`` XYXY in pixels, ``labels`` int ``[N]``, optionally ``masks``,
            ``keypoints`` and ``ids``, as :class:`terse_aug.Terse` takes and gives them.
        classes: name of each label; labels that it lacks are drawn as numbers.
        pasted_rows: rows of the target that were pasted; they are drawn in :data:`PASTED_COLOR`, the others in
            :data:`ORIGINAL_COLOR`.
        smallest: larger side of the picture in px for images below it, so that text is readable.
        largest: larger side of the picture in px for images above it.

    Returns:
        uint8 ``[H', W', 3]``, RGB.

    Raises:
        ValueError: image and target do not keep to the contract, ``smallest`` is not within 1 to ``largest``,
            or a pasted row is not in the target.
    """
    check_samples([image], [target])
    if not 1 <= smallest <= largest:
        raise ValueError(f"expected 1 <= smallest <= largest, got {smallest} and {largest}")
    beyond = sorted(row for row in pasted_rows if not 0 <= row < len(target["boxes"]))
    if beyond:
        raise ValueError(f"expected pasted rows below {len(target['boxes'])}, got {beyond}")
    picture = enlarged(_pixels(image), smallest, largest)
    height, width = picture.shape[:2]
    crowded = len(target["boxes"]) > _CROWD
    canvas = _Canvas(picture, (width / image.shape[2], height / image.shape[1]), crowded)
    marks = _marks(target, classes, pasted_rows, canvas)
    for mark in marks:
        canvas.tint(mark)
    canvas.start_lines()
    for mark in marks:
        canvas.frame(mark)
        canvas.points(mark)
    # Pasted objects are what the picture is about: their text takes its place first and lies on top.
    placed = [(mark, canvas.place(mark)) for mark in sorted(marks, key=lambda mark: not mark.pasted)]
    for mark, place in reversed(placed):
        canvas.write(mark, place)
    return canvas.picture


@dataclass(frozen=True)
class _Mark:
    """One object as it is drawn: a box in whole picture px (upper bounds exclusive), and what else is known."""

    box: tuple[int, int, int, int]
    text: str
    pasted: bool
    mask: NDArray[np.uint8] | None
    keypoints: Sequence[Sequence[float]]

    @property
    def color(self) -> Color:
        return PASTED_COLOR if self.pasted else ORIGINAL_COLOR


class _Canvas:
    """A picture in the making: first masks by OpenCV, then lines and text by pillow."""

    def __init__(self, picture: Picture, scale: tuple[float, float], crowded: bool):
        self._pixels = picture
        self.scale = scale
        self.height, self.width = picture.shape[:2]
        longer = max(self.height, self.width)
        self._line = max(2, round(longer / 320))
        self._font = max(12, round(longer / (55 if crowded else 45)))
        self._padding = max(2, self._font // 6)
        self._taken: list[tuple[int, int, int, int]] = []

    @property
    def picture(self) -> Picture:
        return np.array(self._image)

    def tint(self, mark: _Mark) -> None:
        if mark.mask is None:
            return
        large = cv2.resize(mark.mask, (self.width, self.height), interpolation=cv2.INTER_NEAREST)
        inside = large > 0
        tinted = (1 - _MASK_OPACITY) * self._pixels[inside] + _MASK_OPACITY * np.array(mark.color)
        self._pixels[inside] = tinted.round().astype(np.uint8)
        contours, _ = cv2.findContours(mark.mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        # A contour goes through the centres of pixels, which lie at + 0.5; OpenCV draws at centres too.
        fixed = [
            (((contour + 0.5) * self.scale - 0.5) * (1 << _SUBPIXEL_BITS)).round().astype(np.int32)
            for contour in contours
        ]
        thickness = max(1, self._line // 2)
        cv2.polylines(self._pixels, fixed, True, mark.color, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)

    def start_lines(self) -> None:
        self._image = Image.fromarray(self._pixels)
        self._draw = ImageDraw.Draw(self._image)

    def frame(self, mark: _Mark) -> None:
        left, top, right, bottom = mark.box
        # A dark rim on both sides keeps the line visible on a ground of its own colour.
        self._draw.rectangle((left - 1, top - 1, right, bottom), outline=_INK, width=self._line + 2)
        self._draw.rectangle((left, top, right - 1, bottom - 1), outline=mark.color, width=self._line)

    def points(self, mark: _Mark) -> None:
        radius = 1.5 * self._line
        for x, y, flag in mark.keypoints:
            if not (flag > 0 and math.isfinite(x) and math.isfinite(y)):
                continue
            x, y = x * self.scale[0], y * self.scale[1]
            dot = (x - radius, y - radius, x + radius, y + radius)
            if flag >= _VISIBLE:
                self._draw.ellipse(dot, fill=mark.color, outline=_INK, width=1)
            else:
                self._draw.ellipse(dot, outline=mark.color, width=max(1, self._line // 2))

    def place(self, mark: _Mark) -> tuple[int, int, int, int]:
        """Where the text of a mark covers the least of the texts before it: above the box, in it, or below it."""
        left, top, right, bottom = mark.box
        size = (width_of(mark.text, self._font) + 2 * self._padding, line_height(self._font))
        corners = [
            (x, y)
            for y in (top - size[1], top, bottom, bottom - size[1])
            for x in (left, right - size[0])
            if 0 <= y <= self.height - size[1]
        ]
        places = []
        for x, y in corners or [(left, top)]:
            x = max(min(x, self.width - size[0]), 0)
            y = max(min(y, self.height - size[1]), 0)
            places.append((x, y, x + size[0], y + size[1]))
        best = min(places, key=lambda place: sum(_overlap(place, other) for other in self._taken))
        self._taken.append(best)
        return best

    def write(self, mark: _Mark, place: tuple[int, int, int, int]) -> None:
        left, top, right, bottom = place
        self._draw.rectangle((left, top, right - 1, bottom - 1), fill=mark.color)
        middle = (left + self._padding, (top + bottom) / 2)
        self._draw.text(middle, mark.text, fill=_INK, font=font_of(self._font), anchor="lm")


def _pixels(image: Tensor) -> Picture:
    values = torch.nan_to_num(image.detach().float().cpu()).clamp(0, 1).mul(255).round()
    return np.ascontiguousarray(values.to(torch.uint8).permute(1, 2, 0).numpy())


def _marks(target: Target, classes: Mapping[int, str], pasted_rows: Collection[int], canvas: _Canvas) -> list[_Mark]:
    plain = {
        name: target[name].detach().cpu() for name in ("boxes", "labels", "ids", "masks", "keypoints") if name in target
    }
    marks = []
    for row, corners in enumerate(plain["boxes"].tolist()):
        box = _whole_box(corners, canvas)
        if box is None:
            continue
        label = int(plain["labels"][row])
        identity = f" {int(plain['ids'][row])}" if "ids" in plain else ""
        marks.append(
            _Mark(
                box,
                printable(classes.get(label, str(label)) + identity),
                row in pasted_rows,
                plain["masks"][row].to(torch.uint8).numpy() if "masks" in plain else None,
                plain["keypoints"][row].tolist() if "keypoints" in plain else (),
            )
        )
    return marks


def _whole_box(corners: Sequence[float], canvas: _Canvas) -> tuple[int, int, int, int] | None:
    """A box in picture px, at least one px wide and high; ``None`` where nothing of it lies in the picture."""
    if not all(math.isfinite(corner) for corner in corners):
        return None
    left, right = (_clipped(corner * canvas.scale[0], canvas.width) for corner in corners[::2])
    top, bottom = (_clipped(corner * canvas.scale[1], canvas.height) for corner in corners[1::2])
    if corners[2] <= corners[0] or corners[3] <= corners[1] or right <= 0 or bottom <= 0:
        return None
    if left >= canvas.width or top >= canvas.height:
        return None
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _clipped(value: float, limit: int) -> int:
    return round(min(max(value, 0), limit))


def _overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> int:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)

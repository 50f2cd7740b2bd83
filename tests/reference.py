"""A slow and simple reference implementation of compositor and label correction: loops over pixels, without torch.

It is written from the documented contract, shares no code with the library and trades all speed for being
readable. Images are ``[channel][row][column]`` arrays of float64; masks over the whole image are bool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def transform_point(
    u: float,
    v: float,
    physical: dict[str, float],
    foreground_size: tuple[float, float],
    base_scale: float,
    flipped: bool,
    center: tuple[float, float],
) -> tuple[float, float]:
    """Where a point of the foreground lands: one step of the transform after the other."""
    x, y = u - foreground_size[0] / 2, v - foreground_size[1] / 2
    if flipped:
        x = -x
    x *= physical["scale_x"] * physical["scale"] * base_scale
    y *= physical["scale_y"] * physical["scale"] * base_scale
    x += physical["shear"] * y
    angle = math.radians(physical["rotation"])
    x, y = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
    return x + center[0], y + center[1]


def _look_up(rgba: Array, u: float, v: float) -> tuple[list[float], float]:
    """Bilinear: the colour of the border goes on outside the foreground, its alpha does not."""
    height, width = rgba.shape[1:]
    left, top = math.floor(u - 0.5), math.floor(v - 0.5)
    color, alpha = [0.0, 0.0, 0.0], 0.0
    for row in (top, top + 1):
        for column in (left, left + 1):
            weight = (1 - abs(v - 0.5 - row)) * (1 - abs(u - 0.5 - column))
            if 0 <= row < height and 0 <= column < width:
                alpha += weight * rgba[3, row, column]
            near_row, near_column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
            for channel in range(3):
                color[channel] += weight * rgba[channel, near_row, near_column]
    return color, alpha


def render(rgba: Array, matrix: Array, center: Array, size: tuple[int, int], sigma: float) -> tuple[Array, Array]:
    """Colour ``[3, H, W]`` and alpha ``[H, W]`` of a paste at every pixel of a frame of ``size``."""
    height, width = size
    reach = math.ceil(2 * sigma)
    inverse = np.linalg.inv(matrix)
    color = np.zeros((3, height, width))
    sharp = {}
    for row in range(-reach, height + reach):
        for column in range(-reach, width + reach):
            u, v = inverse @ (np.array([column + 0.5, row + 0.5]) - center)
            seen, alpha = _look_up(rgba, u + rgba.shape[2] / 2, v + rgba.shape[1] / 2)
            sharp[row, column] = min(max((alpha - 0.25) / 0.5, 0.0), 1.0)
            if 0 <= row < height and 0 <= column < width:
                color[:, row, column] = seen
    soft = np.zeros(size)
    for row in range(height):
        for column in range(width):
            soft[row, column] = _gaussian(sharp, row, column, sigma, reach)
    return color, soft


def _gaussian(values: dict[tuple[int, int], float], row: int, column: int, sigma: float, reach: int) -> float:
    if sigma == 0:
        return values[row, column]
    total = weights = 0.0
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            weight = math.exp(-(down**2 + right**2) / (2 * sigma**2))
            total += weight * values[row + down, column + right]
            weights += weight
    return total / weights


def blend(background: Array, layers: Sequence[tuple[Array, Array]]) -> Array:
    """Background with layers (colour, alpha) on it, the last in front."""
    composite = np.array(background, dtype=np.float64)
    for color, alpha in layers:
        for row in range(composite.shape[1]):
            for column in range(composite.shape[2]):
                weight = alpha[row, column]
                for channel in range(3):
                    below = composite[channel, row, column]
                    composite[channel, row, column] = (1 - weight) * below + weight * color[channel, row, column]
    return composite


@dataclass
class Thing:
    """An annotated object, before or after pasting; ``None`` where the annotation has no such field."""

    box: list[float]
    label: int
    mask: Array | None = None
    keypoints: list[list[float]] | None = None
    area: float | None = None
    origin: int = -1
    """Index of the original object, or of the paste."""
    pasted: bool = False
    touched: bool = False


@dataclass
class Cover:
    """A paste: the pixels it shows over the whole image, and its annotation."""

    mask: Array
    label: int | None
    full_area: float
    keypoints: list[list[float]] | None = None


def correct(
    things: Sequence[Thing],
    size: tuple[int, int],
    covers: Sequence[Cover],
    min_visibility: float,
    with_masks: bool,
) -> list[Thing]:
    """The annotation after pasting."""
    height, width = size
    front = [[-1] * width for _ in range(height)]
    for index, cover in enumerate(covers):
        for row in range(height):
            for column in range(width):
                if cover.mask[row, column]:
                    front[row][column] = index
    kept = []
    for origin, thing in enumerate(things):
        after = _original(thing, front, min_visibility)
        if after is not None:
            after.origin = origin
            kept.append(after)
    for index, cover in enumerate(covers):
        after = _pasted(cover, index, front, min_visibility, with_masks)
        if after is not None:
            after.origin = index
            kept.append(after)
    return kept


def _original(thing: Thing, front: list[list[int]], min_visibility: float) -> Thing | None:
    if thing.mask is not None:
        pixels = {(int(row), int(column)) for row, column in zip(*np.nonzero(thing.mask), strict=True)}
    else:
        pixels = _pixels_in(thing.box, front)
    visible = {(row, column) for row, column in pixels if front[row][column] == -1}
    after = Thing(thing.box, thing.label, thing.mask, thing.keypoints, thing.area)
    if thing.keypoints is not None:
        after.keypoints = [_covered_keypoint(point, front, -1) for point in thing.keypoints]
    if visible == pixels:
        return after
    if not visible or len(visible) < min_visibility * len(pixels):
        return None
    after.touched = True
    if thing.mask is not None:
        after.mask = _mask_of(visible, front)
        after.box, after.area = _box_of(visible), len(visible)
    else:
        after.box = _shrunk(thing.box, pixels, visible)
        after.area = None if thing.area is None else thing.area * len(visible) / len(pixels)
    return after


def _pasted(cover: Cover, index: int, front: list[list[int]], min_visibility: float, with_mask: bool) -> Thing | None:
    if cover.label is None:
        return None
    visible = {(row, column) for row, line in enumerate(front) for column, first in enumerate(line) if first == index}
    if not visible or len(visible) < min_visibility * cover.full_area:
        return None
    keypoints = None
    if cover.keypoints is not None:
        keypoints = [_covered_keypoint(_inside(point, front), front, index) for point in cover.keypoints]
    mask = _mask_of(visible, front) if with_mask else None
    return Thing(_box_of(visible), cover.label, mask, keypoints, len(visible), pasted=True, touched=True)


def _pixels_in(box: Sequence[float], front: list[list[int]]) -> set[tuple[int, int]]:
    """The pixels whose center lies in a box."""
    left, top, right, bottom = box
    pixels = {
        (row, column)
        for row in range(len(front))
        for column in range(len(front[0]))
        if left <= column + 0.5 < right and top <= row + 0.5 < bottom
    }
    assert pixels, "the reference wants boxes of at least one pixel"
    return pixels


def _box_of(pixels: set[tuple[int, int]]) -> list[float]:
    rows, columns = [row for row, _ in pixels], [column for _, column in pixels]
    return [min(columns), min(rows), max(columns) + 1, max(rows) + 1]


def _shrunk(box: Sequence[float], pixels: set[tuple[int, int]], visible: set[tuple[int, int]]) -> list[float]:
    """A side moves only where the whole strip of pixels along it is hidden."""
    whole, rest = _box_of(pixels), _box_of(visible)
    return [old if before == after else after for old, before, after in zip(box, whole, rest, strict=True)]


def _mask_of(pixels: set[tuple[int, int]], front: list[list[int]]) -> Array:
    mask = np.zeros((len(front), len(front[0])), dtype=bool)
    for row, column in pixels:
        mask[row, column] = True
    return mask


def _inside(point: Sequence[float], front: list[list[int]]) -> list[float]:
    x, y, flag = point
    if flag > 0 and 0 <= x < len(front[0]) and 0 <= y < len(front):
        return [x, y, flag]
    return [0, 0, 0]


def _covered_keypoint(point: Sequence[float], front: list[list[int]], layer: int) -> list[float]:
    x, y, flag = point
    column, row = math.floor(x), math.floor(y)
    covered = 0 <= row < len(front) and 0 <= column < len(front[0]) and front[row][column] > layer
    return [x, y, 1 if covered and flag == 2 else flag]

"""The tables from which :mod:`terse_aug.compositing.render` finds the place of every pixel, made on the CPU with numpy.

Shape letters: L layers, R rows of all rectangles with their margins, S overlaps of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terse_aug.compositing.layers import Frames, Layer
from terse_aug.compositing.patches import Rectangle, inverse_2x2
from terse_aug.transforms import Placement

FIELDS = ("first", "width", "row", "low", "high", "layer", "image", "cell", "base", "plane", "source", "source_plane")
"""Of a row of pixels: its first pixel in the list minus the margin, its length, its number in its layer, the columns
that are no margin, its layer and image; where its first column lies in a map of all images, padded to one size; where
among the values of all images, and how far on the next channel is; likewise in a decoy's source. Then, for each
overlap, the columns that the later layer covers, and how far on in the list they are, plus the margin."""

Table = NDArray[np.int32]


@dataclass(frozen=True)
class PixelList:
    """The pixels of all layers, row after row of their rectangles with margins.

    Attributes:
        rows: int32 ``[len(FIELDS) + 3 S, R]``.
        starts: the first pixel of each layer.
        sizes: (height, width) of each rectangle with its margins.
        count: of all pixels.
        margin: around each rectangle.
    """

    rows: Table
    starts: list[int]
    sizes: list[tuple[int, int]]
    count: int
    margin: int

    @classmethod
    def of(cls, layers: Sequence[Layer], frames: Frames, margin: int) -> PixelList:
        """The list for L layers, ordered by image and in the order of pasting."""
        sizes = [_with_margin(layer.rectangle, margin) for layer in layers]
        heights, widths = (np.array(own, np.int32) for own in zip(*sizes, strict=True))
        starts = np.concatenate([[0], np.cumsum(heights * widths)]).astype(np.int32)
        of_row = np.repeat(np.arange(len(layers), dtype=np.int32), heights)
        row = np.arange(len(of_row), dtype=np.int32) - np.repeat(np.cumsum(heights) - heights, heights)
        width = widths[of_row]
        first = starts[of_row] + row * width
        inner = (row >= margin) & (row < heights[of_row] - margin)
        low, high = np.where(inner, margin, 0), np.where(inner, width - margin, 0)
        values = [first - margin, width, row, low, high, of_row, *_places(layers, frames, of_row, row - margin, margin)]
        values += _overlaps(layers, starts, of_row, row, first, margin)
        return cls(np.stack(values).astype(np.int32), starts[:-1].tolist(), sizes, int(starts[-1]), margin)

    def patches(self, values: Tensor) -> list[Tensor]:
        """For each layer ``[..., h, w]`` over its rectangle, views of values ``[..., count]``."""
        found = []
        for start, (height, width) in zip(self.starts, self.sizes, strict=True):
            own = values[..., start : start + height * width].view(*values.shape[:-1], height, width)
            found.append(own[..., self.margin : height - self.margin, self.margin : width - self.margin])
        return found


def padded_size(frames: Frames) -> tuple[int, int]:
    """Height and width of the smallest map that every image fits into."""
    return max(height for height, _ in frames), max(width for _, width in frames)


def _with_margin(rectangle: Rectangle, margin: int) -> tuple[int, int]:
    return rectangle.bottom - rectangle.top + 2 * margin, rectangle.right - rectangle.left + 2 * margin


def _places(layers: Sequence[Layer], frames: Frames, of_row: Table, y: Table, margin: int) -> list[Table]:
    """Where rows of pixels lie in their images and, of decoys, in their sources; y from the top of the rectangle."""
    areas = [height * width for height, width in frames]
    offsets = np.concatenate([[0], 3 * np.cumsum(areas)])
    rows, columns = padded_size(frames)
    table = []
    for layer in layers:
        image, top, left = layer.image, layer.rectangle.top, layer.rectangle.left
        cell = image * rows * columns + top * columns + left - margin
        values = [image, cell, offsets[image] + top * frames[image][1] + left - margin, frames[image][1], areas[image]]
        if layer.source is None:
            table.append([*values, 0, 0, 0])
            continue
        image, place = layer.source
        start = offsets[image] + place.top * frames[image][1] + place.left - margin
        table.append([*values, start, frames[image][1], areas[image]])
    image, cell, base, stride, plane, source, source_stride, source_plane = np.array(table, np.int64).T[:, of_row]
    return [image, cell + y * columns, base + y * stride, plane, source + y * source_stride, source_plane]


def _overlaps(
    layers: Sequence[Layer], starts: Table, of_row: Table, row: Table, first: Table, margin: int
) -> list[Table]:
    """Three values for each overlap, see ``FIELDS``; as many overlaps as the layer with the most has."""
    later = [
        [after for after in range(number + 1, len(layers)) if _touch(layer, layers[after])]
        for number, layer in enumerate(layers)
    ]
    edges = np.array([[r.left, r.top, r.right, r.bottom] for r in (layer.rectangle for layer in layers)], np.int32)
    left, top = edges[of_row, 0] - margin, edges[of_row, 1] - margin
    values: list[Table] = []
    for slot in range(max(map(len, later))):
        other = np.array([own[slot] if slot < len(own) else -1 for own in later], np.int32)[of_row]
        other_left, other_top, other_right, other_bottom = edges[other].T
        y = top + row
        covered = (other >= 0) & (y >= other_top) & (y < other_bottom)
        other_width = other_right - other_left + 2 * margin
        there = starts[other] + (y - other_top + margin) * other_width + left - other_left + margin
        distance = there - first + margin  # from the pixel's number, which begins at minus the margin
        values += [np.where(covered, other_left - left, 0), np.where(covered, other_right - left, 0), distance]
    return values


def _touch(first: Layer, second: Layer) -> bool:
    a, b = first.rectangle, second.rectangle
    return (
        first.image == second.image and a.left < b.right and b.left < a.right and a.top < b.bottom and b.top < a.bottom
    )


def atlas(foregrounds: Sequence[NDArray[np.uint8]], bgr: bool) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    """All foregrounds in one image, each in a frame of transparent pixels in the colour of its border.

    The frame lets a bilinear edge fade in alpha without fading to black in colour.

    Args:
        foregrounds: uint8 ``[h, w, 4]``, RGBA.
        bgr: whether to exchange red and blue.

    Returns:
        uint8 ``[height, width, 4]``, and x and y of each frame.
    """
    sizes = [(own.shape[0] + 2, own.shape[1] + 2) for own in foregrounds]
    width = max(max(own[1] for own in sizes), math.ceil(math.sqrt(1.2 * sum(h * w for h, w in sizes))))
    corners: dict[int, tuple[int, int]] = {}
    x = y = shelf = 0
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number][0]):
        if x + sizes[number][1] > width:
            x, y, shelf = 0, y + shelf, 0
        corners[number] = (x, y)
        x, shelf = x + sizes[number][1], max(shelf, sizes[number][0])
    image = np.zeros((y + shelf, width, 4), np.uint8)
    for number, foreground in enumerate(foregrounds):
        (left, top), (own_height, own_width) = corners[number], sizes[number]
        place = image[top : top + own_height, left : left + own_width]
        place[:] = cv2.copyMakeBorder(foreground, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
        for edge in (place[0], place[-1], place[:, 0], place[:, -1]):
            edge[:, 3] = 0
    return (image[:, :, [2, 1, 0, 3]] if bgr else image), [corners[number] for number in range(len(sizes))]


class SamplingLines:
    """Where the pixels of each layer sample the atlas, in grid_sample's coordinates.

    The position of a pixel is linear in its row and column. The values of a layer are its first pixel's position, the
    steps to the next column and row, and the limits within its own part of the atlas: x before y, 10 in all.

    Args:
        layers: L layers.
        corners: of their frames in the atlas.
        atlas_size: height and width.
        margin: around each rectangle.
    """

    def __init__(
        self, layers: Sequence[Layer], corners: Sequence[tuple[int, int]], atlas_size: Sequence[int], margin: int
    ) -> None:
        dtype = torch.from_numpy(layers[0].matrix).dtype
        to_unit = torch.tensor([2 / atlas_size[1], 2 / atlas_size[0]], dtype=dtype)
        offsets = torch.tensor(corners, dtype=dtype)
        sizes = torch.tensor([own.reduced.shape[1::-1] for own in layers], dtype=dtype)
        pixel = torch.tensor([[own.rectangle.left, own.rectangle.top] for own in layers], dtype=dtype)
        self._pixel, self._shift = pixel - margin + 0.5, sizes / 2 + offsets + 1
        self._to_unit = to_unit.expand(len(layers), 2)
        limits = torch.cat([offsets + 0.5, offsets + sizes + 1.5], 1) * to_unit.repeat(2) - 1
        self._limits = limits

    def known(self, layers: Sequence[Layer]) -> Tensor:
        """Float ``[10, L]`` for the places that layers have."""
        reductions = torch.tensor([layer.reduction for layer in layers], dtype=self._pixel.dtype)
        matrix = torch.from_numpy(np.stack([layer.matrix for layer in layers])) * reductions[:, None]
        center = torch.from_numpy(np.stack([layer.center for layer in layers]))
        return _lines(matrix, center, self._pixel, self._shift, self._to_unit, self._limits)

    def inputs(self, layers: Sequence[Layer]) -> list[Tensor]:
        """What :meth:`with_graph` needs, on the CPU: rows of lines and placement, constants; empty without pastes."""
        pastes = [number for number, layer in enumerate(layers) if layer.kind == "paste"]
        rows = torch.tensor([layers[number].row for number in pastes])
        reductions = torch.tensor([layers[number].reduction for number in pastes], dtype=self._pixel.dtype)
        own = (self._pixel, self._shift, self._to_unit, self._limits)
        return [torch.tensor(pastes), rows, reductions, *(values[pastes] for values in own)] if pastes else []

    @staticmethod
    def with_graph(lines: Tensor, placement: Placement, inputs: Sequence[Tensor]) -> Tensor:
        """The lines, float ``[10, L]``, with a graph in those of the pastes.

        Args:
            lines: of :meth:`known`.
            placement: of the pastes.
            inputs: on its device.
        """
        if not inputs:
            return lines
        pastes, rows, reductions, *own = inputs
        matrix, center = (
            placement.matrix.index_select(0, rows) * reductions[:, None],
            placement.center.index_select(0, rows),
        )
        return lines.index_copy(1, pastes, _lines(matrix, center, *own))


def _lines(matrix: Tensor, center: Tensor, pixel: Tensor, shift: Tensor, to_unit: Tensor, limits: Tensor) -> Tensor:
    inverse = inverse_2x2(matrix)
    start = ((inverse @ (pixel - center)[:, :, None])[:, :, 0] + shift) * to_unit - 1
    steps = inverse * to_unit[:, :, None]
    return torch.cat([start, steps[:, :, 0], steps[:, :, 1], limits], 1).t()

"""The measures of every foreground that are held while a bank is read: a fixed number of bytes."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.analysis.class_shapes import unit_mask
from terse_aug.bank.analysis.near_duplicates import appearance_of
from terse_aug.bank.analysis.outline import (
    even_points,
    outline_length,
    parts_and_holes,
    shape_complexity,
    silhouette,
    simplified,
    unit_outline,
)
from terse_aug.structures.foreground import Foreground

_POINTS = 128
_MASK_SIDE = 32


class ForegroundMeasures:
    """Measures of ``count`` foregrounds, in order; about 0.3 kB each, and 1.5 kB more for those in ``drawn``.

    Attributes:
        corners: int32 ``[n]``, see :func:`shape_complexity`.
        length: float32 ``[n]``, see :func:`outline_length`.
        fill: float32 ``[n]``, pixels of the object over those of its bounding box, in (0, 1].
        parts, holes: int32 ``[n]``, see :func:`parts_and_holes`.
        pixel_hashes: uint64 ``[n]``, equal for equal pixels.
        bits, thumbnails: see :func:`appearance_of`.
        points: float16 ``[m, 128, 2]``, along the outlines of those in ``drawn``.
        masks: uint8 ``[m, 32, 32]``, of those in ``drawn``.
    """

    def __init__(self, count: int, drawn: NDArray[np.int64]):
        self.corners = np.zeros(count, np.int32)
        self.length = np.zeros(count, np.float32)
        self.fill = np.zeros(count, np.float32)
        self.parts = np.zeros(count, np.int32)
        self.holes = np.zeros(count, np.int32)
        self.pixel_hashes = np.zeros(count, np.uint64)
        self.bits = np.zeros(count, np.uint64)
        self.thumbnails = np.zeros((count, 8, 8, 4), np.uint8)
        self.points = np.zeros((len(drawn), _POINTS, 2), np.float16)
        self.masks = np.zeros((len(drawn), _MASK_SIDE, _MASK_SIDE), np.uint8)
        self._rows = {int(position): row for row, position in enumerate(drawn)}

    def add(self, position: int, foreground: Foreground) -> None:
        """Measure one foreground."""
        rgba = foreground.rgba
        mask = silhouette(rgba[:, :, 3])
        outline = unit_outline(mask)
        simple = simplified(outline)
        appearance = appearance_of(rgba)
        self.corners[position] = shape_complexity(simple)
        self.length[position] = outline_length(simple)
        self.fill[position] = np.count_nonzero(mask) / mask.size
        self.parts[position], self.holes[position] = parts_and_holes(mask)
        self.bits[position], self.thumbnails[position] = appearance.bits, appearance.thumbnail
        digest = hashlib.blake2b(repr(rgba.shape).encode(), digest_size=8)
        digest.update(rgba.data)
        self.pixel_hashes[position] = int.from_bytes(digest.digest(), "little")
        if (row := self._rows.get(position)) is not None:
            self.points[row] = even_points(outline, _POINTS)
            self.masks[row] = unit_mask(mask, _MASK_SIDE)

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of ``points`` and ``masks`` of foregrounds in ``drawn``."""
        return np.array([self._rows[position] for position in positions.tolist()], np.int64)

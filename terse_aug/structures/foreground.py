"""The foreground that is pasted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from terse_aug.structures.convex_hull import convex_outline

MAX_SIDE = 16384
"""Largest side of a foreground in pixels: its record then stays below LMDB's limit of 4 GiB a value."""


@dataclass(frozen=True)
class Foreground:
    """An object with its alpha mask.

    Attributes:
        rgba: uint8 ``[h, w, 4]``, RGB and alpha, straight (not premultiplied), the tight crop of ``alpha > 0``.
        label: category id of the object, as in the source data set; a key of the bank's ``categories``.
        source: where it comes from, for a person to find it again (file name and annotation id).
        relative_size: the larger side of the crop divided by ``sqrt(height * width)`` of its source image, so in
            (0, ~2]. At transform scale 1 the foreground covers the same fraction of a background as it did of its
            source image.
        keypoints: float32 ``[k, 3]``, x and y in pixels of the crop and the COCO visibility flag 0, 1 or 2;
            ``None`` where the source has none.
        center: x and y of the middle of the crop in its source image, as fractions of that image's width and
            height, in [0, 1]; ``None`` where unknown (RGBA files, banks built before it was stored).
    """

    rgba: NDArray[np.uint8]
    label: int
    source: str
    relative_size: float
    keypoints: NDArray[np.float32] | None = None
    center: tuple[float, float] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the crop, pixels."""
        return self.rgba.shape[1], self.rgba.shape[0]

    @cached_property
    def outline(self) -> NDArray[np.float32]:
        """float32 ``[n, 2]``, the corners of the convex hull of all pixels with alpha above 0, x and y in pixels from
        the middle of the crop."""
        return convex_outline(self.rgba[:, :, 3])

    def relabelled(self, label: int) -> Foreground:
        """The same with another label, and with its outline if that was computed."""
        other = replace(self, label=label)
        if "outline" in self.__dict__:
            other.cache_outline(self.outline)
        return other

    def cache_outline(self, outline: NDArray[np.float32]) -> None:
        """Store the outline of an equal foreground: computing it takes longer than reading a foreground."""
        self.__dict__["outline"] = outline

"""A cache of thumbnails and outlines, so that a policy can choose among many foregrounds without reading each again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank import Foreground, ForegroundBank
from terse_aug.compositing.geometry import ForegroundLike

THUMBNAIL_SIDE = 32
"""Side of the thumbnails that a policy uses, pixels."""
FOREGROUND_FILL = 0.9
"""Fraction of its thumbnail that the longer side of a foreground fills."""


@dataclass(frozen=True)
class Thumbnail:
    """What a policy needs to know of a foreground.

    Attributes:
        label: its class.
        relative_size: see :class:`terse_aug.bank.Foreground`.
        size: its width and height, pixels.
        outline: the corners of its convex hull.
        small: uint8 ``[h, w, 4]``, the longer side filling ``FOREGROUND_FILL`` of ``THUMBNAIL_SIDE``.
    """

    label: int
    relative_size: float
    size: tuple[int, int]
    outline: NDArray[np.float32]
    small: NDArray[np.uint8]


class ForegroundCache:
    """Reads a bank's foregrounds and keeps their thumbnails and outlines.

    Args:
        bank: the foregrounds.
        capacity: foregrounds whose thumbnail and outline are kept, about 4 kB each; the least recently used go first.
    """

    def __init__(self, bank: ForegroundBank, capacity: int = 8192) -> None:
        self._bank, self._capacity = bank, capacity
        self._thumbnails: OrderedDict[int, Thumbnail] = OrderedDict()
        self._outlines: OrderedDict[int, NDArray[np.float32]] = OrderedDict()
        self._decoded: dict[int, Foreground] = {}

    def __len__(self) -> int:
        return len(self._bank)

    @property
    def keypoint_count(self) -> int:
        """Keypoints of each foreground; 0 without."""
        return len(self._bank.keypoint_names)

    @cached_property
    def bank_identity(self) -> str:
        """See :attr:`terse_aug.ForegroundBank.identity`; computed once, because a large selection takes its time."""
        return self._bank.identity

    def clear_decoded(self) -> None:
        """Release the decoded foregrounds; thumbnails and outlines stay."""
        self._decoded.clear()

    def put_decoded(self, foregrounds: Mapping[int, Foreground]) -> None:
        """Take foregrounds that a worker has decoded; they get the labels of this bank."""
        for index, foreground in foregrounds.items():
            label = int(self._bank.labels[index])
            self._decoded[index] = foreground if foreground.label == label else foreground.relabelled(label)

    def thumbnail(self, index: int) -> Thumbnail:
        """The thumbnail of a foreground."""
        thumbnail = self._thumbnails.get(index)
        if thumbnail is None:
            whole = self._decoded[index] = self.foreground(index)
            small = small_image(whole)
            thumbnail = Thumbnail(whole.label, whole.relative_size, whole.size, whole.outline, small)
        return _put(self._thumbnails, index, thumbnail, self._capacity)

    def foreground(self, index: int) -> Foreground:
        """The whole foreground, with its outline."""
        if index in self._decoded:
            return self._decoded[index]
        foreground = self._bank[index]
        if index in self._outlines:
            foreground.cache_outline(self._outlines[index])
        _put(self._outlines, index, foreground.outline, self._capacity)
        return foreground

    def __getstate__(self) -> dict[str, Any]:
        return {"bank": self._bank, "capacity": self._capacity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ForegroundCache.__init__(self, state["bank"], state["capacity"])


Value = TypeVar("Value")


def _put(store: OrderedDict[int, Value], index: int, value: Value, capacity: int) -> Value:
    """Put a value in as the most recently used."""
    store[index] = value
    store.move_to_end(index)
    if len(store) > capacity:
        store.popitem(last=False)
    return value


def small_image(foreground: ForegroundLike) -> NDArray[np.uint8]:
    """A foreground at thumbnail size, see :class:`Thumbnail`."""
    if isinstance(foreground, Thumbnail):
        return foreground.small
    assert isinstance(foreground, Foreground)
    width, height = foreground.size
    factor = FOREGROUND_FILL * THUMBNAIL_SIDE / max(height, width)
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(foreground.rgba, size, interpolation=method), dtype=np.uint8).reshape(*size[::-1], 4)

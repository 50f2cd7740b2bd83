"""What cut-outs look like, small: enough to choose among many without decoding each at its full size every time.

Imports numpy and OpenCV.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank import Foreground, ForegroundBank
from terse_aug.policies._base import FOREGROUND_FILL, THUMBNAIL


class Shown(Protocol):
    """What a policy's scene is made from: a whole cut-out, or its look."""

    @property
    def label(self) -> int:
        """Its class."""

    @property
    def extent(self) -> float:
        """Its natural size, see :class:`terse_aug.bank.Foreground`."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""

    @property
    def outline(self) -> NDArray[np.float32]:
        """Corners of its convex hull, likewise."""


@dataclass(frozen=True)
class Look:
    """The look of a cut-out.

    Attributes:
        label: its class.
        extent: its natural size.
        size: its width and height, pixels.
        outline: the corners of its convex hull.
        small: uint8 ``[h, w, 4]``, the larger side filling ``FOREGROUND_FILL`` of ``THUMBNAIL``.
    """

    label: int
    extent: float
    size: tuple[int, int]
    outline: NDArray[np.float32]
    small: NDArray[np.uint8]


class Looks:
    """The looks of a bank's cut-outs, made when first asked for; of some thousand the last are kept.

    Args:
        bank: the cut-outs.
        capacity: looks that are kept, 4 kB each.
    """

    def __init__(self, bank: ForegroundBank, capacity: int = 8192) -> None:
        self._bank, self._capacity = bank, capacity
        self._kept: OrderedDict[int, Look] = OrderedDict()

    def __getitem__(self, index: int) -> Look:
        look = self._kept.pop(index, None)
        if look is None:
            foreground = self._bank[index]
            small = small_picture(foreground)
            look = Look(foreground.label, foreground.extent, foreground.size, foreground.outline, small)
        self._kept[index] = look
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return look


def small_picture(shown: Shown) -> NDArray[np.uint8]:
    """A cut-out reduced (or enlarged) to the size of a policy's pictures, see :class:`Look`."""
    if isinstance(shown, Look):
        return shown.small
    assert isinstance(shown, Foreground)
    width, height = shown.size
    factor = FOREGROUND_FILL * THUMBNAIL / max(height, width)
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    small = cv2.resize(shown.rgba, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    return np.asarray(small, dtype=np.uint8).reshape(size[1], size[0], 4)

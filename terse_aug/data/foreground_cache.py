"""What is known of a bank's cut-outs, kept: many can be chosen among without reading each again at its full size.

Imports numpy and OpenCV.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank import Foreground, ForegroundBank
from terse_aug.policies.base import FOREGROUND_FILL, THUMBNAIL


class ForegroundLike(Protocol):
    """What a policy's scene is made from: a whole cut-out, or its look."""

    @property
    def label(self) -> int:
        """Its class."""

    @property
    def relative_size(self) -> float:
        """Its natural size, see :class:`terse_aug.bank.Foreground`."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""

    @property
    def outline(self) -> NDArray[np.float32]:
        """Corners of its convex hull, likewise."""


@dataclass(frozen=True)
class Thumbnail:
    """The look of a cut-out.

    Attributes:
        label: its class.
        extent: its natural size.
        size: its width and height, pixels.
        outline: the corners of its convex hull.
        small: uint8 ``[h, w, 4]``, the larger side filling ``FOREGROUND_FILL`` of ``THUMBNAIL``.
    """

    label: int
    relative_size: float
    size: tuple[int, int]
    outline: NDArray[np.float32]
    small: NDArray[np.uint8]


class ForegroundCache:
    """A bank's cut-outs, of which looks and outlines are kept once they have been found.

    Uniform draws from a bank of more cut-outs than are kept find only some of them here, the others are read.

    Args:
        bank: the cut-outs.
        capacity: cut-outs whose look and outline are kept, about 4 kB each; the least recently used are forgotten.
    """

    def __init__(self, bank: ForegroundBank, capacity: int = 8192) -> None:
        self._bank, self._capacity = bank, capacity
        self._looks: OrderedDict[int, Thumbnail] = OrderedDict()
        self._outlines: OrderedDict[int, NDArray[np.float32]] = OrderedDict()
        self._read: dict[int, Foreground] = {}

    def __len__(self) -> int:
        return len(self._bank)

    @cached_property
    def bank_identity(self) -> str:
        """See :attr:`terse_aug.ForegroundBank.identity`; made once, as a large selection takes its time."""
        return self._bank.identity

    def put_back(self) -> None:
        """Forget the cut-outs that looks were made from; they are at hand until then."""
        self._read.clear()

    def lay_out(self, foregrounds: Mapping[int, Foreground]) -> None:
        """Have cut-outs at hand that were read elsewhere; their labels are the bank's here."""
        for index, foreground in foregrounds.items():
            label = int(self._bank.labels[index])
            self._read[index] = foreground if foreground.label == label else foreground.relabelled(label)

    def look(self, index: int) -> Thumbnail:
        """The look of a cut-out."""
        look = self._looks.get(index)
        if look is None:
            whole = self._read[index] = self.foreground(index)
            look = Thumbnail(whole.label, whole.relative_size, whole.size, whole.outline, small_picture(whole))
        return _kept(self._looks, index, look, self._capacity)

    def foreground(self, index: int) -> Foreground:
        """The whole cut-out, with its outline."""
        if index in self._read:
            return self._read[index]
        foreground = self._bank[index]
        if index in self._outlines:
            foreground.cache_outline(self._outlines[index])
        _kept(self._outlines, index, foreground.outline, self._capacity)
        return foreground

    def __getstate__(self) -> dict[str, Any]:
        return {"bank": self._bank, "capacity": self._capacity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ForegroundCache.__init__(self, state["bank"], state["capacity"])


Kept = TypeVar("Kept")


def _kept(store: OrderedDict[int, Kept], index: int, value: Kept, capacity: int) -> Kept:
    """Put a value in, as the last that was used."""
    store[index] = value
    store.move_to_end(index)
    if len(store) > capacity:
        store.popitem(last=False)
    return value


def small_picture(shown: ForegroundLike) -> NDArray[np.uint8]:
    """A cut-out reduced (or enlarged) to the size of a policy's pictures, see :class:`Thumbnail`."""
    if isinstance(shown, Thumbnail):
        return shown.small
    assert isinstance(shown, Foreground)
    width, height = shown.size
    factor = FOREGROUND_FILL * THUMBNAIL / max(height, width)
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    small = cv2.resize(shown.rgba, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    return np.asarray(small, dtype=np.uint8).reshape(size[1], size[0], 4)

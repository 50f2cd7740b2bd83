"""The index arrays of a bank that is being written."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence

import numpy as np

from terse_aug.bank.storage.record import CENTERS_DTYPE, CENTERS_KEY, INDEX_DTYPES
from terse_aug.structures.foreground import Foreground


class Columns:
    """What a bank's index has of each foreground, in order.

    Attributes:
        labels: category ids.
        relative_sizes: see :class:`Foreground`.
        sizes: heights and widths in pixels, two for each foreground.
        centers: x and y, two for each foreground, NaN where unknown.
    """

    def __init__(self) -> None:
        self.labels, self.relative_sizes = array("q"), array("f")
        self.sizes, self.centers = array("i"), array("f")

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, foreground: Foreground) -> None:
        """Append one foreground."""
        self.labels.append(foreground.label)
        self.relative_sizes.append(foreground.relative_size)
        self.sizes.extend(foreground.rgba.shape[:2])
        self.centers.extend(foreground.center or (math.nan, math.nan))

    def extend(self, other: Columns) -> None:
        """Append those of others."""
        for name, values in vars(self).items():
            values.extend(getattr(other, name))

    def index(self) -> dict[bytes, bytes]:
        """The index arrays as they are stored; centers only where one is known."""
        columns = dict(zip(INDEX_DTYPES, (self.labels, self.relative_sizes, self.sizes), strict=True))
        stored = {key: np.asarray(columns[key]).astype(dtype) for key, dtype in INDEX_DTYPES.items()}
        centers = np.asarray(self.centers).astype(CENTERS_DTYPE)
        if not np.isnan(centers).all():
            stored[CENTERS_KEY] = centers
        return {key: values.tobytes() for key, values in stored.items()}

    def as_lists(self) -> dict[str, list[float]]:
        """For JSON."""
        return {name: values.tolist() for name, values in vars(self).items()}

    @classmethod
    def from_lists(cls, lists: Mapping[str, Sequence[float]]) -> Columns:
        """The inverse of :meth:`as_lists`."""
        columns = cls()
        for name, values in vars(columns).items():
            values.extend(lists[name])
        return columns

"""The index arrays of a bank that is being written. Imports numpy."""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Mapping

import numpy as np

from terse_aug.bank.storage.record import CENTERS_DTYPE, CENTERS_KEY, INDEX_DTYPES
from terse_aug.structures.foreground import Foreground

_TYPES = {"labels": "q", "extents": "f", "sizes": "i", "centers": "f"}
_PER_CUT_OUT = {"labels": 1, "extents": 1, "sizes": 2, "centers": 2}


class Columns:
    """What a bank's index has of each cut-out, in their order.

    Attributes:
        labels: category ids.
        extents: natural sizes.
        sizes: heights and widths in px, two for each cut-out.
        centers: x and y, two for each, NaN where they are not known.
    """

    def __init__(self) -> None:
        self.labels, self.extents = array("q"), array("f")
        self.sizes, self.centers = array("i"), array("f")

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, foreground: Foreground) -> None:
        """Append one cut-out."""
        self.labels.append(foreground.label)
        self.extents.append(foreground.relative_size)
        self.sizes.extend(foreground.rgba.shape[:2])
        self.centers.extend(foreground.center or (math.nan, math.nan))

    def extend(self, other: Columns) -> None:
        """Append those of others."""
        for name in _TYPES:
            getattr(self, name).extend(getattr(other, name))

    def index(self) -> dict[bytes, bytes]:
        """The index arrays as they are stored; centers only where one is known."""
        stored = {key: np.asarray(getattr(self, key.decode())).astype(dtype) for key, dtype in INDEX_DTYPES.items()}
        centers = np.asarray(self.centers).astype(CENTERS_DTYPE)
        if not np.isnan(centers).all():
            stored[CENTERS_KEY] = centers
        return {key: values.tobytes() for key, values in stored.items()}

    def as_text(self) -> dict[str, str]:
        """For JSON; of the machine's own byte order."""
        return {name: base64.b64encode(getattr(self, name).tobytes()).decode() for name in _TYPES}

    @classmethod
    def of_text(cls, text: Mapping[str, str]) -> Columns:
        """What :meth:`as_text` gave.

        Raises:
            ValueError: it is of no columns.
        """
        columns = cls()
        for name in _TYPES:
            getattr(columns, name).frombytes(base64.b64decode(text[name], validate=True))
        if any(len(getattr(columns, name)) != each * len(columns) for name, each in _PER_CUT_OUT.items()):
            raise ValueError("columns of different lengths")
        return columns

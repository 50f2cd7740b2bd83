"""The columns of a transform, and what they stand for: those of the affine map, then those that are switched on.

Shape letters: P columns, n transforms.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from terse_aug.transforms.affine import PARAMETERS, TransformRanges
from terse_aug.transforms.arrays import Array, library_of
from terse_aug.transforms.blends import blend_number
from terse_aug.transforms.photometric import PHOTOMETRIC, Photometric

EVERY_COLUMN = (*PARAMETERS, *PHOTOMETRIC, "blend")
"""Names of all columns that a transform may have."""


def saved_columns(columns: Sequence[str]) -> Tensor:
    """Names of columns as a tensor, uint8, for a state."""
    return torch.tensor(list(",".join(columns).encode()), dtype=torch.uint8)


def loaded_columns(saved: Tensor | None) -> tuple[str, ...]:
    """The names in a tensor of :func:`saved_columns`; of a state that has none, those of the affine map."""
    return PARAMETERS if saved is None else tuple(bytes(saved.tolist()).decode().split(","))


class TransformColumns:
    """Base of the settings that transforms depend on."""

    ranges: TransformRanges
    photometric: Photometric
    blends: tuple[str, ...]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of a transform, in order: ``PARAMETERS``, then those that are switched on."""
        return PARAMETERS + self.photometric.columns + (("blend",) if len(self.blends) > 1 else ())

    def physical(self, unit: Array) -> Array:
        """Map points of the unit cube, float ``[..., P]`` in [0, 1], to the values of :attr:`columns`.

        The value of ``blend`` is its number in ``blends``, equally likely each.
        """
        values = [self.ranges.physical(unit), self.photometric.physical(unit[..., self._photometric_columns])]
        if len(self.blends) > 1:
            values.append(blend_number(unit[..., -1:], len(self.blends)))
        return library_of(unit).concatenate(values, -1)

    def photometric_values(self, unit: Array) -> Array | None:
        """The values of all photometric parameters, see :meth:`Photometric.every`; ``None`` if none is drawn.

        Args:
            unit: float ``[..., P]`` in [0, 1].
        """
        return self.photometric.every(unit[..., self._photometric_columns]) if self.photometric.columns else None

    def blends_of(self, unit: Array) -> list[str]:
        """The blend of each of some transforms, float ``[n, P]`` in [0, 1]."""
        if len(self.blends) == 1:
            return [self.blends[0]] * len(unit)
        return [self.blends[int(number)] for number in blend_number(unit[:, -1], len(self.blends)).tolist()]

    @property
    def _photometric_columns(self) -> slice:
        return slice(len(PARAMETERS), len(PARAMETERS) + len(self.photometric.columns))

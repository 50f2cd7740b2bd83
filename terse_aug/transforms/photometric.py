"""The photometric part of a paste's transform: how its colors are changed before it is blended in.

Everything here takes tensors, with or without a graph, or NumPy arrays, and returns the same.
Shape letters: K photometric parameters that are drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from terse_aug.transforms.arrays import Array, Ranges, arrays_like, constants_like, library_of, value_range

PHOTOMETRIC = ("brightness", "contrast", "saturation", "hue", "blur", "noise")
"""Names of the photometric parameters, in order."""

_NEUTRAL = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "blur": 0.0, "noise": 0.0}
_COLOR = len(PHOTOMETRIC) - 2
"""The first so many are linear in the color."""
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Photometric(Ranges):
    """The allowed range ``(low, high)`` of every photometric parameter of a paste, a decoy or a distractor.

    A parameter whose range is its neutral value alone, as by default, is not drawn: transforms have no column for it.

    Raises:
        ValueError: see :class:`terse_aug.transforms.arrays.Ranges`.
    """

    brightness: tuple[float, float] = value_range(1.0, 1.0, "factor of the paste's colors; neutral is 1", 0.0)
    contrast: tuple[float, float] = value_range(
        1.0, 1.0, "factor of the difference of the paste's colors from mid-gray; neutral is 1", 0.0
    )
    saturation: tuple[float, float] = value_range(
        1.0, 1.0, "factor of the difference of the paste's colors from gray of the same luma; neutral is 1", 0.0
    )
    hue: tuple[float, float] = value_range(
        0.0, 0.0, "degrees by which the paste's colors are turned about the gray axis; neutral is 0", -180.0, 180.0
    )
    blur: tuple[float, float] = value_range(
        0.0,
        0.0,
        "how far a paste that is sharper than its background is blurred towards the background's sharpness, by a "
        "Gaussian of at most 2 pixels; neutral is 0, 1 is as blurred",
        0.0,
        1.0,
    )
    noise: tuple[float, float] = value_range(
        0.0, 0.0, "standard deviation of Gaussian noise on the paste, as a fraction of white; neutral is 0", 0.0, 1.0
    )

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the parameters that are drawn, in order."""
        return tuple(name for name in PHOTOMETRIC if getattr(self, name) != (_NEUTRAL[name], _NEUTRAL[name]))

    @property
    def changes_color(self) -> bool:
        """Whether a parameter is drawn for which :func:`color_matrix` stands."""
        return any(name in self.columns for name in PHOTOMETRIC[:_COLOR])

    def physical(self, unit: Array) -> Array:
        """Map points of the unit cube to parameter values.

        Args:
            unit: float ``[..., K]`` in [0, 1].

        Returns:
            float ``[..., K]`` in the units above, differentiable in ``unit``.
        """
        ends = self.limits(self.columns)
        low, length = arrays_like([ends[0], ends[1] - ends[0]], unit)
        return low + unit * length

    def every(self, unit: Array) -> Array:
        """The values of all parameters, float ``[..., len(PHOTOMETRIC)]``; arguments as of :meth:`physical`."""
        library, values = library_of(unit), self.physical(unit)
        columns = [
            values[..., self.columns.index(name)]
            if name in self.columns
            else library.full_like(unit[..., 0], _NEUTRAL[name])
            for name in PHOTOMETRIC
        ]
        return library.stack(columns, -1)


def color_matrix(values: Array, bgr: bool = False) -> Array:
    """The map of a paste's colors, ``matrix[:, :3] @ color + matrix[:, 3]`` on levels 0 to 255.

    First brightness, then contrast, saturation and hue, a rotation about the gray axis: all of them are linear, so
    that it does not matter whether the object is warped before or after.

    Args:
        values: float ``[..., len(PHOTOMETRIC)]``, see :meth:`Photometric.every`.
        bgr: whether the first channel is blue.

    Returns:
        float ``[..., 3, 4]``, differentiable in ``values``.
    """
    library = library_of(values)
    one, luma, turn = constants_like(_constants(bgr), values)
    brightness, contrast, saturation, hue = (values[..., column, None, None] for column in range(_COLOR))
    angle = hue * (math.pi / 180)
    cosine, sine = library.cos(angle), library.sin(angle)
    rotation = cosine * one + (1 - cosine) / 3 + sine * turn
    saturated = saturation * one + (1 - saturation) * luma
    offset = library.zeros_like(saturated[..., :1]) + (1 - contrast) * 127.5
    # Gray stays gray under both matrices, so that the offset passes through them unchanged.
    return library.concatenate([brightness * contrast * (rotation @ saturated), offset], -1)


@lru_cache
def _constants(bgr: bool) -> NDArray[np.float64]:
    """The unit matrix, the luma in three rows, and the generator of rotations about the gray axis, ``[3, 3, 3]``."""
    turn = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    order = slice(None, None, -1 if bgr else 1)
    return np.ascontiguousarray(np.stack([np.eye(3), np.array([_LUMA] * 3), turn])[:, order, order])

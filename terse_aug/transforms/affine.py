"""The affine part of a paste's transform: its parameters, their allowed ranges, and the map they stand for.

Everything here takes tensors, with or without a graph, or NumPy arrays, and returns the same.

Shape letters: M pastes, P transform parameters, of which those of ``PARAMETERS`` come first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from functools import cached_property
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from terse_aug.transforms.arrays import Array, Ranges, arrays_like, library_of, value_range

PARAMETERS = ("rotation", "shear", "scale", "scale_x", "scale_y", "translate_x", "translate_y")
"""Names of the first columns of a transform, in order: those of the affine map."""

_LOGARITHMIC = slice(PARAMETERS.index("scale"), PARAMETERS.index("scale_y") + 1)
"""The columns whose ranges are spaced logarithmically."""


@dataclass(frozen=True)
class TransformRanges(Ranges):
    """The allowed range ``(low, high)`` of every transform parameter.

    A policy proposes points of the unit cube, which a range maps to units. ``low == high`` fixes a parameter.

    Raises:
        ValueError: see :class:`terse_aug.transforms.arrays.Ranges`; or ``keep_inside`` is no fraction.
    """

    rotation: tuple[float, float] = value_range(-10.0, 10.0, "degrees, positive is clockwise on the screen")
    shear: tuple[float, float] = value_range(-0.05, 0.05, "tangent of the shear angle along x")
    scale: tuple[float, float] = value_range(
        0.5, 1.5, "size relative to the fraction that the object covered of its own image; log-uniform"
    )
    scale_x: tuple[float, float] = value_range(
        0.9, 1.1, "additional factor along the foreground's own x axis; log-uniform"
    )
    scale_y: tuple[float, float] = value_range(
        0.9, 1.1, "additional factor along the foreground's own y axis; log-uniform"
    )
    translate_x: tuple[float, float] = value_range(
        0.0,
        1.0,
        "center of the object's bounding box, 0 leftmost, 1 rightmost within what keep_inside allows",
        0.0,
        1.0,
    )
    translate_y: tuple[float, float] = value_range(0.0, 1.0, "likewise from top to bottom", 0.0, 1.0)
    keep_inside: float = field(
        default=0.75,
        metadata={
            "help": "fraction of half the object's box that has to stay inside the image: 1 all of it, 0 its center"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in PARAMETERS[_LOGARITHMIC]:
            if getattr(self, name)[0] <= 0:
                raise ValueError(f"{name}: a scale has to be above 0, got {getattr(self, name)}")
        if not (isinstance(self.keep_inside, Real) and 0 <= self.keep_inside <= 1):
            raise ValueError(f"keep_inside: expected a fraction within [0, 1], got {self.keep_inside}")

    @cached_property
    def _limits(self) -> NDArray[np.float64]:
        """``[2, P]``: low ends and lengths of the ranges, of the logarithms for the scales."""
        low, high = self.limits(PARAMETERS)
        for ends in (low, high):
            ends[_LOGARITHMIC] = np.log(ends[_LOGARITHMIC])
        return np.stack([low, high - low])

    def physical(self, unit: Array) -> Array:
        """Map points of the unit cube to parameter values.

        Args:
            unit: float ``[..., P]`` in [0, 1]; its first columns are used.

        Returns:
            float ``[..., len(PARAMETERS)]`` in the units above, differentiable in ``unit``; uniform points give uniform
            values (uniform logarithms for the scales).
        """
        ((low, length),) = arrays_like([self._limits], unit)
        values = low + unit[..., : len(PARAMETERS)] * length
        before, after, library = slice(0, _LOGARITHMIC.start), slice(_LOGARITHMIC.stop, None), library_of(unit)
        scales = library.exp(values[..., _LOGARITHMIC])
        return library.concatenate([values[..., before], scales, values[..., after]], -1)


@dataclass(frozen=True)
class PasteGeometry:
    """Sizes that a placement depends on besides the transform parameters; all arrays have one row per paste.

    Attributes:
        foreground_sizes: float ``[M, 2]``, width and height of the foreground in its own pixels.
        frame_sizes: float ``[M, 2]``, width and height of the background in pixels.
        base_scale: float ``[M]``, background pixels per foreground pixel at scale 1.
        flip: float ``[M]``, -1 where the foreground is flipped left to right, else 1.
        outlines: float ``[M, n, 2]``, points of the foreground, x and y from its center, whose convex hull is the
            object; ``None`` where the object fills its rectangle.
    """

    foreground_sizes: Array
    frame_sizes: Array
    base_scale: Array
    flip: Array
    outlines: Array | None = None

    def rows(self, index: Array) -> PasteGeometry:
        """The geometry of some of the pastes, by an array of their numbers of the same kind."""
        values = (getattr(self, own.name) for own in fields(self))
        return PasteGeometry(*(own if own is None else own[index] for own in values))


@dataclass(frozen=True)
class Placement:
    """Where pastes land, M rows, in background pixels; pixel (i, j) covers the square from (j, i) to (j + 1, i + 1).

    Attributes:
        matrix: float ``[M, 2, 2]``; a point u of the foreground lands at ``center + matrix @ (u - size / 2)``.
        center: float ``[M, 2]`` (x, y), where the center of the foreground's rectangle lands.
        box_center: float ``[M, 2]``, center of the object's bounding box.
        half_size: float ``[M, 2]``, half the sides of that box.
    """

    matrix: Array
    center: Array
    box_center: Array
    half_size: Array

    def parts(self) -> list[Array]:
        """The arrays, in order."""
        return [self.matrix, self.center, self.box_center, self.half_size]

    def rows(self, index: Array) -> Placement:
        """The placement of some of the pastes, by an array of their numbers of the same kind, or a slice."""
        return Placement(*(own[index] for own in self.parts()))


def place(physical: Array, geometry: PasteGeometry, keep_inside: float) -> Placement:
    """The affine maps from foregrounds to backgrounds.

    ``matrix = Rotation @ Shear @ diag(scale_x, scale_y) * scale * base_scale``.

    Args:
        physical: float ``[M, len(PARAMETERS)]`` from :meth:`TransformRanges.physical`.
        geometry: M rows.
        keep_inside: see :class:`TransformRanges`.

    Returns:
        The maps, differentiable in ``physical``.
    """
    library = library_of(physical)
    rotation, shear, scale, scale_x, scale_y = physical[:, :5].T
    radians = rotation * (math.pi / 180)
    cosine, sine = library.cos(radians), library.sin(radians)
    scale = scale * geometry.base_scale
    x, y = scale_x * geometry.flip * scale, scale_y * scale
    columns = [cosine * x, sine * x, (cosine * shear - sine) * y, (sine * shear + cosine) * y]
    matrix = library.concatenate(columns).reshape(2, 2, -1).swapaxes(0, 2)
    if geometry.outlines is None:
        half_size = (abs(matrix) @ (geometry.foreground_sizes / 2)[:, :, None])[:, :, 0]
        offset = library.zeros_like(half_size)
    else:
        corners = geometry.outlines @ matrix.swapaxes(1, 2)
        low, high = library.amin(corners, 1), library.amax(corners, 1)
        half_size, offset = (high - low) / 2, (high + low) / 2
    lowest, free = center_range(half_size, geometry, keep_inside)
    box_center = lowest + physical[:, 5:] * free
    return Placement(matrix, box_center - offset, box_center, half_size)


def center_range(half_size: Array, geometry: PasteGeometry, keep_inside: float) -> tuple[Array, Array]:
    """The lowest allowed center of a bounding box and the length of its range, both float ``[M, 2]`` pixels."""
    lowest = library_of(half_size).minimum(keep_inside * half_size, geometry.frame_sizes / 2)
    return lowest, geometry.frame_sizes - 2 * lowest

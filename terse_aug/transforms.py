"""The transform of a paste: its parameters, their allowed ranges, and the affine map they stand for.

Imports torch only. Shape letters: M pastes, P = len(PARAMETERS).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Real

import torch
from torch import Tensor

PARAMETERS = ("rotation", "shear", "scale", "scale_x", "scale_y", "translate_x", "translate_y")
"""Names of the columns of a transform, in order."""

_LOGARITHMIC = slice(PARAMETERS.index("scale"), PARAMETERS.index("scale_y") + 1)
"""The columns whose ranges are spaced logarithmically."""


@dataclass(frozen=True)
class TransformRanges:
    """The allowed range ``(low, high)`` of every transform parameter.

    A policy proposes points of the unit cube; a range maps them to units. A range with ``low == high`` fixes
    the parameter.

    Attributes:
        rotation: degrees, positive turns clockwise on the screen.
        shear: tangent of the shear angle along x.
        scale: size relative to the natural size of the cut-out (1 covers the same fraction of the background
            as the object did of the photograph it was cut from); spaced logarithmically, as are the next two.
        scale_x: additional factor along the cut-out's own x axis.
        scale_y: additional factor along the cut-out's own y axis.
        translate_x: where the middle of the object's bounding box lies, 0 the leftmost and 1 the rightmost place that
            ``keep_inside`` allows.
        translate_y: likewise, 0 the top and 1 the bottom.
        keep_inside: how much of half the bounding box of the object, as it is turned, has to stay inside the frame:
            1 the whole object, 0 its middle. An object too large for that is put in the middle. Everything that is not
            quite transparent belongs to the object.

    Raises:
        ValueError: a range is no pair of numbers, not ordered, not finite, or outside what its unit allows.
    """

    rotation: tuple[float, float] = (-10.0, 10.0)
    shear: tuple[float, float] = (-0.05, 0.05)
    scale: tuple[float, float] = (0.5, 1.5)
    scale_x: tuple[float, float] = (0.9, 1.1)
    scale_y: tuple[float, float] = (0.9, 1.1)
    translate_x: tuple[float, float] = (0.0, 1.0)
    translate_y: tuple[float, float] = (0.0, 1.0)
    keep_inside: float = 0.75

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name == "keep_inside":
                continue
            pair = getattr(self, field.name)
            if isinstance(pair, Sequence) and not isinstance(pair, str):
                pair = tuple(pair)
                object.__setattr__(self, field.name, pair)
            if not _is_pair_of_numbers(pair):
                raise ValueError(f"{field.name}: expected a pair (low, high) of numbers, got {pair!r}")
            low, high = pair
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ValueError(f"{field.name}: expected (low, high) with low <= high, got ({low}, {high})")
            if field.name in PARAMETERS[_LOGARITHMIC] and low <= 0:
                raise ValueError(f"{field.name}: a scale has to be above 0, got ({low}, {high})")
            if field.name.startswith("translate") and not 0 <= low <= high <= 1:
                raise ValueError(f"{field.name}: expected fractions within [0, 1], got ({low}, {high})")
        if not (isinstance(self.keep_inside, Real) and 0 <= self.keep_inside <= 1):
            raise ValueError(f"keep_inside: expected a fraction within [0, 1], got {self.keep_inside}")

    def physical(self, unit: Tensor) -> Tensor:
        """Map points of the unit cube to parameter values.

        Args:
            unit: float ``[..., P]`` in [0, 1].

        Returns:
            float ``[..., P]`` in the units above, differentiable in ``unit``; uniform points give uniform
            values (uniform logarithms for the scales).
        """
        ends = [getattr(self, name) for name in PARAMETERS]
        ends[_LOGARITHMIC] = [(math.log(low), math.log(high)) for low, high in ends[_LOGARITHMIC]]
        low, high = unit.new_tensor(ends).unbind(-1)
        values = low + unit * (high - low)
        before, after = slice(0, _LOGARITHMIC.start), slice(_LOGARITHMIC.stop, None)
        return torch.cat([values[..., before], values[..., _LOGARITHMIC].exp(), values[..., after]], -1)


def _is_pair_of_numbers(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(end, Real) for end in value)


@dataclass(frozen=True)
class PasteGeometry:
    """What besides the parameters decides where a paste lands; all tensors have one row per paste.

    Attributes:
        cutout_sizes: float ``[M, 2]``, width and height of the cut-out in its own pixels.
        frame_sizes: float ``[M, 2]``, width and height of the background in pixels.
        natural_scale: float ``[M]``, background pixels per cut-out pixel at scale 1.
        mirror: float ``[M]``, -1 where the cut-out is mirrored left to right, else 1.
        outlines: float ``[M, n, 2]``, points of the cut-out's pixels, x and y from its middle, whose convex hull is
            the object; ``None`` where it fills its rectangle.
    """

    cutout_sizes: Tensor
    frame_sizes: Tensor
    natural_scale: Tensor
    mirror: Tensor
    outlines: Tensor | None = None


@dataclass(frozen=True)
class Placement:
    """Where pastes land, M rows, in background pixels; pixel (i, j) covers the square from (j, i) to (j + 1, i + 1).

    Attributes:
        matrix: float ``[M, 2, 2]``; a point u of the cut-out lands at ``centre + matrix @ (u - cutout_size / 2)``.
        centre: float ``[M, 2]`` (x, y), where the middle of the cut-out's rectangle lands.
        middle: float ``[M, 2]``, the middle of the object's bounding box.
        half_extent: float ``[M, 2]``, half the sides of that box.
    """

    matrix: Tensor
    centre: Tensor
    middle: Tensor
    half_extent: Tensor

    def detached_cpu(self) -> Placement:
        """A copy on the CPU without a graph."""
        return Placement(*(getattr(self, field.name).detach().cpu() for field in fields(self)))


def place(physical: Tensor, geometry: PasteGeometry, keep_inside: float) -> Placement:
    """The affine maps from cut-outs to backgrounds.

    ``matrix = Rotation @ Shear @ diag(scale_x, scale_y) * scale * natural_scale``.

    Args:
        physical: float ``[M, P]`` from :meth:`TransformRanges.physical`.
        geometry: sizes and natural scales, M rows.
        keep_inside: see :class:`TransformRanges`.

    Returns:
        The maps, differentiable in ``physical``.
    """
    rotation, shear, scale, scale_x, scale_y = physical[:, :5].unbind(-1)
    radians = rotation * (math.pi / 180)
    cosine, sine = radians.cos(), radians.sin()
    turn = torch.stack([cosine, cosine * shear - sine, sine, sine * shear + cosine], -1).view(-1, 2, 2)
    size = torch.stack([scale_x * geometry.mirror, scale_y], -1) * (scale * geometry.natural_scale)[:, None]
    matrix = turn * size[:, None]
    if geometry.outlines is None:
        half_extent = (matrix.abs() @ (geometry.cutout_sizes / 2)[:, :, None])[:, :, 0]
        offset = torch.zeros_like(half_extent)
    else:
        reached = geometry.outlines @ matrix.mT
        low, high = reached.amin(1), reached.amax(1)
        half_extent, offset = (high - low) / 2, (high + low) / 2
    lowest = torch.minimum(keep_inside * half_extent, geometry.frame_sizes / 2)
    middle = lowest + physical[:, 5:] * (geometry.frame_sizes - 2 * lowest)
    return Placement(matrix, middle - offset, middle, half_extent)

"""The transform of a paste: its parameters, their allowed ranges, and the affine map they stand for.

Shape letters: M pastes, P = len(PARAMETERS).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from terse_aug.utils.transfer import to_device

PARAMETERS = ("rotation", "shear", "scale", "scale_x", "scale_y", "translate_x", "translate_y")
"""Names of the columns of a transform, in order."""

_LOGARITHMIC = slice(PARAMETERS.index("scale"), PARAMETERS.index("scale_y") + 1)
"""The columns whose ranges are spaced logarithmically."""


def _range(low: float, high: float, help_text: str) -> Any:
    return field(default=(low, high), metadata={"help": help_text})


@dataclass(frozen=True)
class TransformRanges:
    """The allowed range ``(low, high)`` of every transform parameter.

    A policy proposes points of the unit cube, which a range maps to units. ``low == high`` fixes a parameter.

    Raises:
        ValueError: a range is no pair of numbers, not ordered, not finite, or outside what its unit allows.
    """

    rotation: tuple[float, float] = _range(-10.0, 10.0, "degrees, positive is clockwise on the screen")
    shear: tuple[float, float] = _range(-0.05, 0.05, "tangent of the shear angle along x")
    scale: tuple[float, float] = _range(
        0.5, 1.5, "size relative to the fraction that the object covered of its own image; log-uniform"
    )
    scale_x: tuple[float, float] = _range(0.9, 1.1, "additional factor along the foreground's own x axis; log-uniform")
    scale_y: tuple[float, float] = _range(0.9, 1.1, "additional factor along the foreground's own y axis; log-uniform")
    translate_x: tuple[float, float] = _range(
        0.0, 1.0, "center of the object's bounding box, 0 leftmost, 1 rightmost within what keep_inside allows"
    )
    translate_y: tuple[float, float] = _range(0.0, 1.0, "likewise from top to bottom")
    keep_inside: float = field(
        default=0.75,
        metadata={
            "help": "fraction of half the object's box that has to stay inside the image: 1 all of it, 0 its center"
        },
    )

    def __post_init__(self) -> None:
        for name in PARAMETERS:
            pair = getattr(self, name)
            if isinstance(pair, Sequence) and not isinstance(pair, str):
                pair = tuple(pair)
                object.__setattr__(self, name, pair)
            if not _is_pair_of_numbers(pair):
                raise ValueError(f"{name}: expected a pair (low, high) of numbers, got {pair!r}")
            low, high = pair
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ValueError(f"{name}: expected (low, high) with low <= high, got ({low}, {high})")
            if name in PARAMETERS[_LOGARITHMIC] and low <= 0:
                raise ValueError(f"{name}: a scale has to be above 0, got ({low}, {high})")
            if name.startswith("translate") and not 0 <= low <= high <= 1:
                raise ValueError(f"{name}: expected fractions within [0, 1], got ({low}, {high})")
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
        (limits,) = to_device([torch.tensor(ends, dtype=unit.dtype)], unit.device)
        low, high = limits.unbind(-1)
        values = low + unit * (high - low)
        before, after = slice(0, _LOGARITHMIC.start), slice(_LOGARITHMIC.stop, None)
        return torch.cat([values[..., before], values[..., _LOGARITHMIC].exp(), values[..., after]], -1)


def _is_pair_of_numbers(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(end, Real) for end in value)


@dataclass(frozen=True)
class PasteGeometry:
    """Sizes that a placement depends on besides the transform parameters; all tensors have one row per paste.

    Attributes:
        foreground_sizes: float ``[M, 2]``, width and height of the foreground in its own pixels.
        frame_sizes: float ``[M, 2]``, width and height of the background in pixels.
        base_scale: float ``[M]``, background pixels per foreground pixel at scale 1.
        flip: float ``[M]``, -1 where the foreground is flipped left to right, else 1.
        outlines: float ``[M, n, 2]``, points of the foreground, x and y from its center, whose convex hull is the
            object; ``None`` where the object fills its rectangle.
    """

    foreground_sizes: Tensor
    frame_sizes: Tensor
    base_scale: Tensor
    flip: Tensor
    outlines: Tensor | None = None

    def to(self, device: torch.device) -> PasteGeometry:
        """The same on a device."""
        own = [self.foreground_sizes, self.frame_sizes, self.base_scale, self.flip]
        return PasteGeometry(*to_device(own if self.outlines is None else [*own, self.outlines], device))

    def rows(self, index: Sequence[int] | Tensor) -> PasteGeometry:
        """The geometry of some of the pastes."""
        chosen = torch.as_tensor(index, dtype=torch.long, device=self.base_scale.device)
        outlines = None if self.outlines is None else self.outlines[chosen]
        sizes, frames = self.foreground_sizes[chosen], self.frame_sizes[chosen]
        return PasteGeometry(sizes, frames, self.base_scale[chosen], self.flip[chosen], outlines)


@dataclass(frozen=True)
class Placement:
    """Where pastes land, M rows, in background pixels; pixel (i, j) covers the square from (j, i) to (j + 1, i + 1).

    Attributes:
        matrix: float ``[M, 2, 2]``; a point u of the foreground lands at ``center + matrix @ (u - size / 2)``.
        center: float ``[M, 2]`` (x, y), where the center of the foreground's rectangle lands.
        box_center: float ``[M, 2]``, center of the object's bounding box.
        half_size: float ``[M, 2]``, half the sides of that box.
    """

    matrix: Tensor
    center: Tensor
    box_center: Tensor
    half_size: Tensor

    def parts(self) -> list[Tensor]:
        """The tensors, in order."""
        return [getattr(self, own.name) for own in fields(self)]

    def rows(self, index: Sequence[int] | Tensor) -> Placement:
        """The placement of some of the pastes."""
        chosen = torch.as_tensor(index, dtype=torch.long, device=self.matrix.device)
        return Placement(*(getattr(self, own.name)[chosen] for own in fields(self)))


def place(physical: Tensor, geometry: PasteGeometry, keep_inside: float) -> Placement:
    """The affine maps from foregrounds to backgrounds.

    ``matrix = Rotation @ Shear @ diag(scale_x, scale_y) * scale * base_scale``.

    Args:
        physical: float ``[M, P]`` from :meth:`TransformRanges.physical`.
        geometry: M rows.
        keep_inside: see :class:`TransformRanges`.

    Returns:
        The maps, differentiable in ``physical``.
    """
    rotation, shear, scale, scale_x, scale_y = physical[:, :5].unbind(-1)
    radians = rotation * (math.pi / 180)
    cosine, sine = radians.cos(), radians.sin()
    turn = torch.stack([cosine, cosine * shear - sine, sine, sine * shear + cosine], -1).view(-1, 2, 2)
    size = torch.stack([scale_x * geometry.flip, scale_y], -1) * (scale * geometry.base_scale)[:, None]
    matrix = turn * size[:, None]
    if geometry.outlines is None:
        half_size = (matrix.abs() @ (geometry.foreground_sizes / 2)[:, :, None])[:, :, 0]
        offset = torch.zeros_like(half_size)
    else:
        corners = geometry.outlines @ matrix.mT
        low, high = corners.amin(1), corners.amax(1)
        half_size, offset = (high - low) / 2, (high + low) / 2
    lowest, free = center_range(half_size, geometry, keep_inside)
    box_center = lowest + physical[:, 5:] * free
    return Placement(matrix, box_center - offset, box_center, half_size)


def center_range(half_size: Tensor, geometry: PasteGeometry, keep_inside: float) -> tuple[Tensor, Tensor]:
    """The lowest allowed center of a bounding box and the length of its range, both float ``[M, 2]`` pixels."""
    lowest = torch.minimum(keep_inside * half_size, geometry.frame_sizes / 2)
    return lowest, geometry.frame_sizes - 2 * lowest

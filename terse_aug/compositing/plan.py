"""What is pasted on which image, before a policy has chosen the transforms.

Shape letters: M pastes, K auxiliary objects, P transform parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

from terse_aug.bank import Foreground
from terse_aug.compositing.geometry import ForegroundLike
from terse_aug.transforms import PARAMETERS

AnyForeground = TypeVar("AnyForeground", bound=ForegroundLike, covariant=True)


@dataclass(frozen=True)
class AuxiliaryObjects:
    """K objects that the policy does not place: distractors, or occludees. Their transforms are drawn uniformly.

    Attributes:
        image_of: the image of each, in the order of pasting.
        indices: index of each foreground in its bank.
        foregrounds: the foregrounds.
        flipped: whether each is flipped left to right.
        unit: float ``[K, P]`` in [0, 1], on the CPU. The translation of an occludee is relative to the bounding box
            of the paste that occludes it.
        occluded_by: the paste that occludes each; empty for distractors.
    """

    image_of: list[int]
    indices: list[int]
    foregrounds: list[Foreground]
    flipped: list[bool]
    unit: Tensor
    occluded_by: list[int]

    @classmethod
    @cache
    def none(cls) -> AuxiliaryObjects:
        """No objects."""
        return cls([], [], [], [], torch.zeros(0, len(PARAMETERS)), [])

    def __len__(self) -> int:
        return len(self.indices)

    def occluded_by_some(self, pastes: Sequence[int]) -> AuxiliaryObjects:
        """The occludees of some pastes, which are numbered anew in the given order."""
        number_of = {paste: number for number, paste in enumerate(pastes)}
        kept = [row for row, paste in enumerate(self.occluded_by) if paste in number_of]
        return AuxiliaryObjects(
            [self.image_of[row] for row in kept],
            [self.indices[row] for row in kept],
            [self.foregrounds[row] for row in kept],
            [self.flipped[row] for row in kept],
            self.unit[kept],
            [number_of[self.occluded_by[row]] for row in kept],
        )


@dataclass(frozen=True)
class Decoy:
    """Background in the shape of an object, without a label: teaches that a blended edge alone is no object.

    After TERSE (CVPR 2019, section 3.1, blending artefacts).

    Attributes:
        image: the image it is pasted on.
        source: the image its pixels come from.
        foreground: the foreground whose shape it has.
        units: float ``[n, P]``, uniform transforms in the unit cube in the order of preference.
        corners: float pairs in [0, 1], where in the source its pixels may lie, in the order of preference.
    """

    image: int
    source: int
    foreground: Foreground
    units: Tensor
    corners: list[tuple[float, float]]


@dataclass(frozen=True)
class PastePlan(Generic[AnyForeground]):
    """The pastes of a batch. Where a policy chooses among several foregrounds for a paste, all of them are rows.

    Attributes:
        image_of: the image of each paste, ascending; M entries.
        indices: index of each foreground in the bank.
        foregrounds: the foregrounds, or their thumbnails while the policy still chooses among them.
        flipped: whether each is flipped left to right.
        decoys: pasted before everything else.
        distractors: pasted next.
        occludees: objects of other classes, pasted before the pastes that occlude them.
    """

    image_of: list[int]
    indices: list[int]
    foregrounds: Sequence[AnyForeground]
    flipped: list[bool]
    decoys: list[Decoy]
    distractors: AuxiliaryObjects = field(default_factory=AuxiliaryObjects.none)
    occludees: AuxiliaryObjects = field(default_factory=AuxiliaryObjects.none)

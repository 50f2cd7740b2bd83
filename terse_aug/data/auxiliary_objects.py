"""Objects on an image beside those that the policy places: distractors, and objects behind them. Imports torch.

Shape letters: M pastes, K extras, P transform parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from terse_aug.bank import Foreground
from terse_aug.config import TerseConfig
from terse_aug.data.foreground_cache import ForegroundCache
from terse_aug.samplers import ForegroundIndex
from terse_aug.transforms import PARAMETERS


@dataclass(frozen=True)
class AuxiliaryObjects:
    """K pastes whose transforms are drawn uniformly, in the order of pasting.

    Attributes:
        image_of: the image of each.
        indices: index of each cut-out in its bank.
        foregrounds: the cut-outs.
        mirrored: whether each is mirrored left to right.
        unit: float ``[K, P]`` in [0, 1], on the CPU. Of one that is behind a paste the translation says instead where
            in that paste's bounding box its middle is.
        behind: the number of the paste that each is behind; empty for distractors.
    """

    image_of: list[int]
    indices: list[int]
    foregrounds: list[Foreground]
    mirrored: list[bool]
    unit: Tensor
    behind: list[int]

    @classmethod
    def none(cls) -> AuxiliaryObjects:
        """No extras."""
        return cls([], [], [], [], torch.zeros(0, len(PARAMETERS)), [])

    def __len__(self) -> int:
        return len(self.indices)


def draw_distractors(
    shelf: ForegroundCache, pasted: Sequence[int], config: TerseConfig, generator: torch.Generator
) -> AuxiliaryObjects:
    """Distractors for the images that get pastes.

    Args:
        shelf: of the bank of distractors.
        pasted: the images.
        config: ``distractors`` and ``mirror_probability``.
        generator: the only source of randomness.
    """
    counts = torch.randint(config.distractors[0], config.distractors[1] + 1, (len(pasted),), generator=generator)
    image_of = [image for image, count in zip(pasted, counts.tolist(), strict=True) for _ in range(count)]
    indices: list[int] = torch.randint(len(shelf), (len(image_of),), generator=generator).tolist()
    extras = _extras(shelf, image_of, indices, [], config, generator)
    return replace(extras, foregrounds=[_without_keypoints(own) for own in extras.foregrounds])


def draw_occludees(
    shelf: ForegroundCache,
    cutouts: ForegroundIndex,
    image_of: Sequence[int],
    labels: Sequence[Collection[int]],
    allowed: Collection[int] | None,
    config: TerseConfig,
    generator: torch.Generator,
) -> AuxiliaryObjects:
    """Objects of other classes to be behind some of M pastes; none where no other class is allowed.

    Superimposition, after Jin and Rinard (Learning From Context-Agnostic Synthetic Data, 2020), whose context is the
    composite before.

    Args:
        shelf: of the bank.
        cutouts: its classes.
        image_of: the image of each paste.
        labels: for each paste the classes that it may have.
        allowed: labels that may be pasted; ``None`` for all.
        config: ``superimpose_probability`` and ``mirror_probability``.
        generator: the only source of randomness.
    """
    chosen = (torch.rand(len(image_of), generator=generator) < config.superimpose_probability).tolist()
    behind, indices = [], []
    for number, own in enumerate(labels):
        places = [
            place
            for place, label in enumerate(cutouts.classes)
            if label not in own and (allowed is None or label in allowed)
        ]
        if chosen[number] and places:
            # A class as often as it has cut-outs: each cut-out of another class is as likely as any other.
            place = torch.multinomial(cutouts.sizes[places].double(), 1, generator=generator)
            indices.append(int(cutouts.of_classes(torch.tensor(places)[place], 1, generator)))
            behind.append(number)
    return _extras(shelf, [image_of[number] for number in behind], indices, behind, config, generator)


def _without_keypoints(foreground: Foreground) -> Foreground:
    """A cut-out without keypoints, which may be others than the detector's."""
    if foreground.keypoints is None:
        return foreground
    other = replace(foreground, keypoints=None)
    other.cache_outline(foreground.outline)
    return other


def _extras(
    shelf: ForegroundCache,
    image_of: list[int],
    indices: list[int],
    behind: list[int],
    config: TerseConfig,
    generator: torch.Generator,
) -> AuxiliaryObjects:
    mirrored = (torch.rand(len(indices), generator=generator) < config.mirror_probability).tolist()
    unit = torch.rand(len(indices), len(PARAMETERS), generator=generator)
    return AuxiliaryObjects(image_of, indices, [shelf.foreground(index) for index in indices], mirrored, unit, behind)

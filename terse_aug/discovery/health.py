"""Has a layered generator collapsed? Each way of collapsing has its name."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from terse_aug.discovery.generator import Layers

EMPTY, FULL = "empty masks", "full masks"
ALIKE, TRANSPARENT = "identical masks", "transparent masks"
INVISIBLE, CODE_AT_RANDOM = "background equals composite", "mask code at random level"
EXPLANATIONS = {
    EMPTY: "the background shows everything, objects included",
    FULL: "the foreground shows everything, and no background is left",
    ALIKE: "one mask for all codes",
    TRANSPARENT: "both layers are blended everywhere instead of one covering the other",
    INVISIBLE: "the foreground looks like the background that it covers",
    CODE_AT_RANDOM: "masks do not show the group that they were generated for",
}
"""Names of the checks, and what is wrong if one fails."""
_MIN_FRACTION, _MAX_FRACTION = 0.02, 0.9
_MAX_SIMILARITY, _MAX_SOFTNESS, _MIN_DIFFERENCE = 0.95, 0.25, 0.02
_SIGMAS = 3


@dataclass(frozen=True)
class Health:
    """Measures of generated layers.

    Attributes:
        mask_fraction: mean fraction of the image in a mask (alpha above 0.5).
        mask_similarity: mean IoU of masks of different codes.
        mask_softness: mean of min(alpha, 1 - alpha), 0 to 0.5.
        difference: mean absolute difference of composite and background within the masks, 0 to 2.
        code_accuracy: fraction of masks whose group was read; ``nan`` where no code is learned.
        code_random_level: what guessing reaches on this number of masks, by three standard deviations more.
    """

    mask_fraction: float
    mask_similarity: float
    mask_softness: float
    difference: float
    code_accuracy: float
    code_random_level: float

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Names of the checks that fail."""
        failed = {
            EMPTY: self.mask_fraction < _MIN_FRACTION,
            FULL: self.mask_fraction > _MAX_FRACTION,
            ALIKE: self.mask_similarity > _MAX_SIMILARITY,
            TRANSPARENT: self.mask_softness > _MAX_SOFTNESS,
            INVISIBLE: self.difference < _MIN_DIFFERENCE,
            CODE_AT_RANDOM: self.code_accuracy <= self.code_random_level,
        }
        return tuple(name for name, fails in failed.items() if fails)

    def plain(self) -> dict[str, float]:
        """As values for JSON; measures that are not defined are left out."""
        return {name: value for name, value in dataclasses.asdict(self).items() if not math.isnan(value)}


def measure_health(layers: Layers, groups: Tensor, group_logits: Tensor | None) -> Health:
    """Measure generated layers.

    Args:
        layers: of B images.
        groups: long ``[B]``, of the masks.
        group_logits: ``[B, groups]``, of the network that reads the masks; ``None`` if there is nothing to read.
    """
    soft = layers.generated_mask.flatten(1)
    masks = (soft > 0.5).float()
    accuracy, level = math.nan, math.nan
    if group_logits is not None:
        accuracy = float((group_logits.argmax(1) == groups).float().mean())
        guess = 1 / group_logits.shape[1]
        level = guess + _SIGMAS * math.sqrt(guess * (1 - guess) / len(groups))
    return Health(
        mask_fraction=float(masks.mean()),
        mask_similarity=_mean_iou(masks),
        mask_softness=float(soft.minimum(1 - soft).mean()),
        difference=float((layers.composite - layers.background).abs().mean() / layers.mask.mean().clamp(min=1e-6)),
        code_accuracy=accuracy,
        code_random_level=level,
    )


def _mean_iou(masks: Tensor) -> float:
    """Of all pairs of masks ``[B, pixels]`` that are not both empty; 0 if there is none."""
    common = masks @ masks.T
    area = masks.sum(1)
    union = area[:, None] + area[None] - common
    pairs = torch.triu(torch.ones_like(union), 1).bool() & (union > 0)
    return float((common[pairs] / union[pairs]).mean()) if bool(pairs.any()) else 0.0

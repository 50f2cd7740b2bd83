"""Settings of learning to cut out foregrounds, and presets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from terse_aug.config import setting


@dataclass(frozen=True)
class DiscoverySettings:
    """How a layered generator and a segmentation network are trained.

    Raises:
        ValueError: a value is outside its range; the message names the setting.
    """

    size: int = setting(64, "side of the generated images, a power of two from 16 to 256 px")
    categories: int = setting(20, "categories of appearance that are to be discovered (child codes)")
    group_size: int = setting(2, "categories that have their shapes in common; divides categories")
    scale: tuple[float, float] = setting((-0.2, 0.0), "perturbation: foregrounds are scaled by 2 to the power of these")
    shift: float = setting(0.125, "perturbation: largest translation, as a fraction of the side, 0 to 0.5")
    rotation: float = setting(15.0, "perturbation: largest rotation, degrees, 0 to 180")
    contrast: float = setting(0.0, "backgrounds' contrast is multiplied by 1 minus to 1 plus this, 0 to 1")
    gamma_mi: float = setting(1.0, "weight of the mutual information of codes with composites and masks")
    gamma_bg: float = setting(1.0, "weight of backgrounds being segmented as background, from round 2 on")
    mask_area_weight: float = setting(0.0, "weight of masks of less than min_mask_area; not in the paper")
    min_mask_area: float = setting(0.25, "for mask_area_weight, fraction of the image")
    mask_binary_weight: float = setting(0.0, "weight of masks being 0 or 1; not in the paper")
    mask_noise: float = setting(
        0.0,
        "standard deviation of noise on masks before their group is read, so that faint marks do not do; "
        "not in the paper",
    )
    latent: int = setting(100, "dimensions of the public code z")
    width: int = setting(128, "generator: channels at 4 x 4 px, halved with each doubling; 1024 in the paper")
    residual_blocks: int = setting(1, "generator: blocks at full resolution in each of its stages; 2 in the paper")
    discriminator_width: int = setting(32, "discriminator: channels of its first block; 64 in the paper")
    segmenter_width: int = setting(16, "segmentation network: channels at full resolution; 64 in the paper")
    batch: int = setting(32, "images in a batch")
    learning_rate: float = setting(2e-4, "Adam step size of generator and discriminator")
    ema: float = setting(0.999, "decay of the moving average of the generator's weights, below 1")
    rounds: int = setting(1, "alternations of generator and segmentation network")
    generator_steps: int = setting(8000, "steps of the generator in each round")
    segmenter_steps: int = setting(1000, "steps of the segmentation network in each round")
    segmenter_learning_rate: float = setting(1e-3, "Adam step size of the segmentation network")

    def __post_init__(self) -> None:
        for own in dataclasses.fields(self):
            value = getattr(self, own.name)
            if own.type == "int" and (not isinstance(value, int) or isinstance(value, bool)):
                raise ValueError(f"{own.name}: expected a whole number, got {value!r}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= least):
                raise ValueError(f"{name}: expected at least {least:g}, got {value!r}")
        for name, most in _MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name}: expected at most {most:g}, got {getattr(self, name)!r}")
        if self.size & (self.size - 1):
            below = 2 ** (self.size.bit_length() - 1)
            raise ValueError(f"size: expected a power of two, got {self.size}; {below} or {2 * below}, for example")
        if self.categories % self.group_size:
            count = self.categories // self.group_size * self.group_size or self.group_size
            raise ValueError(
                f"categories: expected a multiple of group_size {self.group_size}, got {self.categories}; "
                f"{count}, for example"
            )
        if self.categories < 2 * self.group_size:
            raise ValueError(
                f"categories: expected at least two groups of {self.group_size}, got {self.categories} categories"
            )
        low, high = self.scale
        if not -4 <= low <= high <= 4:
            raise ValueError(f"scale: expected two ascending exponents within -4 to 4, got {self.scale!r}")

    @property
    def groups(self) -> int:
        """Number of parent codes: shapes that are to be discovered."""
        return self.categories // self.group_size

    @property
    def total_steps(self) -> int:
        """Steps of a whole training."""
        return self.rounds * (self.generator_steps + self.segmenter_steps)

    def plain(self) -> dict[str, Any]:
        """The settings as values for JSON."""
        values = dataclasses.asdict(self)
        return values | {"scale": list(self.scale)}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> DiscoverySettings:
        """Settings of what :meth:`plain` gave."""
        return cls(**{**values, "scale": tuple(values["scale"])})


_LEAST = {
    "size": 16,
    "categories": 2,
    "group_size": 1,
    "shift": 0,
    "rotation": 0,
    "contrast": 0,
    "gamma_mi": 0,
    "gamma_bg": 0,
    "mask_area_weight": 0,
    "min_mask_area": 0,
    "mask_binary_weight": 0,
    "mask_noise": 0,
    "latent": 1,
    "width": 16,
    "residual_blocks": 0,
    "discriminator_width": 4,
    "segmenter_width": 4,
    "batch": 2,
    "learning_rate": 0,
    "ema": 0,
    "rounds": 1,
    "generator_steps": 1,
    "segmenter_steps": 1,
    "segmenter_learning_rate": 0,
}
_MOST = {"size": 256, "shift": 0.5, "rotation": 180, "contrast": 1, "min_mask_area": 1, "ema": 0.999999}

_PAPER: dict[str, Any] = {
    "size": 128,
    "width": 1024,
    "residual_blocks": 2,
    "discriminator_width": 64,
    "segmenter_width": 64,
    "rounds": 5,
    "generator_steps": 62_500,
    "segmenter_steps": 2_000,
}
_CPU: dict[str, Any] = {
    "learning_rate": 3e-4,
    "mask_area_weight": 2.0,
    "min_mask_area": 0.15,
    "mask_binary_weight": 2.0,
    "rounds": 3,
    "generator_steps": 4000,
    "segmenter_steps": 500,
}
PRESETS: Mapping[str, DiscoverySettings] = {
    "cub": DiscoverySettings(**_PAPER, categories=200, group_size=10, gamma_mi=1, gamma_bg=2),
    "dogs": DiscoverySettings(**_PAPER, categories=120, group_size=10, gamma_mi=2, gamma_bg=1),
    "cars": DiscoverySettings(
        **_PAPER, categories=196, group_size=14, rotation=0, contrast=0.3, gamma_mi=1, gamma_bg=2
    ),
    "apc": DiscoverySettings(**_PAPER, categories=200, group_size=10, gamma_mi=2, gamma_bg=0),
    "cpu-64": DiscoverySettings(**_CPU),
    "cpu-32": DiscoverySettings(**_CPU, size=32),
}
"""``cub``, ``dogs``, ``cars``, ``apc``: the paper's table 1, 5 rounds of 2 million images and 2,000 steps (its second
schedule); for GPUs. ``cpu-64`` and ``cpu-32``: small networks, with the mask regularisers of relatives."""

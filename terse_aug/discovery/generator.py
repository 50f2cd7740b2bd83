"""The layered generator.

After improved layered GANs (Yang et al.), whose generator is that of FineGAN with one foreground: no official code
could be found, so details that the paper leaves open are named where they are decided.

Shape letters: B images, S side of the images, C channels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terse_aug.discovery.settings import DiscoverySettings

START = 4
"""Side of the first feature map."""


class Perturbation(NamedTuple):
    """Random changes of the layers of B images.

    Attributes:
        affine: float ``[B, 2, 3]``, for ``affine_grid``: moves foreground and mask.
        contrast: float ``[B]``, multiplies the background's contrast.
    """

    affine: Tensor
    contrast: Tensor


class Layers(NamedTuple):
    """Generated images and what they are composed of.

    Attributes:
        composite: float ``[B, 3, S, S]``, RGB in [-1, 1].
        mask: float ``[B, 1, S, S]``, alpha in [0, 1], perturbed as in the composite.
        foreground: float ``[B, 3, S, S]``, likewise.
        background: float ``[B, 3, S, S]``.
        generated_mask: float ``[B, 1, S, S]``, before the perturbation.
    """

    composite: Tensor
    mask: Tensor
    foreground: Tensor
    background: Tensor
    generated_mask: Tensor


class LayeredGenerator(nn.Module):
    """Composes a foreground over a background; both, and the mask, are generated.

    The mask depends on the public code z and on the group of the category, the foreground's colors on z, group and
    category, the background on z only.

    Args:
        settings: size, codes and width.
    """

    def __init__(self, settings: DiscoverySettings) -> None:
        super().__init__()
        self.settings = settings
        self.background = BackgroundLayer(settings)
        self.shape = ShapeStage(settings)
        self.appearance = AppearanceStage(settings)
        self.apply(_orthogonal)

    def forward(self, z: Tensor, category: Tensor, perturbation: Perturbation | None = None) -> Layers:
        """Generate.

        Args:
            z: float ``[B, latent]``, standard normal.
            category: long ``[B]``, 0 to ``categories - 1``.
            perturbation: of the layers; none by default.
        """
        group = category // self.settings.group_size
        background = self.background(z)
        features, generated_mask = self.shape(z, group)
        foreground, mask = self.appearance(features, category), generated_mask
        if perturbation is not None:
            moved = _moved(torch.cat([foreground, mask], 1), perturbation.affine)
            foreground, mask = moved[:, :3], moved[:, 3:]
            background = with_contrast(background, perturbation.contrast)
        composite = mask * foreground + (1 - mask) * background
        return Layers(composite, mask, foreground, background, generated_mask)


class BackgroundLayer(nn.Module):
    """Generates backgrounds float ``[B, 3, S, S]`` in [-1, 1] from z."""

    def __init__(self, settings: DiscoverySettings) -> None:
        super().__init__()
        self.features = FeatureStage(settings, settings.latent)
        channels = self.features.channels
        self.blocks = nn.Sequential(*_residual_blocks(settings, channels))
        self.image = _image_head(channels)

    def forward(self, z: Tensor) -> Tensor:
        """From z float ``[B, latent]``."""
        image: Tensor = self.image(self.blocks(self.features(z)))
        return image


class ShapeStage(nn.Module):
    """Generates masks from z and group: FineGAN's parent stage, without an image of its own."""

    def __init__(self, settings: DiscoverySettings) -> None:
        super().__init__()
        self.groups = settings.groups
        self.features = FeatureStage(settings, settings.latent + settings.groups)
        channels = self.features.channels
        self.code = nn.Embedding(settings.groups, channels)
        self.blocks = nn.Sequential(
            *_convolution(channels, channels),
            *_residual_blocks(settings, channels),
            *_convolution(channels, channels // 2),
        )
        self.mask = nn.Sequential(nn.Conv2d(channels // 2, 1, 3, padding=1), nn.Sigmoid())

    def forward(self, z: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[B, C, S, S]`` and masks ``[B, 1, S, S]`` in [0, 1], from z ``[B, latent]`` and long ``[B]``."""
        codes = torch.cat([z, F.one_hot(group, self.groups).to(z.dtype)], 1)
        features = self.blocks(self.features(codes) + _tiled(self.code(group)))
        return features, self.mask(features)


class AppearanceStage(nn.Module):
    """Generates a foreground's colors from the features of its shape and its category: FineGAN's child stage."""

    def __init__(self, settings: DiscoverySettings) -> None:
        super().__init__()
        channels = FeatureStage.output_channels(settings) // 2
        self.code = nn.Embedding(settings.categories, channels)
        self.blocks = nn.Sequential(
            *_convolution(channels, channels),
            *_residual_blocks(settings, channels),
        )
        self.image = _image_head(channels)

    def forward(self, features: Tensor, category: Tensor) -> Tensor:
        """RGB float ``[B, 3, S, S]`` in [-1, 1] from features ``[B, C, S, S]`` and categories long ``[B]``."""
        image: Tensor = self.image(self.blocks(features + _tiled(self.code(category))))
        return image


class FeatureStage(nn.Module):
    """Features ``[B, C, S, S]`` from codes ``[B, N]``: a linear layer to 4 x 4 px, then blocks that double the side.

    Upsampling is nearest, with 3 x 3 convolution, batch normalization and ReLU, which the paper has in place of
    FineGAN's gated linear units.
    """

    def __init__(self, settings: DiscoverySettings, codes: int) -> None:
        super().__init__()
        doublings = (settings.size // START).bit_length() - 1
        widths = [max(settings.width >> level, settings.width // 16, 2) for level in range(doublings + 1)]
        self.start = nn.Sequential(
            nn.Linear(codes, widths[0] * START * START, bias=False),
            nn.BatchNorm1d(widths[0] * START * START),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), *_convolution(before, own))
                for before, own in pairwise(widths)
            )
        )
        self.channels = widths[-1]

    @staticmethod
    def output_channels(settings: DiscoverySettings) -> int:
        """Number of channels at full resolution."""
        doublings = (settings.size // START).bit_length() - 1
        return max(settings.width >> doublings, settings.width // 16, 2)

    def forward(self, codes: Tensor) -> Tensor:
        """See the class."""
        features: Tensor = self.blocks(self.start(codes).unflatten(1, (-1, START, START)))
        return features


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalization, added to their input ``[B, C, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(channels, channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        result: Tensor = features + self.layers(features)
        return result


def with_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Images float ``[B, 3, H, W]`` with their contrast multiplied by ``[B]``.

    Each channel is clamped to its own range in its image, so that a background gets no values it never had.
    """
    mean = images.mean((2, 3), keepdim=True)
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return ((images - mean) * factor[:, None, None, None] + mean).clamp(low, high)


def draw_perturbation(settings: DiscoverySettings, count: int, generator: torch.Generator) -> Perturbation:
    """Perturbations of ``count`` images, uniform within the settings' ranges."""
    unit = torch.rand(5, count, generator=generator)
    low, high = settings.scale
    size = 2 ** (low + (high - low) * unit[0])
    angle = torch.deg2rad((2 * unit[1] - 1) * settings.rotation)
    shift = (2 * unit[2:4] - 1) * settings.shift * 2  # affine_grid's sides are 2
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    # affine_grid maps places of the result to places of the source: the inverse of what happens to the layer.
    matrix = torch.stack([torch.stack([cos, sin]), torch.stack([-sin, cos])]).permute(2, 0, 1)
    offset = -(matrix @ shift.T[..., None])
    return Perturbation(torch.cat([matrix, offset], 2), 1 + (2 * unit[4] - 1) * settings.contrast)


def draw_codes(settings: DiscoverySettings, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """z float ``[count, latent]`` and categories long ``[count]``."""
    z = torch.randn(count, settings.latent, generator=generator)
    return z, torch.randint(settings.categories, (count,), generator=generator)


def _moved(layers: Tensor, affine: Tensor) -> Tensor:
    grid = F.affine_grid(affine.to(layers), list(layers.shape), align_corners=False)
    return F.grid_sample(layers, grid, align_corners=False)  # zeros beyond the edges: the mask ends there


def _tiled(codes: Tensor) -> Tensor:
    # Adding an embedding is a convolution of the tiled one-hot code, as in FineGAN, but for the image's border.
    return codes[:, :, None, None]


def _convolution(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]


def _residual_blocks(settings: DiscoverySettings, channels: int) -> list[nn.Module]:
    return [ResidualBlock(channels) for _ in range(settings.residual_blocks)]


def _image_head(channels: int) -> nn.Sequential:
    own = max(channels // 2, 8)
    return nn.Sequential(*_convolution(channels, own), nn.Conv2d(own, 3, 3, padding=1), nn.Tanh())


def _orthogonal(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
        nn.init.orthogonal_(module.weight)
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(bias)

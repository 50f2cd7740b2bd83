"""The discriminator of composites, and the two networks that read the codes back.

Shape letters: B images, S side of the images, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from terse_aug.discovery.generator import START
from terse_aug.discovery.settings import DiscoverySettings

_MAX_FACTOR = 16


class Discriminator(nn.Module):
    """Judges composites, and reads their categories (E_x).

    4 x 4 convolutions of stride 2 down to 4 x 4 px, LeakyReLU 0.2, spectral normalization; batch normalization but for
    the first block. The branch of E_x begins at the top, with a 3 x 3 convolution.
    """

    def __init__(self, settings: DiscoverySettings) -> None:
        super().__init__()
        self.trunk = Trunk(settings, 3)
        self.realness = _head(self.trunk.channels, 1)
        self.category = _head(self.trunk.channels, settings.categories)
        self.apply(_orthogonal)
        _normalize(self)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Realness ``[B]``, high for real, and logits of categories ``[B, categories]``, of ``[B, 3, S, S]``."""
        features = self.trunk(images)
        return self.realness(features).flatten(), self.category(features).flatten(1)

    def judge(self, images: Tensor) -> Tensor:
        """Realness alone."""
        realness: Tensor = self.realness(self.trunk(images)).flatten()
        return realness


class MaskClassifier(nn.Module):
    """Reads the group of a generated mask (E_pi): the discriminator's layers on one channel, as the paper is silent."""

    def __init__(self, settings: DiscoverySettings) -> None:
        super().__init__()
        self.trunk = Trunk(settings, 1)
        self.group = _head(self.trunk.channels, settings.groups)
        self.apply(_orthogonal)
        _normalize(self)

    def forward(self, masks: Tensor) -> Tensor:
        """Logits of groups ``[B, groups]`` of masks float ``[B, 1, S, S]`` in [0, 1]."""
        logits: Tensor = self.group(self.trunk(masks * 2 - 1)).flatten(1)
        return logits


class Trunk(nn.Sequential):
    """Features ``[B, C, 4, 4]`` of images ``[B, N, S, S]``."""

    def __init__(self, settings: DiscoverySettings, channels: int) -> None:
        halvings = (settings.size // START).bit_length() - 1
        layers: list[nn.Module] = []
        before = channels
        for level in range(halvings):
            own = settings.discriminator_width * min(2**level, _MAX_FACTOR)
            layers.append(nn.Conv2d(before, own, 4, stride=2, padding=1, bias=level == 0))
            if level:
                layers.append(nn.BatchNorm2d(own))
            layers.append(nn.LeakyReLU(0.2))
            before = own
        super().__init__(*layers)
        self.channels = before


def _head(channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.LeakyReLU(0.2),
        nn.Conv2d(channels, outputs, START),
    )


def _orthogonal(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.orthogonal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _normalize(module: nn.Module) -> None:
    for own in module.modules():
        if isinstance(own, nn.Conv2d):
            spectral_norm(own)

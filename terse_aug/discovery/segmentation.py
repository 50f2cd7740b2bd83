"""The U-Net that is learned from generated layers.

Shape letters: B images.
"""

from __future__ import annotations

from torch import Tensor, nn

from terse_aug.utils.packages import optional_module
from terse_aug.utils.random import isolated_global_rng

_LEVELS = 5


class SegmentationNetwork(nn.Module):
    """U-Net of double convolutions, ``width`` times 1-2-4-8-8 channels, bilinear upsampling.

    The decoder is that of segmentation-models-pytorch, whose encoders have no skip connection at full resolution,
    which masks of a few dozen pixels need.

    Args:
        width: channels at full resolution; 64 after the paper.
        seed: of the initial weights.

    Raises:
        MissingPackageError: segmentation-models-pytorch is not installed.
    """

    STRIDE = 2 ** (_LEVELS - 1)
    """Height and width of images are multiples of it."""

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        blocks = optional_module("segmentation_models_pytorch.base.modules", "learn")
        unet = optional_module("segmentation_models_pytorch.decoders.unet.decoder", "learn")
        channels = [width * factor for factor in (1, 2, 4, 8, 8)]
        with isolated_global_rng(seed):
            self.encoder = nn.ModuleList(
                nn.Sequential(
                    nn.Identity() if level == 0 else nn.MaxPool2d(2),
                    blocks.Conv2dReLU(before, own, 3, padding=1, use_norm="batchnorm"),
                    blocks.Conv2dReLU(own, own, 3, padding=1, use_norm="batchnorm"),
                )
                for level, (before, own) in enumerate(zip([3, *channels], channels, strict=False))
            )
            self.decoder = unet.UnetDecoder(
                (3, *channels), channels[-2::-1], n_blocks=_LEVELS - 1, interpolation_mode="bilinear"
            )
            self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, 1, H, W]``, high for foreground, of RGB images float ``[B, 3, H, W]`` in [-1, 1]."""
        features = [images]
        for level in self.encoder:
            features.append(level(features[-1]))
        logits: Tensor = self.head(self.decoder(features))
        return logits

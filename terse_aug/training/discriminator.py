"""The discriminator: do the surroundings of an object look real?

Shape letters: R crops, B images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from terse_aug.utils.random import isolated_global_rng
from terse_aug.utils.transfer import to_device

CROP = 64
"""Side of the crops that it judges, pixels."""
_CONTEXT = 1.5


class PatchDiscriminator(nn.Module):
    """PatchGAN: one logit per patch, high for real.

    After pix2pixHD as TERSE uses it: 4x4 convolutions of stride 2 with 64-128-256-512 channels, InstanceNorm,
    LeakyReLU 0.2, weights drawn from N(0, 0.02).

    Args:
        seed: of the initial weights.
        width: channels of the first layer.
    """

    def __init__(self, seed: int = 0, width: int = 64) -> None:
        super().__init__()
        with isolated_global_rng(seed):
            self.layers = nn.Sequential(
                nn.Conv2d(3, width, 4, stride=2, padding=1),
                nn.LeakyReLU(0.2),
                *_stage(width, 2 * width, stride=2),
                *_stage(2 * width, 4 * width, stride=2),
                *_stage(4 * width, 8 * width, stride=1),
                nn.Conv2d(8 * width, 1, 4, padding=1),
            )
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, 0.0, 0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    def forward(self, crops: Tensor) -> Tensor:
        """Logits ``[R, 1, h, w]`` of RGB crops float ``[R, 3, CROP, CROP]`` in [0, 1]."""
        logits: Tensor = self.layers((crops * 2 - 1).to(next(self.parameters()).dtype))
        return logits


def discriminator_loss(real: Tensor, composite: Tensor) -> Tensor:
    """``-(E log D(x) + E log(1 - D(composite)))`` from logits (TERSE, CVPR 2019, equation of L_D).

    One of both may be empty, and its term is 0.
    """
    terms = [term.mean() for term in (F.softplus(-real), F.softplus(composite)) if len(term)]
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]  # sum() would launch one kernel more


def realism_loss(composite: Tensor) -> Tensor:
    """``-E log D(composite)`` from logits: what the synthesizer descends (the non-saturating form)."""
    return F.softplus(-composite).mean()


def object_crops(images: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
    """Crops around objects, half as large again as their boxes.

    Args:
        images: B tensors float ``[3, H, W]``.
        boxes: B tensors ``[R_b, 4]``, XYXY pixels.

    Returns:
        float ``[R, 3, CROP, CROP]``, R the sum of all R_b, differentiable in the images.
    """
    crops = []
    on_device = to_device(boxes, images[0].device) if images else []
    for image, own in zip(images, on_device, strict=True):
        if len(own):
            crops.append(roi_align(image[None].float(), [_with_context(own.float())], CROP, aligned=True))
    return torch.cat(crops) if crops else torch.zeros(0, 3, CROP, CROP)


def _with_context(boxes: Tensor) -> Tensor:
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2 * _CONTEXT
    return torch.cat([center - half, center + half], 1)


def _stage(channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, 4, stride=stride, padding=1, bias=False),
        nn.InstanceNorm2d(channels_out),
        nn.LeakyReLU(0.2),
    ]

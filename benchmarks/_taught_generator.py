"""A generator whose masks are known: a decoder that was taught to draw blobs cut from one photograph over another.

It has no mask inside: images come out of a single stack of convolutions, which learned by regression to draw what a few
numbers describe: shape, place and size of the blob, and which of the photographs it and its background are from. The
mask follows from the same numbers. Colors say nothing about it, as both come from the same photographs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from terse_aug.bank import read_image
from terse_aug.discovery.weights_file import load_weights_file, save_weights_file
from terse_aug.generators import Rendered, SampleKey, Truncation, draw_noise, recorded_outputs, weights_digest
from terse_aug.utils.random import generator_for

SIDE = 32
_PHOTOGRAPHS, _BLUR_SIGMA = 64, 2.0
_WAVES = (1, 2, 3, 4)
_SHAPE = 3 + 2 * len(_WAVES)
_WIDTHS = (128, 96, 48, 24)
_KIND, _VERSION = "terse-aug benchmark generator", 1


class TaughtGenerator(nn.Module):
    """See the module; a :class:`FeatureGenerator`, and :meth:`masks` besides."""

    name = "taught"
    class_names: Sequence[str] = ("blob",)

    def __init__(self) -> None:
        super().__init__()
        self.photographs = nn.Embedding(_PHOTOGRAPHS, 48)
        self.start = nn.Linear(_SHAPE + 2 * 48, _WIDTHS[0] * 16)
        blocks = []
        for before, own in zip((_WIDTHS[0], *_WIDTHS), _WIDTHS, strict=False):
            blocks.append(nn.Sequential(*_convolution(before, own), *_convolution(own, own)))
        self.blocks = nn.ModuleList(blocks)
        self.image = nn.Conv2d(_WIDTHS[-1], 3, 3, padding=1)

    @property
    def fingerprint(self) -> str:
        """Of the weights."""
        return weights_digest(self)

    def forward(self, latents: Tensor) -> Tensor:
        """Images ``[B, 3, S, S]`` of latents ``[B, 13]``."""
        shape, drawn = latents[:, :_SHAPE], latents[:, _SHAPE:].long()
        features = self.start(torch.cat([shape, self.photographs(drawn).flatten(1)], 1)).unflatten(1, (-1, 4, 4))
        for number, block in enumerate(self.blocks):
            features = block(features if number == 0 else functional.interpolate(features, scale_factor=2))
        images: Tensor = self.image(features).sigmoid()
        return images

    def latent(self, key: SampleKey) -> Tensor:
        """Shape, place and size, and the numbers of two photographs."""
        rng = generator_for(key.seed, "taught photographs", key.number)
        return torch.cat([draw_noise(key, _SHAPE), torch.randperm(_PHOTOGRAPHS, generator=rng)[:2].float()])

    def render(self, latents: Tensor, labels: Tensor, truncation: Truncation) -> Rendered:
        """Images, and the features of all blocks."""
        names = [f"blocks.{number}" for number in range(len(self.blocks))]
        return recorded_outputs(self, names, lambda: self(latents))

    def masks(self, latents: Tensor) -> Tensor:
        """``[B, S, S]``, 0 or 1."""
        return (_depth(latents) > 0).float()


def load(path: str) -> TaughtGenerator:
    """Read what :func:`teach` wrote."""
    generator = TaughtGenerator()
    generator.load_state_dict(load_weights_file(path, _KIND, _VERSION)["weights"])
    return generator.eval().requires_grad_(False)


def teach(photographs: Path, path: Path, steps: int, seed: int = 0, batch: int = 32) -> float:
    """Teach a generator and write it; its mean absolute error in levels of 255 over the last 100 steps."""
    patches = _patches(photographs)
    torch.manual_seed(seed)
    generator = TaughtGenerator()
    optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    errors = []
    for step in range(steps):
        rng = generator_for(seed, "teach", step)
        shape = torch.randn(batch, _SHAPE, generator=rng)
        drawn = torch.randint(_PHOTOGRAPHS, (batch, 2), generator=rng)
        latents = torch.cat([shape, drawn.float()], 1)
        alpha = (0.5 + _depth(latents) * SIDE / 2).clamp(0, 1)[:, None]
        target = alpha * patches[drawn[:, 0]] + (1 - alpha) * patches[drawn[:, 1]]
        error = (generator(latents) - target).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        optimizer.step()
        schedule.step()
        errors.append(255 * error.item())
        if step % 250 == 0:
            print(f"step {step}: {errors[-1]:.1f}", flush=True)
    save_weights_file(path, _KIND, _VERSION, {"weights": generator.state_dict()})
    return float(np.mean(errors[-100:]))


def _depth(latents: Tensor) -> Tensor:
    """How far inside of the blob a pixel is, negative outside, in half sides of the image: ``[B, S, S]``."""
    code = latents[:, :_SHAPE, None, None]
    along = (2 * torch.arange(SIDE) + 1) / SIDE - 1
    x = along[None, None, :] - 0.2 * code[:, 0].tanh()
    y = along[None, :, None] - 0.2 * code[:, 1].tanh()
    angle, radius = torch.atan2(y, x), (x.square() + y.square()).sqrt()
    edge = 0.5 + 0.12 * code[:, 2].tanh()
    for at, wave in enumerate(_WAVES):
        cosine, sine = code[:, 3 + 2 * at], code[:, 4 + 2 * at]
        edge = edge * (1 + (0.16 / wave**0.5) * (cosine * torch.cos(wave * angle) + sine * torch.sin(wave * angle)))
    return edge - radius


def _patches(root: Path) -> Tensor:
    """Blurred squares of photographs, ``[N, 3, S, S]``."""
    made = []
    for path in sorted(root.rglob("*.jpg"))[:_PHOTOGRAPHS]:
        image = read_image(path)
        side = min(image.shape[:2])
        square = cv2.resize(image[:side, :side], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        made.append(cv2.GaussianBlur(square, (0, 0), _BLUR_SIGMA).astype(np.float32) / 255)
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def _convolution(before: int, own: int) -> list[nn.Module]:
    return [nn.Conv2d(before, own, 3, padding=1), nn.BatchNorm2d(own), nn.ReLU()]

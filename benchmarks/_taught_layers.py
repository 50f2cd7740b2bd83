"""A layered generator that was taught its layers, for measuring where no training without masks has found them.

By regression on drawn layers: blobs for masks, and textures of one distribution for foreground and background, so that
colors do not tell them apart. Whatever it learned, its composites are made with its masks, which so are the truth.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from terse_aug.discovery import DiscoverySettings, LayeredGenerator
from terse_aug.discovery.generator import draw_codes
from terse_aug.discovery.weights_file import save_weights_file
from terse_aug.generators.layered import CHECKPOINT
from terse_aug.utils.random import generator_for

_WAVES = (2, 3, 4, 5)
_FREQUENCIES = ((0.5, 0.0), (0.0, 0.5), (0.7, 0.7), (0.9, -0.9), (1.2, 0.4))
_TEXTURE = 3 + 6 * len(_FREQUENCIES)
_SHAPE, _FOREGROUND, _BACKGROUND = 0, 20, 60
"""Where in z the numbers begin that describe each layer."""


def teach(folder: Path, steps: int, seed: int = 0, batch: int = 16) -> None:
    """Teach a generator of 32 px, and write it as ``terse-aug learn cutter`` does."""
    settings = DiscoverySettings(size=32)
    torch.manual_seed(seed)
    generator = LayeredGenerator(settings)
    optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        z, category = draw_codes(settings, batch, generator_for(seed, "teach", step))
        made = generator(z, category)
        mask = (0.5 + _depth(z, category // settings.group_size, settings.size) * settings.size / 2).clamp(0, 1)
        foreground = _texture(z[:, _FOREGROUND : _FOREGROUND + _TEXTURE], settings.size)
        background = _texture(z[:, _BACKGROUND : _BACKGROUND + _TEXTURE], settings.size)
        loss = functional.binary_cross_entropy(made.generated_mask[:, 0], mask)
        loss = loss + (made.background - background).abs().mean() + (made.foreground - foreground).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0 or step == steps - 1:
            overlap = _iou(made.generated_mask[:, 0] > 0.5, mask > 0.5)
            print(f"step {step}: loss {loss.item():.2f}, IoU of drawn and generated masks {overlap:.2f}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"run": settings.plain(), "state": {"modules": {"average": generator.state_dict()}}}
    save_weights_file(folder / CHECKPOINT, "terse-aug cutter checkpoint", 1, content)


def _depth(z: Tensor, group: Tensor, side: int) -> Tensor:
    """How far inside of its blob a pixel is, negative outside, in half sides of the image: ``[B, S, S]``."""
    x, y = _places(side)
    code = z[:, _SHAPE : _SHAPE + 3 + 2 * len(_WAVES), None, None]
    x, y = x - 0.25 * code[:, 0].tanh(), y - 0.25 * code[:, 1].tanh()
    angle, radius = torch.atan2(y, x), (x.square() + y.square()).sqrt()
    edge = 0.55 + 0.12 * code[:, 2].tanh()
    for at, wave in enumerate(_WAVES):
        cosine, sine = code[:, 3 + 2 * at].tanh(), code[:, 4 + 2 * at].tanh()
        own = 0.15 * torch.cos(wave * angle + group[:, None, None])  # what the shapes of a group have in common
        edge = edge * (
            1 + own + (0.15 / wave**0.5) * (cosine * torch.cos(wave * angle) + sine * torch.sin(wave * angle))
        )
    return edge - radius


def _texture(codes: Tensor, side: int) -> Tensor:
    """Colored waves with steep flanks, ``[B, 3, S, S]`` in [-1, 1], of ``[B, 33]``."""
    x, y = _places(side)
    total = codes[:, :3, None, None] * 0.5
    for at, (across, down) in enumerate(_FREQUENCIES):
        phase = 2 * torch.pi * (across * x + down * y)
        cosine, sine = codes[:, 3 + 6 * at : 9 + 6 * at, None, None].chunk(2, 1)
        total = total + 0.4 * (cosine * torch.cos(phase) + sine * torch.sin(phase))
    return torch.tanh(2 * total)


def _places(side: int) -> tuple[Tensor, Tensor]:
    along = (2 * torch.arange(side) + 1) / side - 1
    return along[None, None, :], along[None, :, None]


def _iou(found: Tensor, true: Tensor) -> float:
    return float((found & true).sum() / (found | true).sum().clamp(min=1))

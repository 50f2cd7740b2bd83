"""A generator of disks on gratings whose masks are known: a real generator, small enough to learn from in a test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from terse_aug.generators import AnnotatedSample, Rendered, SampleKey, Truncation, draw_noise
from terse_aug.generators.samples import MASK_ENDING

TOY = "toy_generator:make_toy"
SIDE = 32
_SIZES = ((8, 12), (16, 10), (32, 8))
"""Side and channels of the features."""


class ToyGenerator:
    """Draws a disk of random place, radius and colors; its features mix what the image is made of, with noise."""

    name = "toy"

    def __init__(self, class_names: Sequence[str] = ("disk", "ball"), fingerprint: str = "0123456789") -> None:
        self.class_names, self.fingerprint = list(class_names), fingerprint
        rng = torch.Generator().manual_seed(1)
        self._mixes = [torch.randn(channels, 5, generator=rng) for _, channels in _SIZES]

    def latent(self, key: SampleKey) -> Tensor:
        return draw_noise(key, 9)

    def render(self, latents: Tensor, labels: Tensor, truncation: Truncation) -> Rendered:
        codes = latents.sigmoid()[:, :, None, None]
        along = (torch.arange(SIDE) + 0.5) / SIDE
        y, x = along[:, None], along[None, :]
        soft = torch.sigmoid(24 * (0.18 + 0.2 * codes[:, 0] - self._distance(codes, x, y)))[:, None]
        grating = 0.5 + 0.5 * torch.sin(20 * (codes[:, 3] * x + codes[:, 4] * y))[:, None]
        background = codes[:, 5:8] * grating
        image = soft * codes[:, [8, 7, 6]] + (1 - soft) * background
        content = torch.cat([soft, grating, grating * soft, x.expand_as(soft), y.expand_as(soft)], 1)
        features = []
        for (side, _), mix in zip(_SIZES, self._mixes, strict=True):
            small = functional.adaptive_avg_pool2d(content, side)
            features.append(functional.relu(torch.einsum("ck,bkhw->bchw", mix, small)))
        return Rendered(image, features)

    def mask(self, key: SampleKey) -> NDArray[np.bool_]:
        codes = self.latent(key).sigmoid()[None, :, None, None]
        along = (torch.arange(SIDE) + 0.5) / SIDE
        distance = self._distance(codes, along[None, :], along[:, None])[0]
        return (distance < 0.18 + 0.2 * codes[0, 0]).numpy()

    def _distance(self, codes: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return ((x - 0.3 - 0.4 * codes[:, 1]).square() + (y - 0.3 - 0.4 * codes[:, 2]).square()).sqrt()


def annotated_samples(generator: ToyGenerator, count: int = 5) -> list[AnnotatedSample]:
    """Samples of both classes with their true masks."""
    keys = [SampleKey(number % 2, number) for number in range(count)]
    return [AnnotatedSample(key, generator.latent(key), generator.mask(key)) for key in keys]


def make_toy() -> ToyGenerator:
    """For ``module:factory``."""
    return ToyGenerator()


def brightness(image: NDArray[np.uint8], label: int) -> float:
    """A classifier, for ``module:function``."""
    return float(image.mean()) / 255


def draw_masks(folder: Path, count: int | None = None) -> list[Path]:
    """What the user does: a mask beside each image, or beside the first ones."""
    entries = json.loads((folder / "samples.json").read_text())["samples"]
    images = []
    for entry in entries[:count]:
        key = SampleKey(entry["label"], entry["number"], entry["seed"])
        images.append(folder / entry["file"])
        mask = Image.fromarray(ToyGenerator().mask(key).astype(np.uint8) * 255)
        mask.save(images[-1].with_name(images[-1].stem + MASK_ENDING))
    return images


def mask_of(image: Path) -> Path:
    return image.with_name(image.stem + MASK_ENDING)

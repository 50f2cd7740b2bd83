"""Small photographs and settings for tests of learning to cut out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from terse_aug.discovery import DiscoverySettings
from terse_aug.discovery.learn import Intervals

TINY = DiscoverySettings(
    size=16,
    categories=4,
    group_size=2,
    latent=8,
    width=16,
    discriminator_width=4,
    segmenter_width=4,
    batch=4,
    rounds=2,
    generator_steps=3,
    segmenter_steps=2,
)
"""Two rounds of a few steps; the images are as small as allowed."""
OFTEN = Intervals(metrics=1, layers=2, checkpoint=1)


def disks(count: int, side: int = 20, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Images uint8 ``[side, side, 3]`` of a bright disk on a dark background."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    images = []
    for _ in range(count):
        y, x = draw.uniform(0.4, 0.6, 2) * side
        disk = np.hypot(rows - y, columns - x) < draw.uniform(0.2, 0.3) * side
        image = np.where(disk[..., None], draw.integers(150, 256, 3), draw.integers(0, 100, 3))
        images.append(image.astype(np.uint8))
    return images


def save_images(folder: Path, images: list[NDArray[np.uint8]]) -> Path:
    """The images as PNG files in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:04d}.png")
    return folder

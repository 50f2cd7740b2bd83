"""Mixing hard examples with real images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from terse_aug.compositing.compose import full_precision
from terse_aug.lockstep.cache import HardExampleCache
from terse_aug.lockstep.mining import Batch
from terse_aug.structures.annotations import Target
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.terse import Terse
from terse_aug.utils.random import generator_for

_ROUNDING = 1e-6
"""A count that is short of a whole number by less than this is rounded up."""


def mix_batches(
    batches: Iterable[Batch],
    cache: HardExampleCache,
    fraction: float,
    seed: int,
    epoch: int = 0,
    terse: Terse | None = None,
) -> Iterator[tuple[list[Tensor], list[Target]]]:
    """Replace a fraction of the images of real batches by hard examples.

    Args:
        batches: real images of any sizes, float or uint8, and targets. Hard examples come in the same type.
        cache: not empty.
        fraction: of the images, in [0, 1]; where it is no whole number of images, the rest is carried over to the next
            batch.
        seed: the draws are a function of it, the epoch and the number of the batch.
        epoch: give another one in every pass, or the same examples are drawn again.
        terse: with a discriminator, which is trained on each batch beside the model: on the objects of the real images
            and on the pasted ones of the others.

    Raises:
        ValueError: a fraction outside [0, 1], an empty cache, or hard examples without masks or keypoints among real
            images with them, or no discriminator.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction: expected a value within [0, 1], got {fraction}")
    if terse is not None and terse.trainer.updater.discriminator is None:
        raise ValueError(
            "terse: expected one with a discriminator, such as policy=Adversarial(discriminator_weight=0.1)"
        )
    seen = replaced = 0
    for number, (images, targets) in enumerate(batches):
        seen += len(targets)
        count = math.floor(fraction * seen + _ROUNDING) - replaced
        replaced += count
        kept = len(targets) - count
        hard_images, hard_targets = (
            cache.sample(count, generator_for(seed, "mixed", epoch, number)) if count else ([], [])
        )
        _check_fields(targets, hard_targets, cache)
        device = images[0].device
        moved = [{name: value.to(device) for name, value in target.items()} for target in hard_targets]
        alike = [_like(image, images[0], cache.pixel_format) for image in hard_images]
        mixed = [*list(images)[:kept], *alike], [*list(targets)[:kept], *moved]
        if terse is not None:
            with full_precision(device):
                for name, value in terse.trainer.updater.train_discriminator(*mixed).items():
                    terse.counters.average(name, float(value))
        yield mixed


def _like(image: Tensor, real: Tensor, pixel_format: PixelFormat) -> Tensor:
    """A float image ``[3, H, W]`` in the type and on the device of a real one."""
    if real.dtype == torch.uint8:
        image = pixel_format.decode_levels(image).round().clamp(0, 255)
    return image.to(real)


def _check_fields(real: Sequence[Target], hard: Sequence[Target], cache: HardExampleCache) -> None:
    """Refuse examples that lack what a detector would look for in every target."""
    for name in ("masks", "keypoints"):
        if any(name in target for target in real) and not all(name in target for target in hard):
            raise ValueError(
                f"{cache.path}: expected hard examples with {name}, as the real targets have; mine on backgrounds "
                f"whose targets have this field, with no entries where there are no objects"
            )

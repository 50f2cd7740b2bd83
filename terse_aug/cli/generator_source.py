"""The source ``generator`` of ``terse-aug bank build``; torch is imported only where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from terse_aug.bank import BuildReport


def build_from_generator(
    generator: str,
    branch: Path,
    out: Path,
    categories: Sequence[str] = (),
    names: Sequence[str] = (),
    count: int = 100,
    first: int = 0,
    seed: int = 0,
    truncation: float = 0.9,
    truncation_method: str = "scaled",
    drop: float = 0.1,
    uncertain_pixels: float = 1.0,
    min_region: int = 30,
    classifier: str | None = None,
    keep: float = 1.0,
    device: str | None = None,
    **options: Any,
) -> BuildReport:
    """Build a bank from a generator of images and its segmentation branch.

    Args:
        generator: layered:FILE, biggan:FOLDER, vqgan:FOLDER, or MODULE:FUNCTION of your own that returns one.
        branch: file of terse-aug learn branch.
        out: the bank to write.
        categories: classes to render, by name or number; by default those of the annotated samples.
        names: of these classes in the bank, in the same order; by default the generator's.
        count: samples to render of each class.
        first: number of the first sample of each class.
        seed: of all samples.
        truncation: keeps latents near the mean, above 0; 1 for whole noise.
        truncation_method: scaled (truncation times normal noise) or truncated-normal (truncation times normal noise
            truncated at 2 deviations, with the generator's statistics for it).
        drop: fraction of the samples left out, those that the heads disagree most about.
        uncertain_pixels: fraction of a sample's pixels, the most uncertain, that its uncertainty is the mean of.
        min_region: connected parts of a mask with fewer px are left out.
        classifier: MODULE:FUNCTION of your own, from an image (uint8 [H, W, 3]) and a class number to how probable the
            class is; needed for keep.
        keep: fraction of the samples kept, those that the classifier finds most probable.
        device: to render on, such as cuda; by default a GPU if there is one.
        options: see :class:`BuildOptions`.
    """
    from terse_aug.generators import Filters, GeneratedSamples
    from terse_aug.generators import build_from_generator as build

    samples = GeneratedSamples(tuple(categories), tuple(names), count, first, seed, truncation, truncation_method)
    filters = Filters(drop, uncertain_pixels, min_region, keep)
    return build(
        generator, branch, out, samples=samples, filters=filters, classifier=classifier, device=device, **options
    )

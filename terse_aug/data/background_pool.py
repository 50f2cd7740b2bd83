"""A pool of background images beside the training images."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terse_aug.bank.inputs.deep_images import Levels, check_levels
from terse_aug.bank.inputs.image_endings import is_image_name
from terse_aug.bank.inputs.images import read_image
from terse_aug.config import PasteConfig, check_fraction
from terse_aug.data.foreground_loader import SampledForegrounds, draw_count_on_background, draws_background
from terse_aug.samplers import DrawRequest, Sampler
from terse_aug.structures.annotations import take_objects
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.structures.validation import ValidatedBatch
from terse_aug.utils.transfer import to_device

_CACHE = 32
_SMALLEST_CROP = 0.6
_UNREADABLE = "background {} cannot be read; the image keeps its own: {}"
_DIM = "background {} has 16 bits and uses fewer, so it is dark: give black_16bit and white_16bit of BackgroundPool"

Source = str | Path | Sequence[str | Path | Tensor]


class BackgroundPool:
    """Images without annotations that replace some of a batch; decoded on demand, the last 32 are kept.

    They should show no object of the detector's classes: nothing on them is labelled but what is pasted.

    Args:
        source: a folder, whose image files at any depth are used in the order of their names; or a sequence of
            paths and of RGB tensors ``[3, H, W]``, uint8 or float in [0, 1].
        probability: fraction of the images that are replaced, 0 to 1.
        black_16bit: value of 16-bit images that is black.
        white_16bit: value of 16-bit images that is white: 4095 for 12 bits, 16383 for 14.

    Raises:
        ValueError: there is no image, a tensor has another shape or range, or a number is outside its range.
    """

    def __init__(
        self, source: Source, probability: float = 0.5, black_16bit: int = 0, white_16bit: int = 65535
    ) -> None:
        check_fraction("probability", probability)
        check_levels(black_16bit, white_16bit)
        self._levels = Levels(black_16bit, white_16bit)
        self._dim: set[int] = set()
        self.probability = probability
        if isinstance(source, str | Path):
            folder = Path(source)
            if not folder.is_dir():
                raise ValueError(f"backgrounds: expected a folder or a sequence of images, got {str(source)!r}")
            files = (path for path in folder.rglob("*") if is_image_name(path) and path.is_file())
            source = sorted(files)
        self._images: list[Path | NDArray[np.uint8]] = [_checked(number, own) for number, own in enumerate(source)]
        if not self._images:
            raise ValueError("backgrounds: expected at least one image, got none")
        self._cache: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """Path of an image, or its number."""
        own = self._images[index]
        return str(own) if isinstance(own, Path) else f"number {index}"

    def is_dim(self, index: int) -> bool:
        """Whether an image that was read has 16 bits of which it uses fewer, and so is dark."""
        return index in self._dim

    def crop(self, index: int, height: int, width: int, generator: torch.Generator) -> NDArray[np.uint8]:
        """A random part of an image, scaled to a size without distortion: its sides are 0.6 to 1 of what would fit.

        Returns:
            uint8 ``[height, width, 3]``, RGB.

        Raises:
            FileNotFoundError, ValueError: the image cannot be read.
        """
        fraction, x, y = torch.rand(3, generator=generator).tolist()
        image = self._read(index)
        factor = (_SMALLEST_CROP + (1 - _SMALLEST_CROP) * fraction) * min(
            image.shape[0] / height, image.shape[1] / width
        )
        rows, columns = max(round(height * factor), 1), max(round(width * factor), 1)
        top, left = round(y * (image.shape[0] - rows)), round(x * (image.shape[1] - columns))
        part = image[top : top + rows, left : left + columns]
        shrinks = rows > height
        scaled = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        return np.asarray(scaled, dtype=np.uint8)

    def _read(self, index: int) -> NDArray[np.uint8]:
        own = self._images[index]
        if not isinstance(own, Path):
            return own
        notes: set[str] = set()
        image = self._cache[index] if index in self._cache else read_image(own, self._levels, notes)
        self._dim |= {index} if notes else set()
        self._cache[index] = image
        self._cache.move_to_end(index)
        if len(self._cache) > _CACHE:
            self._cache.popitem(last=False)
        return image


def _checked(number: int, own: str | Path | Tensor) -> Path | NDArray[np.uint8]:
    if isinstance(own, str | Path):
        return Path(own)
    if not isinstance(own, Tensor) or own.ndim != 3 or own.shape[0] != 3 or 0 in own.shape:
        got = list(own.shape) if isinstance(own, Tensor) else type(own).__name__
        raise ValueError(f"background {number}: expected a path or a tensor [3, H, W], got {got}")
    if own.is_floating_point():
        if not (float(own.min()) >= 0 and float(own.max()) <= 1):
            raise ValueError(f"background {number}: expected a float tensor in [0, 1], or uint8; divide it by 255")
        own = (own.detach() * 255).round().to(torch.uint8)
    elif own.dtype != torch.uint8:
        raise ValueError(f"background {number}: expected a float or uint8 tensor, got {own.dtype}")
    return np.ascontiguousarray(own.cpu().permute(1, 2, 0).numpy())


def put_on_backgrounds(
    batch: ValidatedBatch,
    pool: BackgroundPool,
    paste: PasteConfig,
    pixel_format: PixelFormat,
    sampler: Sampler,
    request: Callable[[Sequence[int]], DrawRequest],
    generator: torch.Generator,
    sampled: Sequence[SampledForegrounds] | None,
) -> tuple[ValidatedBatch, dict[int, int], dict[int, list[int]]]:
    """Replace some images of a batch by crops of backgrounds, without objects.

    Args:
        batch: left untouched.
        pool: the backgrounds.
        paste: ``objects``.
        pixel_format: of the images.
        sampler: pairs backgrounds and foregrounds.
        request: a request for foregrounds, from the number of pastes on each image.
        generator: the only source of randomness.
        sampled: if given, they determine for each image whether it is replaced.

    Returns:
        The batch; by image that was replaced the index of its background in the pool; and by image the foregrounds
        that were drawn for it here. A background that cannot be read replaces nothing: the image stays, and gets the
        foregrounds all the same.
    """
    flags = [
        draws_background(pool.probability, generator) if sampled is None else sampled[number].on_background
        for number in range(len(batch.images))
    ]
    chosen = [number for number, flag in enumerate(flags) if flag and batch.usable[number]]
    foregrounds: dict[int, list[int]] = {}
    if sampled is None:
        draws = sampler.draw_backgrounds(
            request([draw_count_on_background(paste, generator) for _ in chosen]), generator
        )
        foregrounds = {number: draw.foregrounds for number, draw in zip(chosen, draws, strict=True)}
        places = [draw.background for draw in draws]
    else:
        places = torch.randint(len(pool), (len(chosen),), generator=generator).tolist()
    images, targets = list(batch.images), list(batch.targets)
    dropped, warnings, replaced = Counter(batch.dropped), dict(batch.warnings), {}
    for number, place in zip(chosen, places, strict=True):
        image = images[number]
        try:
            crop = pool.crop(place, image.shape[-2], image.shape[-1], generator)
        except (FileNotFoundError, ValueError) as error:
            dropped["background_unreadable"] += 1
            warnings["background_unreadable"] = _UNREADABLE.format(pool.name(place), error)
            continue
        if pool.is_dim(place):
            warnings["background_dim"] = _DIM.format(pool.name(place))
        (images[number],) = to_device([_encoded(crop, image.dtype, pixel_format)], image.device)
        targets[number] = take_objects(targets[number], [])
        replaced[number] = place
    changed = replace(batch, images=images, targets=targets, dropped=dropped, warnings=warnings)
    return changed, replaced, foregrounds


def _encoded(rgb: NDArray[np.uint8], dtype: torch.dtype, pixel_format: PixelFormat) -> Tensor:
    """uint8 ``[h, w, 3]``, RGB, as an image ``[3, h, w]`` of this type."""
    levels = torch.from_numpy(rgb).permute(2, 0, 1)
    if dtype == torch.uint8:
        return (levels.flip(0) if pixel_format.bgr else levels).contiguous()
    return pixel_format.encode(levels.float() / 255).to(dtype).contiguous()

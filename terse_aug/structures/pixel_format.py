"""The value range and channel order of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from terse_aug.utils.transfer import constant


@dataclass(frozen=True)
class PixelFormat:
    """How a pixel of a float image is encoded: ``value = (rgb * scale - mean) / std``, channels in the format's order.

    An 8-bit image has levels 0 to 255 in the same channel order.

    Attributes:
        scale: 1 for images in [0, 1], 255 for images in [0, 255].
        mean: subtracted from each channel after scaling, in the format's channel order.
        std: divides each channel after that.
        bgr: whether the first channel is blue.

    Raises:
        ValueError: a scale or standard deviation that is not above 0.
    """

    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = False

    def __post_init__(self) -> None:
        if self.scale <= 0 or min(self.std) <= 0:
            raise ValueError(f"expected scale and std above 0, got scale {self.scale}, std {self.std}")

    @property
    def plain(self) -> bool:
        """Whether nothing is subtracted and the standard deviation is 1."""
        return self.mean == (0.0, 0.0, 0.0) and self.std == (1.0, 1.0, 1.0)

    @property
    def identity(self) -> bool:
        """Whether images are plain RGB in [0, 1]."""
        return self == PixelFormat()

    def encode(self, rgb: Tensor) -> Tensor:
        """RGB in [0, 1] to this format, both ``[..., 3, h, w]``."""
        if self.identity:
            return rgb
        return self._normalized(rgb.flip(-3) if self.bgr else rgb)

    def encode_levels(self, levels: Tensor) -> Tensor:
        """8-bit levels in this format's channel order, or the same as float, to float in this format."""
        scaled = (levels if levels.is_floating_point() else levels.float()) * (1 / 255)
        if self.scale == 1 and self.plain:
            return scaled
        return self._normalized(scaled)

    def decode_levels(self, image: Tensor) -> Tensor:
        """Float in this format ``[3, ...]`` to levels 0 to 255, float in the same channel order."""
        if self.plain:
            return image * (255 / self.scale)
        shape = (3, *(1 for _ in image.shape[1:]))
        mean, std = (_constant(own, image).view(shape) for own in (self.mean, self.std))
        return (image * std + mean) * (255 / self.scale)

    def as_float(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Images in this format; those that are not 8-bit are given back."""
        return [self.encode_levels(image) if image.dtype == torch.uint8 else image for image in images]

    def decode(self, image: Tensor, levels: bool = False) -> Tensor:
        """This format to RGB in [0, 1], both ``[..., 3, h, w]``.

        Args:
            image: float, or uint8.
            levels: whether float values are levels 0 to 255, as means of 8-bit pixels are.
        """
        if levels or image.dtype == torch.uint8:
            rgb = image.float() * (1 / 255)
        elif self.identity:
            return image
        elif self.plain:
            rgb = image / self.scale
        else:
            rgb = (image * self._column(self.std, image) + self._column(self.mean, image)) / self.scale
        return rgb.flip(-3) if self.bgr else rgb

    def mismatch(self, images: Sequence[Tensor], largest: Sequence[float] = ()) -> str:
        """A text to warn of, where values of float images cannot be in this format; else empty.

        Args:
            images: of a batch.
            largest: absolute value of each, where it is known.
        """
        if not images[0].is_floating_point():
            return ""
        known = largest or [float(image.detach().abs().max()) for image in images]
        value = max((value for value in known if math.isfinite(value)), default=0.0)
        # On a device only what is read anyway is known.
        lowest = 0.0 if largest else min(float(image.detach().min()) for image in images)
        ends = [(end - mean) / std for mean, std in zip(self.mean, self.std, strict=True) for end in (0.0, self.scale)]
        most, least = max(map(abs, ends)), min(ends)
        kind = "largest" if value and not most / 50 < value < most * 1.05 else ""
        # Resizing may go below black by some tenths; images in [-1, 1] have no value that is too large.
        if not kind and math.isfinite(lowest) and lowest < least - (max(ends) - least) / 4:
            kind, value = "lowest", lowest
        if not kind:
            return ""
        return (
            f"the {kind} value of the first batch is {value:.4g}, but pixel_format says that images have values of "
            f"{least:.4g} to {max(ends):.4g}: foregrounds will be too dark or too bright; give "
            "Terse(pixel_format=PixelFormat(...)) with the range, mean and standard deviation of your images"
        )

    def limits(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Black and white in this format, each ``[3, 1, 1]``."""
        mean, std = self._column(self.mean, like), self._column(self.std, like)
        return -mean / std, (self.scale - mean) / std

    def _normalized(self, scaled: Tensor) -> Tensor:
        if self.plain:
            return scaled * self.scale
        return (scaled * self.scale - self._column(self.mean, scaled)) / self._column(self.std, scaled)

    @staticmethod
    def _column(values: tuple[float, float, float], like: Tensor) -> Tensor:
        return _constant(values, like)[:, None, None]


def _constant(values: tuple[float, float, float], like: Tensor) -> Tensor:
    return constant(tuple(values), like.device, like.dtype)

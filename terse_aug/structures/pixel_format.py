"""The value range and channel order of images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PixelFormat:
    """How a pixel is encoded: ``value = (rgb * scale - mean) / std``, channels in the format's order.

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
    def identity(self) -> bool:
        """Whether images are plain RGB in [0, 1]."""
        return self == PixelFormat()

    def encode(self, rgb: Tensor) -> Tensor:
        """RGB in [0, 1] to this format, both ``[..., 3, h, w]``."""
        if self.identity:
            return rgb
        ordered = rgb.flip(-3) if self.bgr else rgb
        return (ordered * self.scale - self._column(self.mean, rgb)) / self._column(self.std, rgb)

    def decode(self, image: Tensor) -> Tensor:
        """This format to RGB in [0, 1], both ``[..., 3, h, w]``."""
        if self.identity:
            return image
        rgb = (image * self._column(self.std, image) + self._column(self.mean, image)) / self.scale
        return rgb.flip(-3) if self.bgr else rgb

    def limits(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Black and white in this format, each ``[3, 1, 1]``."""
        mean, std = self._column(self.mean, like), self._column(self.std, like)
        return -mean / std, (self.scale - mean) / std

    @staticmethod
    def _column(values: tuple[float, float, float], like: Tensor) -> Tensor:
        return like.new_tensor(values)[:, None, None]

"""How far the pixels of a composite may be changed: pure functions.

Shape letters: H and W the image, S the side of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from terse_aug.compositing.compose import Paste
from terse_aug.compositing.label_correction import PastedObject
from terse_aug.structures.annotations import Target
from terse_aug.structures.pixel_format import PixelFormat


@dataclass(frozen=True)
class PerturbationBall:
    """The allowed values of an image's pixels: an interval around each value, clipped at black and white.

    Attributes:
        center: float32 or float64 ``[3, H, W]``, the image, in its own format.
        radius: in the same format, of a shape that broadcasts with it, at least 0.
        low: ``[3, H, W]``.
        high: ``[3, H, W]``.
    """

    center: Tensor
    radius: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, image: Tensor, radius: Tensor, pixel_format: PixelFormat) -> PerturbationBall:
        """The ball around a composite.

        Args:
            image: float ``[3, H, W]``. A value beyond black or white, as an augmentation before may leave it, is not
                moved farther out, nor back in.
            radius: in units of [0, 1], of a shape that broadcasts with the image.
            pixel_format: of the image.
        """
        center = image.detach()
        center = center.float() if center.dtype in (torch.float16, torch.bfloat16) else center
        black, white = pixel_format.limits(center)
        own = radius.to(center) * (white - black)
        low = torch.maximum(center - own, center.minimum(black))
        high = torch.minimum(center + own, center.maximum(white))
        return cls(center, own, low, high)

    def moved(self, image: Tensor, direction: Tensor) -> Tensor:
        """The image moved by a direction ``[3, H, W]`` in units of the radius, and projected back into the ball."""
        return torch.clamp(image + self.radius * direction, self.low, self.high)


def object_pixels(image: Tensor, target: Target, pastes: Sequence[Paste], visible: Sequence[PastedObject]) -> Tensor:
    """The pixels of a composite that show an object, bool ``[H, W]``.

    Those of pasted objects; of other objects those of the mask, or of the box where there is none.

    Args:
        image: ``[3, H, W]``.
        target: corrected.
        pastes: of the image.
        visible: pixels of everything that was pasted, decoys first.
    """
    where = torch.zeros(image.shape[-2:], dtype=torch.bool, device=image.device)
    pasted = {paste.row for paste in pastes}
    before = [row for row in range(len(target["boxes"])) if row not in pasted]
    boxed = before
    if "masks" in target:
        masks = target["masks"][before].bool()
        where |= masks.any(0)
        # An empty mask is how some data sets write a missing one.
        boxed = [row for row, drawn in zip(before, masks.flatten(1).any(1).tolist(), strict=True) if not drawn]
    for left, top, right, bottom in target["boxes"][boxed].tolist():
        where[max(int(top), 0) : -int(-bottom // 1), max(int(left), 0) : -int(-right // 1)] = True
    for own in visible:
        region = own.rectangle.of(where)
        region[torch.from_numpy(own.mask).to(region.device)] = own.label is not None
    return where


def tiled(tile: Tensor, size: tuple[int, int]) -> Tensor:
    """A tile ``[..., S, S]`` repeated over an image ``[..., H, W]``."""
    side = tile.shape[-1]
    rows, columns = (torch.arange(length, device=tile.device) % side for length in size)
    return tile[..., rows[:, None], columns]

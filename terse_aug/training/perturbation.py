"""How far the pixels of a composite may be moved, and patterns to move them by. Pure functions. Imports torch only.

Shape letters: H and W the image, S the side of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from terse_aug.compositing.compose import Paste
from terse_aug.compositing.label_correction import PastedObject
from terse_aug.structures.annotations import Target
from terse_aug.structures.pixel_format import PixelFormat


@dataclass(frozen=True)
class PerturbationBall:
    """Where the pixels of an image may move: a box around each value, cut at black and white.

    Attributes:
        centre: float32 or float64 ``[3, H, W]``, the image, in the host's format.
        radius: in the same format, of a shape that broadcasts with it, at least 0.
        low: ``[3, H, W]``.
        high: ``[3, H, W]``.
    """

    centre: Tensor
    radius: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, image: Tensor, radius: Tensor, pixels: PixelFormat) -> PerturbationBall:
        """The room of a composite.

        Args:
            image: float ``[3, H, W]``. A value beyond black or white, as an augmentation before may leave it, is not
                moved farther out, nor back in.
            radius: in units of [0, 1], of a shape that broadcasts with the image.
            pixels: format of the image.
        """
        centre = image.detach()
        centre = centre.float() if centre.dtype in (torch.float16, torch.bfloat16) else centre
        black, white = pixels.limits(centre)
        own = radius.to(centre) * (white - black)
        low = torch.maximum(centre - own, centre.minimum(black))
        high = torch.minimum(centre + own, centre.maximum(white))
        return cls(centre, own, low, high)

    def moved(self, image: Tensor, direction: Tensor) -> Tensor:
        """The image moved by a direction ``[3, H, W]`` in units of the radius, and put back into the room."""
        return torch.clamp(image + self.radius * direction, self.low, self.high)


def foreground_map(image: Tensor, target: Target, pastes: Sequence[Paste], shown: Sequence[PastedObject]) -> Tensor:
    """The pixels of a composite that show an object, bool ``[H, W]``.

    Those of pasted objects; of the objects that were there, those of the mask, or of the whole box where there is none.

    Args:
        image: ``[3, H, W]``.
        target: corrected.
        pastes: of the image.
        shown: pixels of its pastes, decoys first.
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
    for own in shown:
        region = own.rectangle.of(where)
        region[own.mask.to(region.device)] = own.label is not None
    return where


def tiled(tile: Tensor, shift: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A tile ``[..., S, S]`` repeated over an image ``[..., H, W]``, begun ``shift`` (rows, columns) later."""
    height, width = size
    side = tile.shape[-1]
    rows = (torch.arange(height, device=tile.device) - shift[0]) % side
    columns = (torch.arange(width, device=tile.device) - shift[1]) % side
    return tile[..., rows[:, None], columns]


def folded(values: Tensor, shift: tuple[int, int], side: int) -> Tensor:
    """The transpose of :func:`tiled`: values ``[..., H, W]`` added up where they came from, ``[..., S, S]``."""
    height, width = values.shape[-2:]
    below, beside = -height % side, -width % side
    whole = F.pad(values, (0, beside, 0, below))
    rows, columns = whole.shape[-2] // side, whole.shape[-1] // side
    parts = whole.reshape(*values.shape[:-2], rows, side, columns, side).sum((-4, -2))
    return parts.roll((-shift[0], -shift[1]), (-2, -1))

"""Masks of the objects of a batch that are on a device: corrected there, all at once.

Shape letters: B images, T objects with a mask, K objects afterwards, H and W the largest height and width, N pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from terse_aug.compositing.label_correction import Correction
from terse_aug.compositing.layers import Frames
from terse_aug.compositing.mask_extents import Extent, MaskChange
from terse_aug.compositing.patches import Rectangle
from terse_aug.compositing.pixel_list import padded_size
from terse_aug.compositing.render import Rendered
from terse_aug.structures.annotations import Target
from terse_aug.utils.transfer import to_device


class MaskStack:
    """The masks of all objects, and what layers leave of them.

    Args:
        targets: of B images; some may have no masks.
        frames: of the images.
        rendered: layers, all of them in front of the objects.

    Attributes:
        changes: int ``[T, 6]`` on the device: pixels before, then top, left, bottom, right and pixels of what is left.
    """

    def __init__(self, targets: Sequence[Target], frames: Frames, rendered: Rendered) -> None:
        self._frames, self._rendered = frames, rendered
        self._size = padded_size(frames)
        self._rows: dict[int, range] = {}
        masks = {number: target["masks"] for number, target in enumerate(targets) if "masks" in target}
        total = 0
        for number, own in masks.items():
            self._rows[number], total = range(total, total + len(own)), total + len(own)
        self._types = {number: own.dtype for number, own in masks.items()}
        self._masks = _padded(list(masks.values()), self._size)
        cells = rendered.row("cell") + rendered.column
        cover = _marked(len(frames) * self._size[0] * self._size[1], torch.where(rendered.mask, cells, -1))
        images = torch.tensor([number for number, own in masks.items() for _ in range(len(own))], dtype=torch.long)
        (images,) = to_device([images], self._masks.device)
        hidden = cover.view(len(frames), *self._size).index_select(0, images)
        self._left = self._masks.bool() & ~hidden
        before = self._masks.bool().flatten(1).sum(1, keepdim=True)
        self.changes = torch.cat([before, extents_at_once(self._left)], 1)

    def changes_of(self, image: int, changes: Tensor) -> list[MaskChange] | None:
        """Those of an image's objects, ``None`` if it has no masks.

        Args:
            image: its number.
            changes: on the CPU.
        """
        if image not in self._rows:
            return None
        rows = changes[self._rows[image].start : self._rows[image].stop].tolist()
        return [
            MaskChange(before, Extent(Rectangle(top, left, bottom, right), pixels))
            for before, top, left, bottom, right, pixels in rows
        ]

    def corrected(
        self, corrections: Mapping[int, Correction], layers: Mapping[int, Sequence[int]], count: int
    ) -> dict[int, Tensor]:
        """The masks of the corrected targets, by image, in the type that they had.

        Args:
            corrections: by image that has masks and layers.
            layers: for each image the numbers of the layers that its correction is about.
            count: of all layers.
        """
        kept: list[int] = []
        places: list[int] = []
        row_of_layer, total = [-1] * count, 0
        spans = {}
        for image, correction in corrections.items():
            spans[image] = slice(total, total + len(correction.target["boxes"]))
            kept += [self._rows[image][row] for row in correction.kept]
            places += range(total, total + len(correction.kept))
            for layer, row in zip(layers[image], correction.rows, strict=True):
                row_of_layer[layer] = -1 if row is None else total + row
            total = spans[image].stop
        arrays = [torch.tensor(kept).long(), torch.tensor(places).long(), torch.tensor(row_of_layer).long()]
        rows, destinations, stack_rows = to_device(arrays, self._masks.device)
        stack = self._pasted(stack_rows, total).to(self._masks.dtype)
        left = self._left if self._masks.dtype == torch.bool else self._masks * self._left
        stack.index_copy_(0, destinations, left.index_select(0, rows))
        return {
            image: stack[span, : self._frames[image][0], : self._frames[image][1]].to(self._types[image])
            for image, span in spans.items()
        }

    def _pasted(self, rows: Tensor, total: int) -> Tensor:
        """bool ``[total, H, W]``: the visible pixels of each layer, at its row; -1 for none."""
        rendered, (height, width) = self._rendered, self._size
        layer = rendered.row("layer")
        visible = rendered.mask
        if rendered.overlaps:
            visible = visible & ~rendered.of_later(visible).any(0)
        row = rows.index_select(0, layer)
        image = rendered.row("image")
        place = rendered.row("cell") + rendered.column + (row - image) * (height * width)
        return _marked(total * height * width, torch.where(visible & (row >= 0), place, -1)).view(-1, height, width)


def _padded(masks: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Masks ``[n_i, h_i, w_i]`` as one tensor ``[T, H, W]``."""
    if all(own.shape[1:] == size for own in masks):
        return torch.cat(list(masks))
    dtype = torch.uint8 if any(own.dtype == torch.uint8 for own in masks) else torch.bool
    stack = torch.zeros(sum(map(len, masks)), *size, dtype=dtype, device=masks[0].device)
    start = 0
    for own in masks:
        stack[start : start + len(own), : own.shape[1], : own.shape[2]] = own
        start += len(own)
    return stack


def extents_at_once(masks: Tensor) -> Tensor:
    """Top, left, bottom and right of the pixels set in bool ``[T, H, W]``, 0 where none are, and their number."""
    sides: dict[str, Tensor] = {}
    for axis, (low, high) in ((2, ("top", "bottom")), (1, ("left", "right"))):
        line = masks.any(axis)
        after = torch.arange(1, line.shape[1] + 1, device=masks.device)
        end = (line * after).amax(1)
        sides[high] = end
        sides[low] = torch.where(line, after - 1, end[:, None]).amin(1)
    pixels = masks.flatten(1).sum(1)
    return torch.stack([sides["top"], sides["left"], sides["bottom"], sides["right"], pixels], 1)


def _marked(count: int, places: Tensor) -> Tensor:
    """bool ``[count]``: set at these places; -1 for none."""
    marks = torch.zeros(count + 1, dtype=torch.bool, device=places.device)
    return marks.index_fill_(0, (places + 1).long(), True)[1:]

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
        changes: int ``[T, 6]`` on the device: pixels before, and of what is left those of :func:`extents_at_once`.
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
        self._cells = rendered.row("cell") + rendered.column + 1
        free = _marked(len(frames) * self._size[0] * self._size[1], (self._cells * rendered.mask).long(), False)
        images = torch.tensor([number for number, own in masks.items() for _ in range(len(own))], dtype=torch.long)
        (images,) = to_device([images], self._masks.device)
        self._left = self._masks * free.view(len(frames), *self._size).index_select(0, images)
        before = self._masks.count_nonzero((1, 2))
        self.changes = torch.cat([before[:, None], extents_at_once(self._left)], 1)

    def changes_of(self, image: int, changes: Tensor) -> list[MaskChange] | None:
        """Those of an image's objects, ``None`` if it has no masks.

        Args:
            image: its number.
            changes: on the CPU.
        """
        if image not in self._rows:
            return None
        rows = changes[self._rows[image].start : self._rows[image].stop].tolist()
        return [MaskChange(before, extent_in(self._size, values)) for before, *values in rows]

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
        height, width = self._size
        # From the cells of a layer in a map of all images to those in the stack; before its beginning for none.
        shifts, total = [-len(self._frames) * height * width] * count, 0
        spans = {}
        for image, correction in corrections.items():
            spans[image] = slice(total, total + len(correction.target["boxes"]))
            kept += [self._rows[image][row] for row in correction.kept]
            places += range(total, total + len(correction.kept))
            for layer, row in zip(layers[image], correction.rows, strict=True):
                if row is not None:
                    shifts[layer] = (total + row - image) * height * width
            total = spans[image].stop
        arrays = [torch.tensor(own, dtype=torch.long) for own in (kept, places, shifts)]
        rows, destinations, there = to_device(arrays, self._masks.device)
        stack = self._pasted(there, total).to(self._masks.dtype)
        stack.index_copy_(0, destinations, self._left.index_select(0, rows))
        return {
            image: stack[span, : self._frames[image][0], : self._frames[image][1]].to(self._types[image])
            for image, span in spans.items()
        }

    def _pasted(self, shifts: Tensor, total: int) -> Tensor:
        """bool ``[total, H, W]``: the visible pixels of each layer, shifted by ``[L]`` cells."""
        rendered, (height, width) = self._rendered, self._size
        visible = rendered.mask
        if rendered.overlaps:
            visible = visible > rendered.of_later(visible).any(0)
        places = (self._cells + shifts.index_select(0, rendered.row("layer"))) * visible
        return _marked(total * height * width, places.clamp_(min=0), True).view(-1, height, width)


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
    """Distances of what is set in ``[T, H, W]`` from the sides, and its pixels; see :func:`extent_in`.

    Returns:
        int ``[T, 5]``: of the last row from above the image and of the first from below, likewise of columns, number.
    """
    weights = [torch.stack([torch.arange(1, side + 1), torch.arange(side, 0, -1)]) for side in masks.shape[1:]]
    far = [
        (masks.any(axis)[:, None] * weight).amax(2)
        for axis, weight in zip((2, 1), to_device(weights, masks.device), strict=True)
    ]
    return torch.cat([*far, masks.count_nonzero((1, 2))[:, None]], 1)


def extent_in(size: tuple[int, int], values: Sequence[int]) -> Extent:
    """What :func:`extents_at_once` has found of a mask of some size; an empty rectangle at 0 where nothing is set."""
    bottom, from_below, right, from_right, pixels = values
    top, left = (size[0] - from_below, size[1] - from_right) if pixels else (0, 0)
    return Extent(Rectangle(top, left, bottom, right), pixels)


def _marked(count: int, places: Tensor, mark: bool) -> Tensor:
    """bool ``[count]``: ``mark`` at these places, counted from 1, and not elsewhere; 0 for none."""
    marks = torch.full((count + 1,), not mark, device=places.device)
    return marks.index_fill_(0, places, mark)[1:]

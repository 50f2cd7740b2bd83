"""Correct the annotation of an image after pasting.

:func:`correct_target` is the one place where boxes, masks, keypoints and ids follow the pixels.
Shape letters: N objects before, K pastes, H and W the image.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terse_aug.compositing.mask_extents import Extent, Mask, MaskChange, count_pixels, extent_of, extents_of
from terse_aug.compositing.patches import Rectangle
from terse_aug.structures.annotations import OBJECT_FIELDS, Target
from terse_aug.utils.memory import zeros


@dataclass(frozen=True)
class PastedObject:
    """What label correction needs to know of one paste.

    Attributes:
        rectangle: the pixels it was blended into.
        mask: bool ``[h, w]`` over the rectangle: the pixels that show it; an array, because slices of it are cheaper.
        label: class index, or ``None`` for a decoy, which covers but is not annotated.
        full_area: pixels it would show with nothing in front and no frame.
        keypoints: float ``[k, 3]`` in image pixels, or ``None``.
    """

    rectangle: Rectangle
    mask: Mask
    label: int | None
    full_area: float
    keypoints: Tensor | None = None


@dataclass(frozen=True)
class Correction:
    """The outcome of :func:`correct_target`.

    Attributes:
        target: the corrected annotation, the surviving original objects first and in order.
        rows: for each paste, its row in ``target``, or ``None`` where it has no label.
        kept: rows of the original objects that are kept.
        dropped: counts: ``occluded`` (an original object hidden beyond the threshold),
            ``paste_hidden`` (a pasted object hidden or cut off beyond it).
    """

    target: Target
    rows: list[int | None]
    kept: list[int]
    dropped: Counter[str]


def correct_target(
    target: Target,
    size: tuple[int, int],
    pastes: Sequence[PastedObject],
    min_visibility: float,
    changes: Sequence[MaskChange] | None = None,
) -> Correction:
    """Bring an annotation in step with an image onto which objects were pasted.

    An object that a paste covers in part gets the mask of its visible pixels and their bounding box; an object
    without a mask counts as filling its box. An object that keeps less than ``min_visibility`` of its area, or
    nothing at all, is left out. Pasted objects are appended in the order of pasting, later ones in
    front. Objects that no paste touches keep their annotation unchanged;
    visible keypoints that a paste covers become labelled but not visible.

    Args:
        target: a checked sample target on the CPU; left untouched.
        size: (H, W).
        pastes: in the order of pasting, the last in front.
        min_visibility: fraction in [0, 1].
        changes: for each object that of its mask, for a target whose masks stay on a device.

    Returns:
        The corrected target, with the fields that ``target`` has and no others.
    """
    labelled = [index for index, paste in enumerate(pastes) if paste.label is not None]
    pasted = _pasted_rows(target, [pastes[index] for index in labelled], size)
    cover = _Cover.around(pastes)
    shown = _show_pastes(pastes, pasted.get("keypoints"), cover)
    originals = _hide_originals(target, size, cover, changes)
    kept = [row for row, view in enumerate(originals) if not view.touched or view.enough(min_visibility)]
    added = [row for row, view in enumerate(shown) if view.enough(min_visibility)]
    corrected = dict(target)
    for name, rows in pasted.items():
        corrected[name] = torch.cat([_taken(target[name], kept), _taken(rows, added)])
    if "keypoints" in target:
        _cover_keypoints(corrected["keypoints"][: len(kept)], cover)
    views = [originals[row] for row in kept] + [shown[row] for row in added]
    _write_views(corrected, views, size)
    row_of = {labelled[row]: new for new, row in enumerate(added, start=len(kept))}
    dropped = Counter(occluded=len(originals) - len(kept), paste_hidden=len(labelled) - len(added))
    return Correction(corrected, [row_of.get(index) for index in range(len(pastes))], kept, +dropped)


@dataclass(frozen=True)
class _View:
    """What is visible of an object.

    Attributes:
        box: bounding box, XYXY pixels.
        area: pixels.
        full_area: pixels it would show uncovered.
        window: what ``mask`` covers.
        mask: ``[h, w]``; ``None`` for an object without one, or where it is elsewhere.
        touched: whether a paste covers some of it, or it is one.
        counted: whether its area is the number of its pixels.
    """

    box: list[float]
    area: int
    full_area: float
    window: Rectangle
    mask: Mask | None
    touched: bool = True
    counted: bool = True

    def enough(self, min_visibility: float) -> bool:
        return self.area > 0 and self.area >= min_visibility * self.full_area


@dataclass(frozen=True)
class _Cover:
    """The pixels that pastes cover, as a map over the rectangle around all of them: bool ``[h, w]``."""

    frame: Rectangle
    covered: NDArray[np.bool_]

    @classmethod
    def around(cls, pastes: Sequence[PastedObject]) -> _Cover:
        """A map for these pastes on which nothing is covered yet."""
        boxes = [paste.rectangle for paste in pastes if not paste.rectangle.empty] or [Rectangle(0, 0, 0, 0)]
        frame = Rectangle(
            min(box.top for box in boxes),
            min(box.left for box in boxes),
            max(box.bottom for box in boxes),
            max(box.right for box in boxes),
        )
        return cls(frame, np.zeros((frame.bottom - frame.top, frame.right - frame.left), np.bool_))

    def within(self, rectangle: Rectangle) -> NDArray[np.bool_]:
        """The view ``[h, w]`` of a rectangle inside the frame."""
        return self.covered[rectangle.within(self.frame)]


def _pasted_rows(target: Target, pastes: Sequence[PastedObject], size: tuple[int, int]) -> Target:
    """A row for each paste in every per-object field but the masks; boxes and areas still zero."""
    rows = {}
    for name in OBJECT_FIELDS:
        if name not in target or name == "masks":
            continue
        value = target[name]
        if name == "labels":
            rows[name] = value.new_tensor([paste.label for paste in pastes])
        elif name == "ids":
            rows[name] = _fresh_ids(value, len(pastes))
        elif name == "keypoints":
            rows[name] = _pasted_keypoints(value, pastes, size)
        else:
            rows[name] = value.new_zeros((len(pastes), *value.shape[1:]))
    return rows


def _fresh_ids(ids: Tensor, added: int) -> Tensor:
    """Negative ids that no object of the image has: real ids are not negative, so pasted objects can be recognized."""
    lowest = min(0, int(ids.min())) if len(ids) else 0
    return torch.arange(lowest - 1, lowest - 1 - added, -1, dtype=ids.dtype, device=ids.device)


def _pasted_keypoints(keypoints: Tensor, pastes: Sequence[PastedObject], size: tuple[int, int]) -> Tensor:
    """``[K, k, 3]``; zeros where a foreground has none or they lie outside the frame."""
    rows = keypoints.new_zeros((len(pastes), *keypoints.shape[1:]))
    limits = keypoints.new_tensor([size[1], size[0]])
    for row, paste in zip(rows, pastes, strict=True):
        if paste.keypoints is None:
            continue
        points = paste.keypoints.to(row)
        inside = ((points[:, :2] >= 0) & (points[:, :2] < limits)).all(1) & (points[:, 2] > 0)
        row[inside] = points[inside]
    return rows


def _show_pastes(pastes: Sequence[PastedObject], keypoints: Tensor | None, cover: _Cover) -> list[_View]:
    """Mark what pastes cover, and find the visible part of each one with a label.

    Args:
        pastes: the last in front.
        keypoints: of those with a label, ``[L, k, 3]``; the flags of covered ones are lowered in place.
        cover: with nothing covered yet; filled in place.

    Returns:
        The views of the L pastes with a label, in their order.
    """
    views: list[_View] = []
    last = sum(paste.label is not None for paste in pastes) - 1
    for paste in reversed(pastes):  # from front to back: what is covered so far is what hides the next one
        if paste.label is not None:
            if keypoints is not None:
                _cover_keypoints(keypoints[last - len(views)], cover)
            views.append(_paste_view(paste, cover))
        if not paste.rectangle.empty:
            covered = cover.within(paste.rectangle)
            covered |= paste.mask
    return views[::-1]


def _paste_view(paste: PastedObject, cover: _Cover) -> _View:
    window = paste.rectangle
    if window.empty:
        return _View([0.0] * 4, 0, paste.full_area, window, paste.mask)
    visible = paste.mask & ~cover.within(window)
    extent = extent_of(visible, window)
    return _View(extent.box, extent.pixels, paste.full_area, window, visible)


def _hide_originals(
    target: Target, size: tuple[int, int], cover: _Cover, changes: Sequence[MaskChange] | None
) -> list[_View]:
    """The views of the objects that were there before.

    An object whose mask is empty, as some data sets write a missing one, counts like one without a mask.
    """
    boxes = target["boxes"].tolist()
    regions = [_pixels_of(box, size) for box in boxes]
    if changes is not None:
        return [
            _changed_view(box, change) if change.before else _box_view(box, region, cover)
            for box, region, change in zip(boxes, regions, changes, strict=True)
        ]
    if "masks" not in target:
        return [_box_view(box, region, cover) for box, region in zip(boxes, regions, strict=True)]
    masks = target["masks"].numpy()
    return [
        _mask_view(box, mask, extent, cover) if extent.pixels else _box_view(box, region, cover)
        for box, mask, extent, region in zip(boxes, masks, extents_of(masks, regions), regions, strict=True)
    ]


def _changed_view(box: list[float], change: MaskChange) -> _View:
    """The view of an object whose mask is elsewhere."""
    after, touched = change.after, change.after.pixels != change.before
    return _View(after.box if touched else box, after.pixels, change.before, after.window, None, touched)


def _mask_view(box: list[float], mask: Mask, extent: Extent, cover: _Cover) -> _View:
    """The view of an object with a mask ``[H, W]``."""
    window, overlap = extent.window, extent.window.overlap(cover.frame)
    whole = _View(box, extent.pixels, extent.pixels, window, window.of(mask), touched=False)
    if overlap.empty:
        return whole
    left = overlap.of(mask) * ~cover.within(overlap)
    if np.array_equal(left, overlap.of(mask)):
        return whole
    visible = window.of(mask).copy()
    visible[overlap.within(window)] = left
    rest = extent_of(visible, window)
    return _View(rest.box, rest.pixels, extent.pixels, window, visible)


def _box_view(box: list[float], region: Rectangle, cover: _Cover) -> _View:
    """The view of an object that fills its box.

    A side of the box moves only where all pixels along it are covered; the others keep their coordinates.
    """
    shape = (region.bottom - region.top, region.right - region.left)
    whole, overlap = Extent(region, shape[0] * shape[1]), region.overlap(cover.frame)
    if overlap.empty or not count_pixels(cover.within(overlap)):
        return _View(box, whole.pixels, whole.pixels, region, None, touched=False, counted=False)
    visible = np.ones(shape, np.bool_)
    visible[overlap.within(region)] = ~cover.within(overlap)
    rest = extent_of(visible, region)
    moved = [old if side == limit else side for old, side, limit in zip(box, rest.box, whole.box, strict=True)]
    return _View(moved, rest.pixels, whole.pixels, region, None, counted=False)


def _pixels_of(box: list[float], size: tuple[int, int]) -> Rectangle:
    """The pixels whose center lies in a box, at least one."""
    height, width = size
    left = min(max(math.ceil(box[0] - 0.5), 0), width - 1)
    top = min(max(math.ceil(box[1] - 0.5), 0), height - 1)
    right = min(max(math.ceil(box[2] - 0.5), left + 1), width)
    bottom = min(max(math.ceil(box[3] - 0.5), top + 1), height)
    return Rectangle(top, left, bottom, right)


def _taken(values: Tensor, rows: Sequence[int]) -> Tensor:
    """These rows, which ascend."""
    return values if len(rows) == len(values) else values[list(rows)]


def _write_views(corrected: Target, views: Sequence[_View], size: tuple[int, int]) -> None:
    """Write boxes, areas and masks of all objects."""
    if "masks" in corrected:
        corrected["masks"] = zeros((len(views), *size), corrected["masks"])
        for mask, view in zip(corrected["masks"].numpy(), views, strict=True):
            if view.mask is not None:
                view.window.of(mask)[:] = view.mask
    touched = [row for row, view in enumerate(views) if view.touched]
    if not touched:
        return
    boxes = corrected["boxes"]
    boxes[touched] = boxes.new_tensor([views[row].box for row in touched])
    if "area" in corrected:
        area = corrected["area"]
        for row in touched:
            fraction = views[row].area / max(views[row].full_area, 1)
            area[row] = views[row].area if views[row].counted else area[row] * fraction


def _cover_keypoints(keypoints: Tensor, cover: _Cover) -> None:
    """Lower the flag of covered keypoints from 2 (visible) to 1 (labelled, not visible), as COCO has it, in place.

    A keypoint can lie outside the mask or box of its object, so those of every object are checked.

    Args:
        keypoints: ``[..., 3]``.
        cover: of the pastes in front of these objects.
    """
    if cover.frame.empty:
        return
    x = keypoints[..., 0].floor().long() - cover.frame.left
    y = keypoints[..., 1].floor().long() - cover.frame.top
    height, width = cover.covered.shape
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    covered = torch.from_numpy(cover.covered)[y.clamp(0, height - 1), x.clamp(0, width - 1)]
    hidden = inside & covered & (keypoints[..., 2] == 2)
    keypoints[..., 2].masked_fill_(hidden, 1)

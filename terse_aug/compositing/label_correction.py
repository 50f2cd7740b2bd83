"""Correct the annotation of an image after pasting.

:func:`correct_target` is the one place where boxes, masks, keypoints and ids follow the pixels.
Shape letters: N objects before, K pastes, H and W the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terse_aug.compositing.mask_extents import (
    Extent,
    Mask,
    MaskChange,
    count_pixels,
    extent_of,
    pixels_of_box,
    window_of,
)
from terse_aug.compositing.patches import Rectangle
from terse_aug.structures.annotations import Target


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
    objects = [pastes[index] for index in labelled]
    cover = _Cover.around(pastes)
    keypoints = _pasted_keypoints(target["keypoints"], objects, size) if "keypoints" in target else None
    shown = _show_pastes(pastes, keypoints, cover)
    originals = _hide_originals(target, size, cover, changes)
    kept = [row for row, view in enumerate(originals) if not view.touched or view.enough(min_visibility)]
    added = [row for row, view in enumerate(shown) if view.enough(min_visibility)]
    corrected = dict(target)
    for name, values in _field_values(target, originals, kept, objects, shown, added).items():
        corrected[name] = target[name].new_tensor(values) if values else target[name][:0]
    if keypoints is not None:
        corrected["keypoints"] = torch.cat([target["keypoints"][kept], keypoints[added]])
        _cover_keypoints(corrected["keypoints"][: len(kept)], cover)
    if "masks" in target:
        views = [originals[row] for row in kept] + [shown[row] for row in added]
        corrected["masks"] = _masks(views, size, target["masks"].numpy().dtype)
    row_of = {labelled[row]: new for new, row in enumerate(added, start=len(kept))}
    dropped = {"occluded": len(originals) - len(kept), "paste_hidden": len(labelled) - len(added)}
    dropped = {reason: count for reason, count in dropped.items() if count}
    return Correction(corrected, [row_of.get(index) for index in range(len(pastes))], kept, Counter(dropped))


@dataclass(frozen=True)
class _View:
    """What is visible of an object.

    Attributes:
        box: bounding box, XYXY pixels.
        area: pixels.
        full_area: pixels it would show uncovered.
        window: what ``mask`` covers.
        mask: uint8 ``[h, w]``; ``None`` for an object without one, or where it is elsewhere.
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

    def area_given(self, before: float) -> float:
        """The value of its field ``area``, given that before pasting."""
        if not self.touched:
            return before
        return self.area if self.counted else before * (self.area / max(self.full_area, 1))


@dataclass(frozen=True)
class _Cover:
    """The pixels that pastes cover, as a map over the rectangle around all of them.

    Attributes:
        frame: the rectangle.
        free: uint8 ``[h, w]``: 0 where a paste covers, else 255, so that ANDed with a mask it leaves what is visible.
    """

    frame: Rectangle
    free: NDArray[np.uint8]

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
        return cls(frame, np.full((frame.bottom - frame.top, frame.right - frame.left), 255, np.uint8))

    def within(self, rectangle: Rectangle) -> NDArray[np.uint8]:
        """The view ``[h, w]`` of a rectangle inside the frame."""
        return self.free[rectangle.within(self.frame)]

    def visible(self, mask: Mask, rectangle: Rectangle) -> Mask:
        """What is visible of a bool or uint8 mask ``[h, w]`` over a rectangle inside the frame."""
        return cv2.bitwise_and(mask.view(np.uint8), self.within(rectangle))

    def add(self, paste: PastedObject) -> None:
        """Mark what a paste covers."""
        if not paste.rectangle.empty:
            free = self.within(paste.rectangle)
            cv2.bitwise_and(free, paste.mask.view(np.uint8) - np.uint8(1), free)


def _field_values(
    target: Target,
    originals: Sequence[_View],
    kept: Sequence[int],
    pastes: Sequence[PastedObject],
    shown: Sequence[_View],
    added: Sequence[int],
) -> dict[str, list[Any]]:
    """The values of every per-object field but masks and keypoints: of the objects that are kept, then of the pastes.

    Fresh ids are negative and none that the image has: real ids are not negative, so pastes can be recognized.
    """
    names = ("labels", "ids", "area", "iscrowd")
    before: dict[str, list[Any]] = {name: target[name].tolist() for name in names if name in target}
    lowest = min([0, *before.get("ids", [])])
    pasted = {
        "labels": [pastes[row].label for row in added],
        "ids": [lowest - 1 - row for row in added],
        "area": [shown[row].area for row in added],
        "iscrowd": [0] * len(added),
    }
    if "area" in before:
        before["area"] = [view.area_given(area) for view, area in zip(originals, before["area"], strict=True)]
    values = {name: [own[row] for row in kept] + pasted[name] for name, own in before.items()}
    values["boxes"] = [originals[row].box for row in kept] + [shown[row].box for row in added]
    return values


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
        cover.add(paste)
    return views[::-1]


def _paste_view(paste: PastedObject, cover: _Cover) -> _View:
    window = paste.rectangle
    if window.empty:
        return _View([0.0] * 4, 0, paste.full_area, window, None)
    visible = cover.visible(paste.mask, window)
    extent = extent_of(visible, window)
    return _View(extent.box, extent.pixels, paste.full_area, window, visible)


def _hide_originals(
    target: Target, size: tuple[int, int], cover: _Cover, changes: Sequence[MaskChange] | None
) -> list[_View]:
    """The views of the objects that were there before.

    An object whose mask is empty, as some data sets write a missing one, counts like one without a mask.
    """
    boxes = target["boxes"].tolist()
    regions = [pixels_of_box(box, size) for box in boxes]
    if changes is not None:
        return [
            _changed_view(box, change) if change.before else _box_view(box, region, cover)
            for box, region, change in zip(boxes, regions, changes, strict=True)
        ]
    if "masks" not in target:
        return [_box_view(box, region, cover) for box, region in zip(boxes, regions, strict=True)]
    masks = target["masks"].numpy().view(np.uint8)
    return [
        _mask_view(box, mask, region, cover) or _box_view(box, region, cover)
        for box, mask, region in zip(boxes, masks, regions, strict=True)
    ]


def _changed_view(box: list[float], change: MaskChange) -> _View:
    """The view of an object whose mask is elsewhere."""
    after, touched = change.after, change.after.pixels != change.before
    return _View(after.box if touched else box, after.pixels, change.before, after.window, None, touched)


def _mask_view(box: list[float], mask: Mask, region: Rectangle, cover: _Cover) -> _View | None:
    """The view of an object with a mask ``[H, W]``; ``None`` if that is empty."""
    window, pixels = window_of(mask, region)
    if not pixels:
        return None
    whole = _View(box, pixels, pixels, window, window.of(mask), touched=False)
    overlap = window.overlap(cover.frame)
    if overlap.empty:
        return whole
    left = cover.visible(overlap.of(mask), overlap)
    if count_pixels(left) == count_pixels(overlap.of(mask)):
        return whole
    visible = window.of(mask).copy()
    visible[overlap.within(window)] = left
    rest = extent_of(visible, window)
    return _View(rest.box, rest.pixels, pixels, window, visible)


def _box_view(box: list[float], region: Rectangle, cover: _Cover) -> _View:
    """The view of an object that fills its box.

    A side of the box moves only where all pixels along it are covered; the others keep their coordinates.
    """
    shape = (region.bottom - region.top, region.right - region.left)
    whole, overlap = Extent(region, shape[0] * shape[1]), region.overlap(cover.frame)
    if overlap.empty or cover.within(overlap).all():
        return _View(box, whole.pixels, whole.pixels, region, None, touched=False, counted=False)
    visible = np.ones(shape, np.uint8)
    visible[overlap.within(region)] = cover.within(overlap)
    rest = extent_of(visible, region)
    moved = [old if side == limit else side for old, side, limit in zip(box, rest.box, whole.box, strict=True)]
    return _View(moved, rest.pixels, whole.pixels, region, None, counted=False)


def _masks(views: Sequence[_View], size: tuple[int, int], dtype: np.dtype[Any]) -> Tensor:
    """The masks of objects, ``[n, H, W]``."""
    masks = np.zeros((len(views), *size), dtype)
    for mask, view in zip(masks.view(np.uint8), views, strict=True):
        if view.mask is not None:
            view.window.of(mask)[:] = view.mask
    return torch.from_numpy(masks)


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
    height, width = cover.free.shape
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    free = torch.from_numpy(cover.free)[y.clamp(0, height - 1), x.clamp(0, width - 1)]
    hidden = inside & (free == 0) & (keypoints[..., 2] == 2)
    keypoints[..., 2].masked_fill_(hidden, 1)

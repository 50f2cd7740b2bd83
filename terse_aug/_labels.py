"""Correct the annotation of an image after pasting. Imports torch, and numpy and OpenCV for reading masks.

:func:`correct_target` is the one place where boxes, masks, keypoints and ids follow the pixels.
Shape letters: N objects before, K pastes, H and W the image.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from terse_aug._compositor import Rectangle
from terse_aug._sample import OBJECT_FIELDS, Target, take_objects


@dataclass(frozen=True)
class PastedObject:
    """What the labels have to know of one paste.

    Attributes:
        rectangle: the pixels it was blended into.
        mask: bool ``[h, w]`` over the rectangle: the pixels that show it.
        label: class index, or ``None`` for a decoy, which covers but is not annotated.
        full_area: pixels it would show with nothing in front and no frame.
        keypoints: float ``[k, 3]`` in image pixels, or ``None``.
    """

    rectangle: Rectangle
    mask: Tensor
    label: int | None
    full_area: float
    keypoints: Tensor | None = None


@dataclass(frozen=True)
class Correction:
    """The outcome of :func:`correct_target`.

    Attributes:
        target: the corrected annotation, the surviving original objects first and in order.
        rows: for each paste, its row in ``target``, or ``None`` where it has no label.
        dropped: counts: ``occluded`` (an original object hidden beyond the threshold),
            ``paste_hidden`` (a pasted object hidden or cut off beyond it).
    """

    target: Target
    rows: list[int | None]
    dropped: Counter[str]


def correct_target(
    target: Target, size: tuple[int, int], pastes: Sequence[PastedObject], min_visibility: float
) -> Correction:
    """Bring an annotation in step with an image onto which objects were pasted.

    An object that a paste covers in part gets the mask of its visible pixels and their bounding box; an object
    without a mask counts as filling its box. An object of which less than ``min_visibility`` of the area it had
    remains, or nothing at all, is left out. Pasted objects are appended in the order of pasting, later ones in
    front. Objects that no paste touches keep their annotation to the letter;
    visible keypoints that a paste covers become labelled but not visible.

    Args:
        target: a checked sample target; left untouched.
        size: (H, W).
        pastes: in the order of pasting, the last in front.
        min_visibility: share in [0, 1].

    Returns:
        The corrected target, with the fields that ``target`` has and no others.
    """
    count = len(target["boxes"])
    labelled = [index for index, paste in enumerate(pastes) if paste.label is not None]
    frame, front = _front_map(pastes, target["boxes"].device)
    grown = _grow(target, size, [pastes[index] for index in labelled])
    views: dict[int, _View] = {}
    if not frame.empty:
        views = _hide_originals(grown, count, size, frame, front)
    for row, index in enumerate(labelled, start=count):
        views[row] = _show_paste(grown, row, pastes[index], index, frame, front)
    _write_views(grown, views, count)
    if "keypoints" in grown and not frame.empty:
        _cover_keypoints(grown, [-1] * count + labelled, frame, front)
    keep = [row for row in range(count + len(labelled)) if row not in views or views[row].enough(min_visibility)]
    dropped = Counter(
        occluded=count - sum(row < count for row in keep),
        paste_hidden=len(labelled) - sum(row >= count for row in keep),
    )
    position = {row: new for new, row in enumerate(keep)}
    rows = {index: position.get(row) for row, index in enumerate(labelled, start=count)}
    corrected = take_objects(grown, keep) if dropped.total() else grown
    return Correction(corrected, [rows.get(index) for index in range(len(pastes))], +dropped)


@dataclass(frozen=True)
class _View:
    """What is visible of an object: its bounding box, its area and the area it would have uncovered (pixels)."""

    box: list[float]
    area: float
    full_area: float

    def enough(self, min_visibility: float) -> bool:
        return self.area > 0 and self.area >= min_visibility * self.full_area


def _front_map(pastes: Sequence[PastedObject], device: torch.device) -> tuple[Rectangle, Tensor]:
    """Which paste is in front at each pixel of the rectangle around all of them.

    Returns:
        The rectangle, and int16 ``[h, w]`` with the index of the paste, -1 where there is none.
    """
    boxes = [paste.rectangle for paste in pastes if not paste.rectangle.empty]
    if not boxes:
        return Rectangle(0, 0, 0, 0), torch.full((0, 0), -1, dtype=torch.int16, device=device)
    frame = Rectangle(
        min(box.top for box in boxes),
        min(box.left for box in boxes),
        max(box.bottom for box in boxes),
        max(box.right for box in boxes),
    )
    shape = (frame.bottom - frame.top, frame.right - frame.left)
    front = torch.full(shape, -1, dtype=torch.int16, device=device)
    for index, paste in enumerate(pastes):
        if not paste.rectangle.empty:
            region = front[_within(paste.rectangle, frame)]
            # The indices ascend, so the front one is the largest; -1 + mask * (index + 1) without a branch a pixel.
            torch.maximum(region, paste.mask.to(front.dtype).mul_(index + 1).sub_(1), out=region)
    return frame, front


def _within(inner: Rectangle, outer: Rectangle) -> tuple[slice, slice]:
    """Slices of ``inner`` in an array that covers ``outer``."""
    return (
        slice(inner.top - outer.top, inner.bottom - outer.top),
        slice(inner.left - outer.left, inner.right - outer.left),
    )


def _overlap(first: Rectangle, second: Rectangle) -> Rectangle:
    return Rectangle(
        max(first.top, second.top),
        max(first.left, second.left),
        min(first.bottom, second.bottom),
        min(first.right, second.right),
    )


def _grow(target: Target, size: tuple[int, int], pastes: Sequence[PastedObject]) -> Target:
    """A copy of the target with a row for each paste in every per-object field; boxes and masks still empty."""
    grown = dict(target)
    added = len(pastes)
    for name in OBJECT_FIELDS:
        if name not in target:
            continue
        value = target[name]
        rows = value.new_zeros((added, *value.shape[1:])) if name != "masks" else None
        if name == "labels":
            rows = value.new_tensor([paste.label for paste in pastes])
        elif name == "ids":
            rows = _fresh_ids(value, added)
        elif name == "keypoints":
            rows = _pasted_keypoints(value, pastes, size)
        if rows is not None:
            grown[name] = torch.cat([value, rows.to(value.dtype)])
        else:
            grown[name] = value.new_empty((len(value) + added, *size))
            grown[name][: len(value)] = value
            grown[name][len(value) :] = 0
    return grown


def _fresh_ids(ids: Tensor, added: int) -> Tensor:
    """Negative ids that no object of the image has: real ids are not negative, so a pasted object shows."""
    lowest = min(0, int(ids.min())) if len(ids) else 0
    return torch.arange(lowest - 1, lowest - 1 - added, -1, dtype=ids.dtype, device=ids.device)


def _pasted_keypoints(keypoints: Tensor, pastes: Sequence[PastedObject], size: tuple[int, int]) -> Tensor:
    """``[K, k, 3]``; zeros where a cut-out has none or they lie outside the frame.

    Raises:
        ValueError: a cut-out has another number of keypoints than the target.
    """
    rows = keypoints.new_zeros((len(pastes), *keypoints.shape[1:]))
    limits = keypoints.new_tensor([size[1], size[0]])
    for row, paste in zip(rows, pastes, strict=True):
        if paste.keypoints is None:
            continue
        if paste.keypoints.shape != row.shape:
            raise ValueError(
                f"expected cut-outs with {row.shape[0]} keypoints as in the targets, got {len(paste.keypoints)}; "
                "build the bank from annotations with the same keypoints"
            )
        points = paste.keypoints.to(row)
        inside = ((points[:, :2] >= 0) & (points[:, :2] < limits)).all(1) & (points[:, 2] > 0)
        row[inside] = points[inside]
    return rows


def _hide_originals(
    grown: Target, count: int, size: tuple[int, int], frame: Rectangle, front: Tensor
) -> dict[int, _View]:
    """Take the covered pixels from the first ``count`` objects, masks in place; the views of those touched.

    An object whose mask is empty, as some data sets write a missing one, counts like one without a mask.
    """
    covered = front >= 0
    if "masks" in grown:
        region = frame.of(grown["masks"][:count])
        hidden = count_pixels(region.bool() & covered)
        touched = [row for row, pixels in enumerate(hidden) if pixels]
        if touched:
            free = (~covered).to(region.dtype)
            for row in touched:
                region[row].mul_(free)
        views = {row: _mask_view(grown["masks"][row], hidden[row]) for row in touched}
        unmasked = [row for row, pixels in enumerate(hidden) if not pixels and not bool(grown["masks"][row].any())]
    else:
        views, unmasked = {}, list(range(count))
    boxes = grown["boxes"][:count].tolist() if unmasked else []
    for row in unmasked:
        box = boxes[row]
        view = _box_view(box, _pixels_of(box, size), frame, covered)
        if view is not None:
            views[row] = view
    return views


def _mask_view(mask: Tensor, hidden: int) -> _View:
    bounds, area = _bounds(mask.bool())
    return _View([float(side) for side in bounds], area, area + hidden)


def _box_view(box: list[float], region: Rectangle, frame: Rectangle, covered: Tensor) -> _View | None:
    """The view of an object that fills its box; ``None`` where nothing covers it.

    A side of the box moves only where all pixels along it are covered; the others keep their fraction.
    """
    overlap = _overlap(region, frame)
    if overlap.empty or not bool(covered[_within(overlap, frame)].any()):
        return None
    visible = torch.ones(
        region.bottom - region.top, region.right - region.left, dtype=torch.bool, device=covered.device
    )
    visible[_within(overlap, region)] = ~covered[_within(overlap, frame)]
    (left, top, right, bottom), area = _bounds(visible)
    full = [0, 0, region.right - region.left, region.bottom - region.top]
    corner = [region.left, region.top, region.left, region.top]
    moved = [
        old if side == limit else float(side + offset)
        for old, side, limit, offset in zip(box, (left, top, right, bottom), full, corner, strict=True)
    ]
    return _View(moved, area, visible.numel())


def _pixels_of(box: list[float], size: tuple[int, int]) -> Rectangle:
    """The pixels of which a box holds the centre, at least one."""
    height, width = size
    left = min(max(math.ceil(box[0] - 0.5), 0), width - 1)
    top = min(max(math.ceil(box[1] - 0.5), 0), height - 1)
    right = min(max(math.ceil(box[2] - 0.5), left + 1), width)
    bottom = min(max(math.ceil(box[3] - 0.5), top + 1), height)
    return Rectangle(top, left, bottom, right)


def _show_paste(grown: Target, row: int, paste: PastedObject, index: int, frame: Rectangle, front: Tensor) -> _View:
    """Write the visible mask of a paste, if masks are kept, and return its view."""
    if paste.rectangle.empty:
        return _View([0.0] * 4, 0, paste.full_area)
    visible = front[_within(paste.rectangle, frame)] == index
    if "masks" in grown:
        paste.rectangle.of(grown["masks"][row]).copy_(visible)
    (left, top, right, bottom), area = _bounds(visible)
    x, y = paste.rectangle.left, paste.rectangle.top
    return _View([float(left + x), float(top + y), float(right + x), float(bottom + y)], area, paste.full_area)


def _bounds(mask: Tensor) -> tuple[tuple[int, int, int, int], int]:
    """Left, top, right and bottom of the pixels that are set, upper bounds exclusive, and their number."""
    if mask.device.type == "cpu":  # torch's bool reductions there are ten times slower than these
        left, top, width, height = cv2.boundingRect(mask.view(torch.uint8).numpy())
        window = mask[top : top + height, left : left + width]
        return (left, top, left + width, top + height), int(np.count_nonzero(window.numpy()))
    columns, rows = mask.any(0).nonzero(), mask.any(1).nonzero()
    if len(rows) == 0:
        return (0, 0, 0, 0), 0
    left, top, right, bottom = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).flatten().tolist()
    return (left, top, right, bottom), int(mask[top:bottom, left:right].sum())


def count_pixels(masks: Tensor) -> list[int]:
    """The number of pixels that are set in each of bool ``[n, h, w]``."""
    if masks.device.type == "cpu":  # a sum of bool there goes through int64
        return [int(np.count_nonzero(mask)) for mask in masks.numpy()]
    counts: list[int] = masks.flatten(1).sum(1).tolist()
    return counts


def _write_views(grown: Target, views: dict[int, _View], count: int) -> None:
    """Write boxes and areas of the objects seen; rows from ``count`` on are pastes."""
    if not views:
        return
    rows = list(views)
    boxes = grown["boxes"].clone()
    boxes[rows] = boxes.new_tensor([views[row].box for row in rows])
    grown["boxes"] = boxes
    if "area" in grown:
        exact = "masks" in grown
        area = grown["area"].clone()
        for row, view in views.items():
            share = view.area / max(view.full_area, 1)
            area[row] = view.area if exact or row >= count else area[row] * share
        grown["area"] = area


def _cover_keypoints(grown: Target, layers: Sequence[int], frame: Rectangle, front: Tensor) -> None:
    """Lower the flag of covered keypoints from 2 (visible) to 1 (labelled, not visible), as COCO has it.

    Args:
        grown: its keypoints are replaced.
        layers: for each row, the paste that shows it, -1 for the background; later pastes hide it. A keypoint
            can lie outside the mask or box of its object, so all rows are looked at.
        frame: the rectangle of ``front``, not empty.
        front: see :func:`_front_map`.
    """
    keypoints = grown["keypoints"].clone()
    x = keypoints[..., 0].floor().long() - frame.left
    y = keypoints[..., 1].floor().long() - frame.top
    height, width = front.shape
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    first = front[y.clamp(0, height - 1), x.clamp(0, width - 1)]
    own = torch.tensor(layers, dtype=front.dtype, device=front.device)
    hidden = inside & (first > own[:, None]) & (keypoints[..., 2] == 2)
    keypoints[..., 2].masked_fill_(hidden, 1)
    grown["keypoints"] = keypoints

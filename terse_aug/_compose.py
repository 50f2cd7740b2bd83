"""From a layout and a policy's proposal to composites with corrected labels. Imports torch and numpy.

A pure function of its arguments; :class:`terse_aug.Terse` owns everything that has a state.
Shape letters: B images, M pastes, P transform parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terse_aug._compositor import Patch, Rectangle, blend, covered_rectangles, render
from terse_aug._config import TerseConfig
from terse_aug._extents import count_pixels
from terse_aug._labels import PastedObject, correct_target
from terse_aug._layout import Decoy, Layout, cutout_tensor, paste_geometry, reduced_cutout
from terse_aug._pixels import PixelFormat
from terse_aug._render_cv2 import render_8bit
from terse_aug._sample import Target
from terse_aug._transforms import place
from terse_aug.bank import Foreground

_DECOY_OBJECT_SHARE = 0.1
"""A decoy may share at most this much of an object's box, or of its own area, where its pixels come from (or it
would teach that objects are background) and where it lands (or it would hide them)."""


@dataclass(frozen=True)
class Paste:
    """One paste of a composite.

    Attributes:
        index: of the cut-out in the bank.
        source: where the cut-out comes from.
        label: its class.
        unit: float ``[P]``, its transform in the unit cube, on the CPU.
        row: its row in the composite's target, or ``None`` where it got no label.
        number: its row in the proposal.
    """

    index: int
    source: str
    label: int
    unit: Tensor
    row: int | None
    number: int


@dataclass(frozen=True)
class Composites:
    """The outcome of :func:`compose`.

    Attributes:
        images: B tensors float ``[3, H, W]``; with a graph where the proposal had one.
        targets: B corrected targets.
        pastes: for each image its pastes, the last in front.
        dropped: counts by reason.
        shown: for each image the pixels of its pastes, decoys first.
    """

    images: list[Tensor]
    targets: list[Target]
    pastes: list[list[Paste]]
    dropped: Counter[str]
    shown: list[list[PastedObject]]


@dataclass(frozen=True)
class Surface:
    """The settings of a compositor that are not drawn: configuration, pixel format, mirrored keypoint order.

    Attributes:
        config: of the run.
        pixels: of the host's images.
        mirror_keypoints: for each keypoint the index of its mirror image (left eye, right eye).
        batched: whether to warp all cut-outs in one batch.
    """

    config: TerseConfig
    pixels: PixelFormat
    mirror_keypoints: tuple[int, ...]
    batched: bool


def compose(
    images: Sequence[Tensor], targets: Sequence[Target], layout: Layout[Foreground], unit: Tensor, surface: Surface
) -> Composites:
    """Paste the cut-outs of a layout with the given transforms.

    Args:
        images: B checked images, left untouched.
        targets: B checked targets, left untouched.
        layout: M pastes.
        unit: float ``[M, P]`` in [0, 1].
        surface: settings.

    Returns:
        Composites, differentiable in ``unit``. Images without pastes are the very input tensors.
    """
    dropped: Counter[str] = Counter()
    decoys = _decoy_pastes(layout.decoys, images, targets, surface, dropped)
    objects = _object_pastes(layout, images, unit, surface, dropped)
    out_images: list[Tensor] = []
    out_targets: list[Target] = []
    pastes: list[list[Paste]] = []
    everything: list[list[PastedObject]] = []
    detached = unit.detach().cpu()
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        mine = [row for row, where in enumerate(layout.image_of) if where == number and row in objects]
        covers = decoys.get(number, [])
        shown = [pasted for _, pasted in covers] + [objects[row][1] for row in mine]
        everything.append(shown)
        if not shown:
            out_images.append(image)
            out_targets.append(target)
            pastes.append([])
            continue
        patches = [patch for patch, _ in covers] + [objects[row][0] for row in mine]
        out_images.append(blend(image, patches))
        size = (image.shape[-2], image.shape[-1])
        correction = correct_target(target, size, shown, surface.config.min_visibility)
        dropped.update(correction.dropped)
        out_targets.append(correction.target)
        rows = correction.rows[len(covers) :]
        pastes.append([_paste(layout, row, detached[row], at) for row, at in zip(mine, rows, strict=True)])
    return Composites(out_images, out_targets, pastes, +dropped, everything)


def compose_exactly(
    images: Sequence[Tensor], targets: Sequence[Target], layout: Layout[Foreground], unit: Tensor, surface: Surface
) -> Composites:
    """:func:`compose` in full precision: under autocast its matrices would round positions to whole pixels."""
    with full_precision(images[0].device):
        return compose(images, targets, layout, unit, surface)


def full_precision(device: torch.device) -> torch.autocast:
    """No autocast inside; a backward needs that as much as a forward."""
    return torch.autocast(device.type, enabled=False)


def _paste(layout: Layout[Foreground], row: int, unit: Tensor, target_row: int | None) -> Paste:
    foreground = layout.foregrounds[row]
    return Paste(layout.indices[row], foreground.source, foreground.label, unit, target_row, row)


def _object_pastes(
    layout: Layout[Foreground], images: Sequence[Tensor], unit: Tensor, surface: Surface, dropped: Counter[str]
) -> dict[int, tuple[Patch, PastedObject]]:
    """Patches and label information of the pastes that show anything, by row of the layout.

    A paste so thin that its edge is all there is of it is left out: it would be seen and have no label.
    """
    frames = [(images[number].shape[-2], images[number].shape[-1]) for number in layout.image_of]
    warps = _warp(layout.foregrounds, layout.mirrored, frames, unit, surface, dropped)
    pasted = {}
    for row, (patch, matrix, centre) in warps.items():
        foreground = layout.foregrounds[row]
        shown = count_pixels(patch.mask)
        if not shown:
            dropped["paste_too_small"] += 1
            continue
        area = _uncut_area(foreground, matrix, shown) if _at_border(patch.rectangle, frames[row]) else shown
        keypoints = _map_keypoints(foreground, layout.mirrored[row], matrix, centre, surface)
        pasted[row] = (
            patch,
            PastedObject(patch.rectangle, patch.mask, foreground.label, area, keypoints),
        )
    return pasted


def _at_border(rectangle: Rectangle, frame: tuple[int, int]) -> bool:
    height, width = frame
    return rectangle.top == 0 or rectangle.left == 0 or rectangle.bottom == height or rectangle.right == width


def _uncut_area(foreground: Foreground, matrix: Tensor, shown: int) -> float:
    """Pixels that a paste which the frame may cut would show without it; at least those that it does show."""
    (a, b), (c, d) = matrix.tolist()
    opaque = int(np.count_nonzero(foreground.rgba[:, :, 3] > 127))
    determinant: float = abs(a * d - b * c)
    return max(determinant * opaque, float(shown))


def _warp(
    foregrounds: Sequence[Foreground],
    mirrored: Sequence[bool],
    frames: Sequence[tuple[int, int]],
    unit: Tensor,
    surface: Surface,
    dropped: Counter[str],
) -> dict[int, tuple[Patch, Tensor, Tensor]]:
    """Render cut-outs; rows that are too small or outside are left out and counted.

    Returns:
        By row: the patch, and on the CPU without a graph the matrix ``[2, 2]`` and centre ``[2]``.
    """
    if not foregrounds:
        return {}
    config = surface.config
    geometry = paste_geometry(foregrounds, mirrored, frames, unit)
    physical = config.ranges.physical(unit)
    placement = place(physical, geometry, config.ranges.keep_inside)
    known = placement.detached_cpu()
    rectangles = covered_rectangles(known, frames, config.edge_sigma)
    scales = known.matrix.norm(dim=1)
    sides = (scales * geometry.cutout_sizes.cpu()).amax(1).tolist()
    rows = []
    for row, (side, rectangle) in enumerate(zip(sides, rectangles, strict=True)):
        if side < config.min_side:
            dropped["paste_too_small"] += 1
        elif rectangle.empty:
            dropped["paste_outside"] += 1
        else:
            rows.append(row)
    shrink = scales.amax(1).tolist()
    cutouts = [reduced_cutout(foregrounds[row], shrink[row]) for row in rows]
    resized = placement.matrix[rows] * _reduction(foregrounds, rows, cutouts, placement.matrix)
    patches = _render(cutouts, resized, placement.centre[rows], [rectangles[row] for row in rows], surface)
    return {row: (patch, known.matrix[row], known.centre[row]) for row, patch in zip(rows, patches, strict=True)}


def _render(
    cutouts: Sequence[NDArray[np.uint8]],
    matrix: Tensor,
    centre: Tensor,
    rectangles: Sequence[Rectangle],
    surface: Surface,
) -> list[Patch]:
    """Patches of cut-outs uint8 ``[ch, cw, 4]``; by OpenCV where neither a gradient nor a device forbids it."""
    sigma, pixels = surface.config.edge_sigma, surface.pixels
    if matrix.device.type == "cpu" and not matrix.requires_grad:
        return render_8bit(cutouts, matrix, centre, rectangles, sigma, pixels)
    tensors = [cutout_tensor(cutout, pixels, matrix) for cutout in cutouts]
    return render(tensors, matrix, centre, rectangles, sigma, surface.batched)


def _reduction(
    foregrounds: Sequence[Foreground], rows: Sequence[int], cutouts: Sequence[NDArray[np.uint8]], like: Tensor
) -> Tensor:
    """How many pixels of the bank's cut-out a pixel of the reduced one stands for, ``[m, 1, 2]`` (x, y)."""
    factors = [
        (foregrounds[row].rgba.shape[1] / cutout.shape[1], foregrounds[row].rgba.shape[0] / cutout.shape[0])
        for row, cutout in zip(rows, cutouts, strict=True)
    ]
    return torch.tensor(factors, dtype=like.dtype, device=like.device).view(-1, 1, 2)


def _map_keypoints(
    foreground: Foreground, mirrored: bool, matrix: Tensor, centre: Tensor, surface: Surface
) -> Tensor | None:
    """Keypoints in image pixels ``[k, 3]``; a mirrored person's left eye becomes the right one."""
    if foreground.keypoints is None:
        return None
    points = torch.from_numpy(foreground.keypoints.copy()).to(matrix.dtype)
    height, width = foreground.rgba.shape[:2]
    middle = torch.tensor([width / 2, height / 2], dtype=matrix.dtype)
    points[:, :2] = (points[:, :2] - middle) @ matrix.T + centre
    if mirrored and surface.mirror_keypoints:
        points = points[list(surface.mirror_keypoints)]
    return points


def _decoy_pastes(
    decoys: Sequence[Decoy],
    images: Sequence[Tensor],
    targets: Sequence[Target],
    surface: Surface,
    dropped: Counter[str],
) -> dict[int, list[tuple[Patch, PastedObject]]]:
    """Patches of background in an object's shape, by image; those that find no place are left out and counted."""
    if not decoys:
        return {}
    units = _decoy_places(decoys, images, targets, surface)
    placed = [decoy for decoy, unit in zip(decoys, units, strict=True) if unit is not None]
    chosen = [unit for unit in units if unit is not None]
    frames = [(images[decoy.image].shape[-2], images[decoy.image].shape[-1]) for decoy in placed]
    foregrounds = [decoy.foreground for decoy in placed]
    unit = torch.stack(chosen).to(images[0].device) if chosen else torch.zeros(0, 0)
    warps = _warp(foregrounds, [False] * len(placed), frames, unit, surface, Counter())
    pasted: dict[int, list[tuple[Patch, PastedObject]]] = {}
    for row, (patch, _, _) in warps.items():
        decoy = placed[row]
        source = _free_background(patch.rectangle, decoy, images[decoy.source], targets[decoy.source])
        if source is None:
            continue
        color = source.of(images[decoy.source].detach())
        pasted.setdefault(decoy.image, []).append(
            (
                Patch(patch.rectangle, color, patch.alpha),
                PastedObject(patch.rectangle, patch.mask, label=None, full_area=0.0),
            )
        )
    dropped["decoy_without_background"] += len(decoys) - sum(map(len, pasted.values()))
    return pasted


def _decoy_places(
    decoys: Sequence[Decoy], images: Sequence[Tensor], targets: Sequence[Target], surface: Surface
) -> list[Tensor | None]:
    """For each decoy the first of its transforms under which it hides no object, or ``None``."""
    ranges = surface.config.ranges
    places: list[Tensor | None] = []
    for decoy in decoys:
        image = images[decoy.image]
        count = len(decoy.units)
        frames = [(image.shape[-2], image.shape[-1])] * count
        geometry = paste_geometry([decoy.foreground] * count, [False] * count, frames, decoy.units)
        placement = place(ranges.physical(decoy.units), geometry, ranges.keep_inside)
        rectangles = covered_rectangles(placement, frames, surface.config.edge_sigma)
        boxes = targets[decoy.image]["boxes"].tolist()
        free = (unit for unit, where in zip(decoy.units, rectangles, strict=True) if not _meets_object(where, boxes))
        places.append(next(free, None))
    return places


def _free_background(rectangle: Rectangle, decoy: Decoy, source: Tensor, target: Target) -> Rectangle | None:
    """The first of the decoy's places where a rectangle of this size shows no object, or ``None``."""
    height, width = rectangle.bottom - rectangle.top, rectangle.right - rectangle.left
    free_rows, free_columns = source.shape[-2] - height, source.shape[-1] - width
    if free_rows < 0 or free_columns < 0:
        return None
    boxes = target["boxes"].tolist()
    for x, y in decoy.corners:
        left, top = round(x * free_columns), round(y * free_rows)
        spot = Rectangle(top, left, top + height, left + width)
        if not _meets_object(spot, boxes):
            return spot
    return None


def _meets_object(rectangle: Rectangle, boxes: Sequence[Sequence[float]]) -> bool:
    """Whether the rectangle and a box share more than a tenth of either."""
    area = max((rectangle.bottom - rectangle.top) * (rectangle.right - rectangle.left), 1)
    for left, top, right, bottom in boxes:
        width = min(right, rectangle.right) - max(left, rectangle.left)
        height = min(bottom, rectangle.bottom) - max(top, rectangle.top)
        shared = max(width, 0) * max(height, 0)
        if shared > _DECOY_OBJECT_SHARE * min((right - left) * (bottom - top), area):
            return True
    return False

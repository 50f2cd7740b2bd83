"""From a layout and a policy's proposal to composites with corrected labels. Imports torch and numpy.

A pure function of its arguments; :class:`terse_aug.Terse` owns everything that has a state.
Shape letters: B images, M pastes, P transform parameters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terse_aug.bank import Foreground
from terse_aug.compositing.decoys import free_background, meets_object
from terse_aug.compositing.label_correction import PastedObject, correct_target
from terse_aug.compositing.mask_extents import count_pixels
from terse_aug.compositing.occludees import occludee_transforms
from terse_aug.compositing.plan import Decoy, PastePlan, cutout_tensor, paste_geometry, reduced_cutout
from terse_aug.compositing.render import Patch, Rectangle, blend, covered_rectangles, render
from terse_aug.compositing.render_cpu import render_8bit
from terse_aug.config import TerseConfig
from terse_aug.data.auxiliary_objects import AuxiliaryObjects
from terse_aug.structures.annotations import Target
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.transforms import place


@dataclass(frozen=True)
class Paste:
    """One paste of a composite.

    Attributes:
        index: of the cut-out in the bank.
        source: where the cut-out comes from.
        label: its class.
        unit: float ``[P]``, its transform in the unit cube, on the CPU.
        row: its row in the composite's target, or ``None`` where it got no label.
        number: its row in the proposal; ``None`` of an object that is behind one of the policy's.
    """

    index: int
    source: str
    label: int
    unit: Tensor
    row: int | None
    number: int | None


@dataclass(frozen=True)
class Composites:
    """The outcome of :func:`compose`.

    Attributes:
        images: B tensors float ``[3, H, W]``; with a graph where the proposal had one.
        targets: B corrected targets.
        pastes: for each image its pastes, the last in front; objects behind others come first, distractors and decoys
            are not among them.
        dropped: counts by reason.
        shown: for each image the pixels of its pastes, decoys first.
        backgrounds: by image that was replaced, the place of its background in the pool.
    """

    images: list[Tensor]
    targets: list[Target]
    pastes: list[list[Paste]]
    dropped: Counter[str]
    shown: list[list[PastedObject]]
    backgrounds: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RenderSettings:
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
    images: Sequence[Tensor],
    targets: Sequence[Target],
    layout: PastePlan[Foreground],
    unit: Tensor,
    surface: RenderSettings,
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
    unlabelled = _decoy_pastes(layout.decoys, images, targets, surface, dropped)
    for where, pasted in _distractor_pastes(layout.distractors, images, unit, surface, dropped):
        unlabelled.setdefault(where, []).append(pasted)
    objects = _object_pastes(layout, images, unit, surface, dropped)
    frames = [(image.shape[-2], image.shape[-1]) for image in images]
    behind_unit = occludee_transforms(layout, unit, frames, surface.config.ranges)
    behind = _object_pastes(layout.behind, images, behind_unit, surface, dropped)
    out_images: list[Tensor] = []
    out_targets: list[Target] = []
    pastes: list[list[Paste]] = []
    everything: list[list[PastedObject]] = []
    detached, behind_unit = unit.detach().cpu(), behind_unit.cpu()
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        mine = [row for row, where in enumerate(layout.image_of) if where == number and row in objects]
        covers = unlabelled.get(number, [])
        # Without its paste an object is behind nothing.
        context = [row for row in behind if layout.behind.behind[row] in mine]
        layers = covers + [behind[row] for row in context] + [objects[row] for row in mine]
        shown = [pasted for _, pasted in layers]
        everything.append(shown)
        if not shown:
            out_images.append(image)
            out_targets.append(target)
            pastes.append([])
            continue
        out_images.append(blend(image, [patch for patch, _ in layers]))
        size = (image.shape[-2], image.shape[-1])
        correction = correct_target(target, size, shown, surface.config.min_visibility)
        dropped.update(correction.dropped)
        out_targets.append(correction.target)
        rows = iter(correction.rows[len(covers) :])
        extra = [_paste(layout.behind, row, behind_unit[row], next(rows), None) for row in context]
        pastes.append(extra + [_paste(layout, row, detached[row], next(rows), row) for row in mine])
    return Composites(out_images, out_targets, pastes, +dropped, everything)


def compose_exactly(
    images: Sequence[Tensor],
    targets: Sequence[Target],
    layout: PastePlan[Foreground],
    unit: Tensor,
    surface: RenderSettings,
) -> Composites:
    """:func:`compose` in full precision: under autocast its matrices would round positions to whole pixels."""
    with full_precision(images[0].device):
        return compose(images, targets, layout, unit, surface)


def full_precision(device: torch.device) -> torch.autocast:
    """No autocast inside; a backward needs that as much as a forward."""
    return torch.autocast(device.type, enabled=False)


def _paste(
    layout: PastePlan[Foreground] | AuxiliaryObjects, row: int, unit: Tensor, target_row: int | None, number: int | None
) -> Paste:
    foreground = layout.foregrounds[row]
    return Paste(layout.indices[row], foreground.source, foreground.label, unit, target_row, number)


def _distractor_pastes(
    distractors: AuxiliaryObjects,
    images: Sequence[Tensor],
    like: Tensor,
    surface: RenderSettings,
    dropped: Counter[str],
) -> list[tuple[int, tuple[Patch, PastedObject]]]:
    """Image, patch and label information of the distractors that show anything; the others are counted."""
    shown = _object_pastes(distractors, images, distractors.unit.to(like.device), surface, Counter())
    dropped["distractor_not_shown"] += len(distractors) - len(shown)
    return [(distractors.image_of[row], (patch, replace(pasted, label=None))) for row, (patch, pasted) in shown.items()]


def _object_pastes(
    layout: PastePlan[Foreground] | AuxiliaryObjects,
    images: Sequence[Tensor],
    unit: Tensor,
    surface: RenderSettings,
    dropped: Counter[str],
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
        at_border = _at_border(patch.rectangle, frames[row])
        area = _uncut_area(foreground, matrix, centre, frames[row], shown) if at_border else shown
        keypoints = _map_keypoints(foreground, layout.mirrored[row], matrix, centre, surface)
        pasted[row] = (
            patch,
            PastedObject(patch.rectangle, patch.mask, foreground.label, area, keypoints),
        )
    return pasted


_SAMPLED_SIDE = 64
"""A cut-out is looked at in about this many squares each way, to see how much of it the frame cuts off."""


def _at_border(rectangle: Rectangle, frame: tuple[int, int]) -> bool:
    height, width = frame
    return rectangle.top == 0 or rectangle.left == 0 or rectangle.bottom == height or rectangle.right == width


def _uncut_area(foreground: Foreground, matrix: Tensor, centre: Tensor, frame: tuple[int, int], shown: int) -> float:
    """Pixels that a paste which the frame may cut would show without it.

    As many times those that it does show as the cut-out has opaque pixels for each that lands inside: blurring and
    reducing take as much from what is inside as from the whole.
    """
    turned, limits = matrix.numpy().T, np.array(frame[::-1])
    reached = foreground.outline @ turned + centre.numpy()
    if (reached >= 0).all() and (reached <= limits).all():
        return shown
    # Of small squares, how much of them is opaque: picking pixels would miss what is thinner than their distance.
    opaque = (foreground.rgba[:, :, 3] > 127).astype(np.float32)
    height, width = opaque.shape
    coarser = max(1.0, math.sqrt(opaque.size) / _SAMPLED_SIDE)
    share = cv2.resize(
        opaque, (math.ceil(width / coarser), math.ceil(height / coarser)), interpolation=cv2.INTER_AREA
    ).reshape(math.ceil(height / coarser), -1)
    rows, columns = np.indices(share.shape) + 0.5
    points = np.stack([(columns / share.shape[1] - 0.5) * width, (rows / share.shape[0] - 0.5) * height], -1)
    landed = points @ turned + centre.numpy()
    inside = share[((landed >= 0) & (landed < limits)).all(-1)].sum()
    return max(shown * float(share.sum() / max(inside, 1e-6)), float(shown))


def _warp(
    foregrounds: Sequence[Foreground],
    mirrored: Sequence[bool],
    frames: Sequence[tuple[int, int]],
    unit: Tensor,
    surface: RenderSettings,
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
    surface: RenderSettings,
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
    foreground: Foreground, mirrored: bool, matrix: Tensor, centre: Tensor, surface: RenderSettings
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
    surface: RenderSettings,
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
        source = free_background(patch.rectangle, decoy, images[decoy.source], targets[decoy.source])
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
    decoys: Sequence[Decoy], images: Sequence[Tensor], targets: Sequence[Target], surface: RenderSettings
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
        free = (unit for unit, where in zip(decoy.units, rectangles, strict=True) if not meets_object(where, boxes))
        places.append(next(free, None))
    return places

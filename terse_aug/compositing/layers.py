"""Everything that is pasted on a batch, as layers with their places: what there is to render, before it is rendered.

All of it is computed on the CPU. Shape letters: M pastes, L layers, P transform parameters.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terse_aug.bank import Foreground
from terse_aug.compositing.decoys import free_background, free_placement
from terse_aug.compositing.geometry import paste_geometry, place_unit, reduced_foreground
from terse_aug.compositing.label_correction import PastedObject
from terse_aug.compositing.mask_extents import Mask, count_pixels
from terse_aug.compositing.occludees import place_occludees
from terse_aug.compositing.patches import Rectangle, covered_rectangles
from terse_aug.compositing.photometric import Look, looks_of
from terse_aug.compositing.plan import AuxiliaryObjects, PastePlan
from terse_aug.config import PasteConfig
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.transforms import Placement

_SAMPLED_SIDE = 64
"""The visible fraction of a foreground at the border is counted on a grid of about this many squares each way."""

Frames = Sequence[tuple[int, int]]
"""(H, W) of each image."""


@dataclass(frozen=True)
class RenderSettings:
    """How pastes are rendered.

    Attributes:
        paste: blending and visibility limits.
        pixel_format: of the images.
        keypoint_flip_order: for each keypoint the index of the one that it becomes in a flipped object.
    """

    paste: PasteConfig
    pixel_format: PixelFormat
    keypoint_flip_order: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One thing that is pasted.

    Attributes:
        kind: what it is.
        row: its number among those of its kind in the plan.
        image: where it is pasted.
        foreground: of which it is made, or whose shape a decoy has.
        flipped: whether it is flipped left to right.
        matrix: float ``[2, 2]``, see :class:`terse_aug.transforms.Placement`.
        center: float ``[2]``, likewise.
        rectangle: the pixels that it can touch; not empty.
        reduced: the foreground at the size that is rendered, uint8 ``[h, w, 4]``.
        source: of a decoy, the image and the rectangle that its pixels come from.
        occluder: of an occludee, the paste in front of it.
        blend: how it is blended in, one of ``BLENDS``.
        look: its photometric values; ``None`` where none are drawn.
    """

    kind: Literal["decoy", "distractor", "occludee", "paste"]
    row: int
    image: int
    foreground: Foreground
    flipped: bool
    matrix: NDArray[Any]
    center: NDArray[Any]
    rectangle: Rectangle
    reduced: NDArray[np.uint8]
    source: tuple[int, Rectangle] | None = None
    occluder: int | None = None
    blend: str = "gaussian"
    look: Look | None = None

    @property
    def reduction(self) -> tuple[float, float]:
        """How many pixels of the foreground a pixel of the reduced one stands for, x and y."""
        (width, height), (rows, columns) = self.foreground.size, self.reduced.shape[:2]
        return width / columns, height / rows


def layers_of(
    plan: PastePlan[Foreground],
    unit: NDArray[Any],
    pastes: Placement,
    frames: Frames,
    boxes: Sequence[Tensor],
    settings: RenderSettings,
    dropped: Counter[str],
) -> tuple[list[Layer], Tensor]:
    """The layers of a batch; what is too small or outside its image is left out and counted.

    Args:
        plan: M pastes.
        unit: float ``[M, P]``, their transforms in the unit cube.
        pastes: their placement, NumPy arrays.
        frames: of the images.
        boxes: for each image those of its objects, on the CPU; used by decoys only.
        settings: how to render.
        dropped: counts by reason, added to.

    Returns:
        Layers in the order of pasting, image by image; and the occludees' transforms in the unit cube.
    """
    layers = _decoys(plan, frames, boxes, settings)
    ignored: Counter[str] = Counter()
    distractors = plan.distractors
    if len(distractors):
        own, units = [frames[image] for image in distractors.image_of], distractors.unit.numpy()
        geometry = paste_geometry(distractors.foregrounds, distractors.flipped, own, units)
        placement = place_unit(units, geometry, settings.paste.ranges)
        layers += _layers("distractor", distractors, units, placement, frames, settings, ignored)
    objects = _layers("paste", plan, unit, pastes, frames, settings, dropped)
    occludee_unit = plan.occludees.unit
    if len(plan.occludees):
        occludee_unit, placement = place_occludees(plan.occludees, pastes, frames, settings.paste.ranges)
        behind = _layers("occludee", plan.occludees, occludee_unit.numpy(), placement, frames, settings, dropped)
        shown = {layer.row for layer in objects}
        for layer in behind:
            if (occluder := plan.occludees.occluded_by[layer.row]) in shown:
                layers.append(replace(layer, occluder=occluder))
    layers += objects
    return sorted(layers, key=lambda layer: layer.image), occludee_unit


def _layers(
    kind: Literal["distractor", "occludee", "paste"],
    objects: PastePlan[Foreground] | AuxiliaryObjects,
    unit: NDArray[Any],
    placement: Placement,
    frames: Frames,
    settings: RenderSettings,
    dropped: Counter[str],
) -> list[Layer]:
    if not objects.indices:
        return []
    rectangles = covered_rectangles(
        placement, [frames[image] for image in objects.image_of], settings.paste.edge_blur_sigma
    )
    looks, blends, layers = looks_of(unit, settings.paste), settings.paste.blends_of(unit), []
    for row, (foreground, (first, second)) in enumerate(
        zip(objects.foregrounds, placement.matrix.tolist(), strict=True)
    ):
        scales = [math.hypot(*column) for column in zip(first, second, strict=True)]
        if max(map(operator.mul, scales, foreground.size)) < settings.paste.min_side:
            dropped["paste_too_small"] += 1
        elif rectangles[row].empty:
            dropped["paste_outside"] += 1
        else:
            layers.append(
                Layer(
                    kind,
                    row,
                    objects.image_of[row],
                    foreground,
                    objects.flipped[row],
                    placement.matrix[row],
                    placement.center[row],
                    rectangles[row],
                    reduced_foreground(foreground, max(scales)),
                    blend=blends[row],
                    look=looks[row],
                )
            )
    return layers


def _decoys(
    plan: PastePlan[Foreground], frames: Frames, boxes: Sequence[Tensor], settings: RenderSettings
) -> list[Layer]:
    """The decoys that have a free place, and free background."""
    found = []
    for row, decoy in enumerate(plan.decoys):
        free = free_placement(decoy, frames[decoy.image], boxes[decoy.image], settings.paste)
        if free is None:
            continue
        unit, placement = free
        alone = AuxiliaryObjects([decoy.image], [row], [decoy.foreground], [False], decoy.units[:1], [])
        for layer in _layers("distractor", alone, unit, placement, frames, settings, Counter()):
            source = free_background(layer.rectangle, decoy, frames[decoy.source], boxes[decoy.source])
            if source is not None:
                found.append(replace(layer, kind="decoy", row=row, source=(decoy.source, source)))
    return found


def pasted_object(layer: Layer, mask: Mask, frame: tuple[int, int], flip_order: tuple[int, ...]) -> PastedObject | None:
    """What label correction needs to know of a rendered layer; ``None`` for an object without a visible pixel.

    A paste so thin that it is all edge is left out, too: it would be visible and have no label.

    Args:
        layer: the layer.
        mask: bool ``[h, w]`` over its rectangle: the pixels that show it.
        frame: (H, W) of its image.
        flip_order: see :class:`RenderSettings`.
    """
    if layer.kind == "decoy":
        return PastedObject(layer.rectangle, mask, label=None, full_area=0.0)
    visible = count_pixels(mask)
    if not visible:
        return None
    area = _uncut_area(layer, frame, visible) if _at_border(layer.rectangle, frame) else visible
    label = None if layer.kind == "distractor" else layer.foreground.label
    return PastedObject(layer.rectangle, mask, label, area, _keypoints(layer, flip_order))


def _at_border(rectangle: Rectangle, frame: tuple[int, int]) -> bool:
    height, width = frame
    return rectangle.top == 0 or rectangle.left == 0 or rectangle.bottom == height or rectangle.right == width


def _uncut_area(layer: Layer, frame: tuple[int, int], visible: int) -> float:
    """Pixels that a paste would show if the image did not cut it off.

    The visible ones, times the opaque pixels of the foreground for each that lies inside the image: blurring and
    reducing take the same fraction from the inside as from the whole.
    """
    turned, center, limits = layer.matrix.T, layer.center, np.array(frame[::-1])
    corners = layer.foreground.outline @ turned + center
    if (corners >= 0).all() and (corners <= limits).all():
        return visible
    # The opaque fraction of small squares: sampled pixels would miss what is thinner than their distance.
    opaque = (layer.foreground.rgba[:, :, 3] > 127).astype(np.float32)
    height, width = opaque.shape
    step = max(1.0, math.sqrt(opaque.size) / _SAMPLED_SIDE)
    fraction = cv2.resize(
        opaque, (math.ceil(width / step), math.ceil(height / step)), interpolation=cv2.INTER_AREA
    ).reshape(math.ceil(height / step), -1)
    rows, columns = np.indices(fraction.shape) + 0.5
    points = np.stack([(columns / fraction.shape[1] - 0.5) * width, (rows / fraction.shape[0] - 0.5) * height], -1)
    landed = points @ turned + center
    inside = fraction[((landed >= 0) & (landed < limits)).all(-1)].sum()
    return max(visible * float(fraction.sum() / max(inside, 1e-6)), float(visible))


def _keypoints(layer: Layer, flip_order: tuple[int, ...]) -> Tensor | None:
    """Keypoints in image pixels ``[k, 3]``; a flipped person's left eye becomes the right one."""
    foreground = layer.foreground
    if foreground.keypoints is None:
        return None
    points = foreground.keypoints.astype(layer.matrix.dtype)
    points[:, :2] = (points[:, :2] - np.array(foreground.size) / 2) @ layer.matrix.T + layer.center
    if layer.flipped and flip_order:
        points = points[list(flip_order)]
    return torch.from_numpy(points)

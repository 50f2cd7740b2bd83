"""Renders pastes as patches, with the information that label correction needs.

Shape letters: M pastes, P transform parameters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terse_aug.bank import Foreground
from terse_aug.compositing.geometry import foreground_tensor, reduced_foreground
from terse_aug.compositing.label_correction import PastedObject
from terse_aug.compositing.mask_extents import count_pixels
from terse_aug.compositing.render import Patch, Rectangle, covered_rectangles, render
from terse_aug.compositing.render_cpu import render_8bit
from terse_aug.config import PasteConfig
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.transforms import Placement

_SAMPLED_SIDE = 64
"""The visible fraction of a foreground at the border is counted on a grid of about this many squares each way."""


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
class WarpedPaste:
    """One rendered foreground.

    Attributes:
        patch: what is blended into the background.
        matrix: float ``[2, 2]``, on the CPU without a graph.
        center: float ``[2]``, likewise.
    """

    patch: Patch
    matrix: Tensor
    center: Tensor


def warp(
    foregrounds: Sequence[Foreground],
    placement: Placement,
    frames: Sequence[tuple[int, int]],
    settings: RenderSettings,
    dropped: Counter[str],
) -> dict[int, WarpedPaste]:
    """Render foregrounds; those that are too small or outside the image are left out and counted.

    Args:
        foregrounds: M foregrounds.
        placement: M rows.
        frames: (H, W) of each paste's background.
        settings: how to render.
        dropped: counts by reason, added to.

    Returns:
        By row.
    """
    if not foregrounds:
        return {}
    known = placement.detached_cpu()
    rectangles = covered_rectangles(known, frames, settings.paste.edge_blur_sigma)
    scales = known.matrix.norm(dim=1)
    sizes = placement.matrix.new_tensor([foreground.size for foreground in foregrounds]).cpu()
    sides = (scales * sizes).amax(1).tolist()
    rows = []
    for row, (side, rectangle) in enumerate(zip(sides, rectangles, strict=True)):
        if side < settings.paste.min_side:
            dropped["paste_too_small"] += 1
        elif rectangle.empty:
            dropped["paste_outside"] += 1
        else:
            rows.append(row)
    largest = scales.amax(1).tolist()
    reduced = [reduced_foreground(foregrounds[row], largest[row]) for row in rows]
    matrix = placement.matrix[rows] * _reduction(foregrounds, rows, reduced, placement.matrix)
    patches = _render(reduced, matrix, placement.center[rows], [rectangles[row] for row in rows], settings)
    return {
        row: WarpedPaste(patch, known.matrix[row], known.center[row]) for row, patch in zip(rows, patches, strict=True)
    }


def _render(
    foregrounds: Sequence[NDArray[np.uint8]],
    matrix: Tensor,
    center: Tensor,
    rectangles: Sequence[Rectangle],
    settings: RenderSettings,
) -> list[Patch]:
    """Patches of foregrounds uint8 ``[h, w, 4]``; by OpenCV on a CPU where no gradient is needed."""
    sigma = settings.paste.edge_blur_sigma
    if matrix.device.type == "cpu" and not matrix.requires_grad:
        return render_8bit(foregrounds, matrix, center, rectangles, sigma, settings.pixel_format)
    tensors = [foreground_tensor(foreground, settings.pixel_format, matrix) for foreground in foregrounds]
    return render(tensors, matrix, center, rectangles, sigma, batched=matrix.is_cuda)


def _reduction(
    foregrounds: Sequence[Foreground], rows: Sequence[int], reduced: Sequence[NDArray[np.uint8]], like: Tensor
) -> Tensor:
    """How many pixels of the foreground a pixel of the reduced one stands for, ``[m, 1, 2]`` (x, y)."""
    factors = [
        (foregrounds[row].rgba.shape[1] / small.shape[1], foregrounds[row].rgba.shape[0] / small.shape[0])
        for row, small in zip(rows, reduced, strict=True)
    ]
    return torch.tensor(factors, dtype=like.dtype, device=like.device).view(-1, 1, 2)


def warp_objects(
    foregrounds: Sequence[Foreground],
    flipped: Sequence[bool],
    placement: Placement,
    frames: Sequence[tuple[int, int]],
    settings: RenderSettings,
    dropped: Counter[str],
) -> dict[int, tuple[Patch, PastedObject]]:
    """Patches and label information of the pastes with a visible pixel, by row.

    A paste so thin that it is all edge is left out: it would be visible and have no label.
    """
    pasted = {}
    for row, warped in warp(foregrounds, placement, frames, settings, dropped).items():
        foreground, patch = foregrounds[row], warped.patch
        visible = count_pixels(patch.mask)
        if not visible:
            dropped["paste_too_small"] += 1
            continue
        at_border = _at_border(patch.rectangle, frames[row])
        area = _uncut_area(foreground, warped, frames[row], visible) if at_border else visible
        keypoints = _keypoints(foreground, flipped[row], warped, settings.keypoint_flip_order)
        pasted[row] = (patch, PastedObject(patch.rectangle, patch.mask, foreground.label, area, keypoints))
    return pasted


def _at_border(rectangle: Rectangle, frame: tuple[int, int]) -> bool:
    height, width = frame
    return rectangle.top == 0 or rectangle.left == 0 or rectangle.bottom == height or rectangle.right == width


def _uncut_area(foreground: Foreground, warped: WarpedPaste, frame: tuple[int, int], visible: int) -> float:
    """Pixels that a paste would show if the image did not cut it off.

    The visible ones, times the opaque pixels of the foreground for each that lies inside the image: blurring and
    reducing take the same fraction from the inside as from the whole.
    """
    turned, limits = warped.matrix.numpy().T, np.array(frame[::-1])
    corners = foreground.outline @ turned + warped.center.numpy()
    if (corners >= 0).all() and (corners <= limits).all():
        return visible
    # The opaque fraction of small squares: sampled pixels would miss what is thinner than their distance.
    opaque = (foreground.rgba[:, :, 3] > 127).astype(np.float32)
    height, width = opaque.shape
    step = max(1.0, math.sqrt(opaque.size) / _SAMPLED_SIDE)
    fraction = cv2.resize(
        opaque, (math.ceil(width / step), math.ceil(height / step)), interpolation=cv2.INTER_AREA
    ).reshape(math.ceil(height / step), -1)
    rows, columns = np.indices(fraction.shape) + 0.5
    points = np.stack([(columns / fraction.shape[1] - 0.5) * width, (rows / fraction.shape[0] - 0.5) * height], -1)
    landed = points @ turned + warped.center.numpy()
    inside = fraction[((landed >= 0) & (landed < limits)).all(-1)].sum()
    return max(visible * float(fraction.sum() / max(inside, 1e-6)), float(visible))


def _keypoints(
    foreground: Foreground, flipped: bool, warped: WarpedPaste, flip_order: tuple[int, ...]
) -> Tensor | None:
    """Keypoints in image pixels ``[k, 3]``; a flipped person's left eye becomes the right one."""
    if foreground.keypoints is None:
        return None
    points = torch.from_numpy(foreground.keypoints.copy()).to(warped.matrix.dtype)
    height, width = foreground.rgba.shape[:2]
    middle = torch.tensor([width / 2, height / 2], dtype=points.dtype)
    points[:, :2] = (points[:, :2] - middle) @ warped.matrix.T + warped.center
    if flipped and flip_order:
        points = points[list(flip_order)]
    return points

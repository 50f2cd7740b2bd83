"""Masks of what moves in front of a fixed camera. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.extract import RejectedObject
from terse_aug.bank.segmenters.operations import blurred_lab, connected_parts, disc, remove_halo, soft_alpha

_DISTANCE_PER_MEDIAN = 7.0
_MIN_DISTANCE = 10.0
_MAX_MEDIAN = 5.0
_CLOSED_GAP = 0.01


def median_background(frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The median of frames, uint8 ``[H, W, 3]`` each; an object must not stand still in half of them."""
    background = np.empty_like(frames[0])
    for row in range(0, len(background), 64):  # np.median makes several copies of its input
        band = np.stack([frame[row : row + 64] for frame in frames])
        background[row : row + 64] = np.median(band, axis=0).astype(np.uint8)
    return background


def moving_object_alphas(
    frame: NDArray[np.uint8], background: NDArray[np.uint8], min_area: int
) -> list[NDArray[np.uint8]]:
    """The moving objects of a frame, from left to right, as alpha: uint8 ``[H, W]`` each, 0 to 255, soft at the edge.

    A pixel belongs to an object if its distance from the background's colour, in L*a*b*, exceeds both 10 and seven
    times the median distance of the frame. Parts that do not touch, after gaps of a hundredth of the frame were
    closed, are separate objects, from ``min_area`` px on. A shadow moves too and is part of its object.

    Args:
        frame: uint8 ``[H, W, 3]``, RGB.
        background: likewise.
        min_area: smallest area of an object in px.

    Raises:
        RejectedObject: most of the frame differs, because the camera or the light has changed, or nothing does.
    """
    distance = np.linalg.norm(blurred_lab(frame) - blurred_lab(background), axis=2)
    median = float(np.median(distance))
    if median > _MAX_MEDIAN:
        raise RejectedObject("most of the frame differs from the background: the camera or the light has changed")
    mask = (distance > max(_DISTANCE_PER_MEDIAN * median, _MIN_DISTANCE)).astype(np.uint8)
    mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc(1)), dtype=np.uint8)
    mask = remove_halo(mask, distance.astype(np.float32))
    gap = disc(max(1, round(_CLOSED_GAP * max(mask.shape) / 2)))
    mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, gap), dtype=np.uint8)
    objects = [part for area, part in connected_parts(mask) if area >= min_area]
    if not objects:
        raise RejectedObject("nothing moves in the frame")
    return [soft_alpha(part, (mask.shape[1], mask.shape[0])) for part in objects]

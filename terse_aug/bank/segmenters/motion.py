"""What moves before a camera that stands still. Pure functions; imports numpy and opencv only."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.extract import RejectedObject
from terse_aug.bank.segmenters.plain_background import blurred_lab, disc, softened, without_halo

_TIMES = 7.0
_LEAST_DISTANCE = 10.0
_MOST_COMMON = 5.0
_CLOSE = 0.01


def background_of(frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The scene without what moves: the median of frames, in which nothing stands still for half of the time.

    Args:
        frames: uint8 ``[H, W, 3]`` each, RGB, at least 3.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    background = np.empty_like(frames[0])
    for row in range(0, len(background), 64):  # a median takes several copies of what it is of
        band = np.stack([frame[row : row + 64] for frame in frames])
        background[row : row + 64] = np.median(band, axis=0).astype(np.uint8)
    return background


def moving_alphas(frame: NDArray[np.uint8], background: NDArray[np.uint8], min_area: int) -> list[NDArray[np.uint8]]:
    """The objects of a frame that are not of the background, from left to right.

    A pixel is of an object where its colour is farther from the background's, in L*a*b*, than seven times the median
    of that over the frame, and than 10. Parts that do not touch are
    objects of their own, after gaps of a hundredth of the frame were closed. A shadow moves as well, and is a part of
    its object.

    Args:
        frame: uint8 ``[H, W, 3]``, RGB.
        background: likewise.
        min_area: of an object, px; smaller parts are noise.

    Returns:
        uint8 ``[H, W]`` each, alpha 0 to 255, soft at the edge.

    Raises:
        Unusable: most of the frame differs, as when the camera or the light has changed, or nothing does.
    """
    distance = np.linalg.norm(blurred_lab(frame) - blurred_lab(background), axis=2)
    common = float(np.median(distance))
    if common > _MOST_COMMON:
        raise RejectedObject("most of the frame is not as the background: the camera or the light has changed")
    found = (distance > max(_TIMES * common, _LEAST_DISTANCE)).astype(np.uint8)
    found = np.asarray(cv2.morphologyEx(found, cv2.MORPH_OPEN, disc(1)), dtype=np.uint8)
    found = without_halo(found, distance.astype(np.float32))
    gap = disc(max(1, round(_CLOSE * max(found.shape) / 2)))
    found = np.asarray(cv2.morphologyEx(found, cv2.MORPH_CLOSE, gap), dtype=np.uint8)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(found, connectivity=8)
    kept = [number for number in range(1, count) if stats[number, cv2.CC_STAT_AREA] >= min_area]
    if not kept:
        raise RejectedObject("nothing moves in the frame")
    kept.sort(key=lambda number: (int(stats[number, cv2.CC_STAT_LEFT]), int(stats[number, cv2.CC_STAT_TOP])))
    return [softened((parts == number).astype(np.uint8), (found.shape[1], found.shape[0])) for number in kept]

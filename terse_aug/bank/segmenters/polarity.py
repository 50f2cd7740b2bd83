"""Which side of a mask the object is on. Pure functions; imports numpy and opencv only."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.extract import RejectedObject, what_is_seen
from terse_aug.bank.segmenters.plain_background import ground_distance

WHITE = "mask, object white"
BLACK = "mask, object black"

_LARGEST_SIDE = 384
_UNDECIDED = 0.2
_LEAST_DIFFERENCE = 2.0
_SOLID = 128


def object_alpha(mask: NDArray[np.uint8], image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], str]:
    """The object's alpha of a mask whose object may be white or black.

    What most of the border is made of is the ground; where a fifth or less tips the balance, it is that side of the
    mask whose colours are nearer to the ground's, see :func:`ground_distance`.

    Args:
        mask: uint8 ``[H, W]``; grey values are kept as alpha, but for those below 3 %, which are 0. One of two values,
            of which one is 0, is black and white, whatever the other is: labels are written so.
        image: uint8 ``[H, W, 3]``, RGB.

    Returns:
        uint8 ``[H, W]``, and :data:`WHITE` or :data:`BLACK`.

    Raises:
        Unusable: the mask is all of one value, neither its border nor the picture tells, or no pixel has an alpha of
            128 or more.
    """
    if mask.min() == mask.max():
        raise RejectedObject("mask shows no object: it is the same everywhere")
    if mask.min() == 0 and ((mask == 0) | (mask == mask.max())).all():
        mask = np.where(mask > 0, np.uint8(255), np.uint8(0))
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    balance = 2 * float((border > 127).mean()) - 1
    if abs(balance) <= _UNDECIDED:
        balance = _by_colour(mask, image)
    alpha, way = (mask, WHITE) if balance < 0 else (255 - mask, BLACK)
    if alpha.max() < _SOLID:
        raise RejectedObject(f"mask shows no object: no pixel has an alpha of {_SOLID} or more")
    return what_is_seen(alpha), way


def _by_colour(mask: NDArray[np.uint8], image: NDArray[np.uint8]) -> float:
    """Above 0 where the white side looks like the ground."""
    scale = min(1.0, _LARGEST_SIDE / max(mask.shape))
    size = (max(8, round(mask.shape[1] * scale)), max(8, round(mask.shape[0] * scale)))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    white = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)) > 127
    try:
        distance, _ = ground_distance(small)
    except RejectedObject:
        distance = np.zeros(white.shape, np.float32)
    if white.all() or not white.any():
        difference = 0.0
    else:
        difference = float(np.median(distance[~white]) - np.median(distance[white]))
    if abs(difference) < _LEAST_DIFFERENCE:
        raise RejectedObject("mask does not tell whether its object is white or black, nor does the picture")
    return difference

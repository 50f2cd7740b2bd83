"""Decides whether the object of a mask is white or black. Pure functions."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.extract import RejectedObject, remove_faint_alpha
from terse_aug.bank.segmenters.plain_background import background_distance

WHITE = "mask, object white"
BLACK = "mask, object black"

_WORKING_SIDE = 384
_UNDECIDED = 0.2
_MIN_DIFFERENCE = 2.0
_SOLID = 128


def object_alpha(mask: NDArray[np.uint8], image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], str]:
    """Alpha of the object of a mask, which may be white or black: uint8 ``[H, W]``, and :data:`WHITE` or :data:`BLACK`.

    The colour of most of the mask's border is background. Where black and white are within a fifth of each other there,
    the side whose colours in the image are nearer to the background's is background, see :func:`background_distance`.

    Args:
        mask: uint8 ``[H, W]``; grey values are kept as alpha, except that those below 3 % become 0. A mask of 0 and one
            other value is binary, whatever the other value is (label files).
        image: uint8 ``[H, W, 3]``, RGB.

    Raises:
        RejectedObject: the mask is uniform, neither border nor image decides, or no pixel has an alpha of 128 or more.
    """
    if mask.min() == mask.max():
        raise RejectedObject("mask shows no object: it is the same everywhere")
    if mask.min() == 0 and ((mask == 0) | (mask == mask.max())).all():
        mask = np.where(mask > 0, np.uint8(255), np.uint8(0))
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    balance = 2 * float((border > 127).mean()) - 1
    if abs(balance) <= _UNDECIDED:
        balance = _color_balance(mask, image)
    alpha, polarity = (mask, WHITE) if balance < 0 else (255 - mask, BLACK)
    if alpha.max() < _SOLID:
        raise RejectedObject(f"mask shows no object: no pixel has an alpha of {_SOLID} or more")
    return remove_faint_alpha(alpha), polarity


def _color_balance(mask: NDArray[np.uint8], image: NDArray[np.uint8]) -> float:
    """Positive where the white side looks more like the background."""
    scale = min(1.0, _WORKING_SIDE / max(mask.shape))
    size = (max(8, round(mask.shape[1] * scale)), max(8, round(mask.shape[0] * scale)))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    white = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)) > 127
    try:
        distance, _ = background_distance(small)
    except RejectedObject:
        distance = np.zeros(white.shape, np.float32)
    if white.all() or not white.any():
        difference = 0.0
    else:
        difference = float(np.median(distance[~white]) - np.median(distance[white]))
    if abs(difference) < _MIN_DIFFERENCE:
        raise RejectedObject("neither mask nor image shows whether the object is white or black")
    return difference

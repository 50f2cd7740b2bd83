"""Where decoys go, and where their pixels come from. Imports torch.

Decoys themselves are drawn in :mod:`terse_aug.compositing.plan`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from terse_aug.compositing.plan import Decoy
from terse_aug.compositing.render import Rectangle
from terse_aug.structures.annotations import Target

DECOY_OBJECT_SHARE = 0.1
"""A decoy may share at most this much of an object's box, or of its own area, where its pixels come from (or it
would teach that objects are background) and where it lands (or it would hide them)."""


def free_background(rectangle: Rectangle, decoy: Decoy, source: Tensor, target: Target) -> Rectangle | None:
    """The first of the decoy's places where a rectangle of this size shows no object, or ``None``."""
    height, width = rectangle.bottom - rectangle.top, rectangle.right - rectangle.left
    free_rows, free_columns = source.shape[-2] - height, source.shape[-1] - width
    if free_rows < 0 or free_columns < 0:
        return None
    boxes = target["boxes"].tolist()
    for x, y in decoy.corners:
        left, top = round(x * free_columns), round(y * free_rows)
        spot = Rectangle(top, left, top + height, left + width)
        if not meets_object(spot, boxes):
            return spot
    return None


def meets_object(rectangle: Rectangle, boxes: Sequence[Sequence[float]]) -> bool:
    """Whether the rectangle and a box share more than a tenth of either."""
    area = max((rectangle.bottom - rectangle.top) * (rectangle.right - rectangle.left), 1)
    for left, top, right, bottom in boxes:
        width = min(right, rectangle.right) - max(left, rectangle.left)
        height = min(bottom, rectangle.bottom) - max(top, rectangle.top)
        shared = max(width, 0) * max(height, 0)
        if shared > DECOY_OBJECT_SHARE * min((right - left) * (bottom - top), area):
            return True
    return False

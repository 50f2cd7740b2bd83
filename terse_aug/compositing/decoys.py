"""Where decoys are pasted, and where their pixels come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from terse_aug.compositing.geometry import paste_geometry, place_unit
from terse_aug.compositing.patches import Rectangle, covered_rectangles
from terse_aug.compositing.plan import Decoy
from terse_aug.config import PasteConfig
from terse_aug.transforms import Placement

DECOY_OBJECT_FRACTION = 0.1
"""A decoy may overlap an object's box by at most this fraction of either, where its pixels come from (or it
would teach that objects are background) and where it is pasted (or it would hide them)."""


def free_placement(
    decoy: Decoy, frame: tuple[int, int], boxes: Tensor, paste: PasteConfig
) -> tuple[NDArray[Any], Placement] | None:
    """The first of a decoy's transforms under which it hides no object, and its placement, one row each.

    Args:
        decoy: the decoy.
        frame: (H, W) of its image.
        boxes: float ``[N, 4]`` of the objects there, on the CPU.
        paste: settings.
    """
    count, objects = len(decoy.units), boxes.tolist()
    units = decoy.units.numpy()
    geometry = paste_geometry([decoy.foreground] * count, [False] * count, [frame] * count, units)
    placement = place_unit(units, geometry, paste.ranges)
    for row, rectangle in enumerate(covered_rectangles(placement, [frame] * count, paste.edge_blur_sigma)):
        if not overlaps_object(rectangle, objects):
            return units[row : row + 1], placement.rows(slice(row, row + 1))
    return None


def free_background(rectangle: Rectangle, decoy: Decoy, frame: tuple[int, int], boxes: Tensor) -> Rectangle | None:
    """The first of a decoy's places in its source where a rectangle of this size shows no object, or ``None``.

    Args:
        rectangle: that the decoy covers.
        decoy: the decoy.
        frame: (H, W) of its source.
        boxes: float ``[N, 4]`` of the objects there, on the CPU.
    """
    height, width = rectangle.bottom - rectangle.top, rectangle.right - rectangle.left
    free_rows, free_columns = frame[0] - height, frame[1] - width
    if free_rows < 0 or free_columns < 0:
        return None
    objects = boxes.tolist()
    for x, y in decoy.corners:
        left, top = round(x * free_columns), round(y * free_rows)
        spot = Rectangle(top, left, top + height, left + width)
        if not overlaps_object(spot, objects):
            return spot
    return None


def overlaps_object(rectangle: Rectangle, boxes: Sequence[Sequence[float]]) -> bool:
    """Whether the rectangle and a box overlap by more than a tenth of either."""
    area = max((rectangle.bottom - rectangle.top) * (rectangle.right - rectangle.left), 1)
    for left, top, right, bottom in boxes:
        width = min(right, rectangle.right) - max(left, rectangle.left)
        height = min(bottom, rectangle.bottom) - max(top, rectangle.top)
        shared = max(width, 0) * max(height, 0)
        if shared > DECOY_OBJECT_FRACTION * min((right - left) * (bottom - top), area):
            return True
    return False

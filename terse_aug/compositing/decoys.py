"""Where decoys are pasted, and where their pixels come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from terse_aug.compositing.geometry import frame_of, paste_geometry, place_unit
from terse_aug.compositing.label_correction import PastedObject
from terse_aug.compositing.plan import Decoy
from terse_aug.compositing.render import Patch, Rectangle, covered_rectangles
from terse_aug.compositing.warp import RenderSettings, warp
from terse_aug.structures.annotations import Target
from terse_aug.transforms import Placement

DECOY_OBJECT_FRACTION = 0.1
"""A decoy may overlap an object's box by at most this fraction of either, where its pixels come from (or it
would teach that objects are background) and where it is pasted (or it would hide them)."""


def decoy_pastes(
    decoys: Sequence[Decoy],
    images: Sequence[Tensor],
    targets: Sequence[Target],
    settings: RenderSettings,
    dropped: Counter[str],
) -> dict[int, list[tuple[Patch, PastedObject]]]:
    """Patches of background in an object's shape, by image; decoys without a free place are left out and counted."""
    placed = [(decoy, place) for decoy in decoys if (place := _placement(decoy, images, targets, settings)) is not None]
    pasted: dict[int, list[tuple[Patch, PastedObject]]] = {}
    for decoy, placement in placed:
        frames = [frame_of(images[decoy.image])]
        for warped in warp([decoy.foreground], placement, frames, settings, Counter()).values():
            rectangle = warped.patch.rectangle
            source = free_background(rectangle, decoy, images[decoy.source], targets[decoy.source])
            if source is None:
                continue
            color = source.of(images[decoy.source].detach())
            shown = PastedObject(rectangle, warped.patch.mask, label=None, full_area=0.0)
            pasted.setdefault(decoy.image, []).append((Patch(rectangle, color, warped.patch.alpha), shown))
    if decoys:
        dropped["decoy_without_background"] += len(decoys) - sum(map(len, pasted.values()))
    return pasted


def _placement(
    decoy: Decoy, images: Sequence[Tensor], targets: Sequence[Target], settings: RenderSettings
) -> Placement | None:
    """The placement, one row, of the first of the decoy's transforms under which it hides no object."""
    image, count = images[decoy.image], len(decoy.units)
    frames = [frame_of(image)] * count
    geometry = paste_geometry([decoy.foreground] * count, [False] * count, frames, decoy.units)
    placement = place_unit(decoy.units, geometry, settings.paste.ranges)
    boxes = targets[decoy.image]["boxes"].tolist()
    for row, rectangle in enumerate(covered_rectangles(placement, frames, settings.paste.edge_blur_sigma)):
        if not overlaps_object(rectangle, boxes):
            return placement.rows([row]).to(image.device)
    return None


def free_background(rectangle: Rectangle, decoy: Decoy, source: Tensor, target: Target) -> Rectangle | None:
    """The first of the decoy's places in the source where a rectangle of this size shows no object, or ``None``."""
    height, width = rectangle.bottom - rectangle.top, rectangle.right - rectangle.left
    free_rows, free_columns = source.shape[-2] - height, source.shape[-1] - width
    if free_rows < 0 or free_columns < 0:
        return None
    boxes = target["boxes"].tolist()
    for x, y in decoy.corners:
        left, top = round(x * free_columns), round(y * free_rows)
        spot = Rectangle(top, left, top + height, left + width)
        if not overlaps_object(spot, boxes):
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

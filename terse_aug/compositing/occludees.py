"""Where objects lie that a paste partly occludes.

Shape letters: M pastes, K occludees, P transform parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from terse_aug.compositing.geometry import paste_geometry, place_unit
from terse_aug.compositing.plan import AuxiliaryObjects
from terse_aug.transforms import Placement, TransformRanges, center_range


def place_occludees(
    occludees: AuxiliaryObjects, pastes: Placement, frames: Sequence[tuple[int, int]], ranges: TransformRanges
) -> tuple[Tensor, Placement]:
    """Put objects behind pastes: the center of each lies within the bounding box of the paste that occludes it.

    Args:
        occludees: K objects; their translation is relative to that bounding box.
        pastes: placement of the M pastes, on the device to compute on; no gradient is passed to them.
        frames: (H, W) of each image.
        ranges: of the transforms; a center outside of them is moved to the nearest one inside.

    Returns:
        Transforms float ``[K, P]`` in [0, 1], and the placement.
    """
    unit = occludees.unit.to(pastes.matrix.device)
    geometry = paste_geometry(
        occludees.foregrounds, occludees.flipped, [frames[image] for image in occludees.image_of], unit
    )
    half_size = place_unit(unit, geometry, ranges).half_size
    box_center, box_half_size = (
        values.detach()[occludees.occluded_by] for values in (pastes.box_center, pastes.half_size)
    )
    center = box_center + (2 * unit[:, 5:] - 1) * box_half_size
    lowest, free = center_range(half_size, geometry, ranges.keep_inside)
    fraction = (center - lowest) / free.clamp(min=1e-6)
    low, high = unit.new_tensor([ranges.translate_x, ranges.translate_y]).unbind(-1)
    translation = ((fraction - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    unit = torch.cat([unit[:, :5], translation], 1)
    return unit, place_unit(unit, geometry, ranges)

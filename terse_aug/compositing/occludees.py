"""Where objects lie that a paste partly occludes.

Shape letters: M pastes, K occludees, P transform parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from terse_aug.compositing.geometry import paste_geometry, place_unit
from terse_aug.compositing.plan import AuxiliaryObjects
from terse_aug.transforms import PARAMETERS, Placement, TransformRanges, center_range

_PLACE = slice(PARAMETERS.index("translate_x"), PARAMETERS.index("translate_y") + 1)


def place_occludees(
    occludees: AuxiliaryObjects, pastes: Placement, frames: Sequence[tuple[int, int]], ranges: TransformRanges
) -> tuple[Tensor, Placement]:
    """Put objects behind pastes: the center of each lies within the bounding box of the paste that occludes it.

    Args:
        occludees: K objects; their translation is relative to that bounding box.
        pastes: placement of the M pastes, NumPy arrays.
        frames: (H, W) of each image.
        ranges: of the transforms; a center outside of them is moved to the nearest one inside.

    Returns:
        Transforms float ``[K, P]`` in [0, 1], and the placement, NumPy arrays.
    """
    unit = occludees.unit.numpy()
    geometry = paste_geometry(
        occludees.foregrounds, occludees.flipped, [frames[image] for image in occludees.image_of], unit
    )
    half_size = place_unit(unit, geometry, ranges).half_size
    before = pastes.rows(occludees.occluded_by)
    center = before.box_center + (2 * unit[:, _PLACE] - 1) * before.half_size
    lowest, free = center_range(half_size, geometry, ranges.keep_inside)
    fraction = (center - lowest) / np.maximum(free, 1e-6)
    low, high = np.array([ranges.translate_x, ranges.translate_y], unit.dtype).T
    translation = ((fraction - low) / np.maximum(high - low, 1e-6)).clip(0, 1)
    unit = np.concatenate([unit[:, : _PLACE.start], translation, unit[:, _PLACE.stop :]], 1)
    return torch.from_numpy(unit), place_unit(unit, geometry, ranges)

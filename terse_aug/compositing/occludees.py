"""Where objects that are behind pastes lie. Imports torch.

Shape letters: M pastes, K objects behind some of them, P transform parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from terse_aug.bank import Foreground
from terse_aug.compositing.plan import PastePlan, paste_geometry
from terse_aug.data.auxiliary_objects import AuxiliaryObjects
from terse_aug.transforms import TransformRanges, place


def occludee_transforms(
    layout: PastePlan[Foreground], unit: Tensor, frames: Sequence[tuple[int, int]], ranges: TransformRanges
) -> Tensor:
    """Transforms that put objects behind the pastes of a layout.

    The middle of each is where its own translation says within the bounding box of its paste, or as near to there as
    the ranges allow.

    Args:
        layout: M pastes and what is behind them.
        unit: float ``[M, P]`` of the pastes; no gradient goes to them.
        frames: (H, W) of each image.
        ranges: of the transforms.

    Returns:
        float ``[K, P]`` in [0, 1], on the device of ``unit``.
    """
    extras = layout.behind
    own = extras.unit.to(unit.device)
    if not len(extras):
        return own
    front = place(
        ranges.physical(unit.detach()[extras.behind]),
        paste_geometry(
            [layout.foregrounds[number] for number in extras.behind],
            [layout.mirrored[number] for number in extras.behind],
            [frames[image] for image in extras.image_of],
            own,
        ),
        ranges.keep_inside,
    )
    wanted = front.middle + (2 * own[:, 5:] - 1) * front.half_extent
    return torch.cat([own[:, :5], _translation(wanted, own, extras, frames, ranges)], 1)


def _translation(
    middle: Tensor, unit: Tensor, extras: AuxiliaryObjects, frames: Sequence[tuple[int, int]], ranges: TransformRanges
) -> Tensor:
    """The two columns of translation that bring middles to these points ``[K, 2]``, which reverses :func:`place`."""
    geometry = paste_geometry(extras.foregrounds, extras.mirrored, [frames[image] for image in extras.image_of], unit)
    half_extent = place(ranges.physical(unit), geometry, ranges.keep_inside).half_extent
    lowest = torch.minimum(ranges.keep_inside * half_extent, geometry.frame_sizes / 2)
    share = (middle - lowest) / (geometry.frame_sizes - 2 * lowest).clamp(min=1e-6)
    low, high = unit.new_tensor([ranges.translate_x, ranges.translate_y]).unbind(-1)
    return ((share - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)

"""Draws the batch that a model is trained on, for a training log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from terse_aug.structures.annotations import OBJECT_FIELDS
from terse_aug.terse import Terse
from terse_aug.viz.contact_sheet import contact_sheet
from terse_aug.viz.drawing import draw_sample
from terse_aug.viz.images import RGBImage

_SHOWN = 4


def draw_batch(terse: Terse, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]) -> RGBImage:
    """Draw the first four composites of the last batch with their annotations.

    Args:
        terse: that has just made them.
        images: float ``[3, H, W]`` in its pixel format, on any device.
        targets: as it returned them.

    Returns:
        uint8 ``[H', W', 3]``, RGB; pasted objects have their own color.
    """
    drawn = []
    for image, target, pastes in list(zip(images, targets, terse.pastes, strict=True))[:_SHOWN]:
        rows = [paste.row for paste in pastes if paste.row is not None]
        own = {name: target[name].cpu() for name in OBJECT_FIELDS if name in target}
        drawn.append(draw_sample(terse.pixel_format.decode(image.detach().cpu()), own, terse.bank.categories, rows))
    return contact_sheet(drawn, columns=2)

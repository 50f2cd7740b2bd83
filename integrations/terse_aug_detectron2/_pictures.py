"""What enters the model, as a picture for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from terse_aug import Terse
from terse_aug.preview import contact_sheet, draw_sample

_SHOWN = 4


def picture_of(terse: Terse, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]) -> NDArray[np.uint8]:
    """The first composites of the batch that was pasted on last, with all boxes; pasted ones in a colour of their own.

    Returns:
        uint8 ``[3, H, W]``, RGB.
    """
    drawn = []
    for image, target, pastes in list(zip(images, targets, terse.pastes, strict=True))[:_SHOWN]:
        rows = [paste.row for paste in pastes if paste.row is not None]
        own = {name: value.cpu() for name, value in target.items()}
        drawn.append(draw_sample(terse.pixels.decode(image.detach().cpu()), own, terse.bank.categories, rows))
    sheet: NDArray[np.uint8] = contact_sheet(drawn, columns=2).transpose(2, 0, 1)
    return sheet

"""Banks of foregrounds that can be found by their colours, and backgrounds and distractors for them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from factories import (
    every_image,
    make_foreground,
)
from torch import Tensor

from terse_aug import (
    BackgroundPool,
    Distractors,
    ForegroundBank,
    PasteConfig,
)
from terse_aug.bank import Foreground

COLOURS = np.array([*itertools.islice(itertools.product((0, 255), repeat=3), 1, None), (255, 128, 0)], np.uint8)
"""Every foreground has its own color, so that its visible pixels can be found."""


def plain_paste(**settings: Any) -> PasteConfig:
    """Every image is pasted on, with hard edges and without decoys."""
    return every_image(**({"edge_blur_sigma": 0.0} | settings))


def coloured(number: int, label: int, relative_size: float = 0.4) -> Foreground:
    plain = make_foreground(number, label=label, side=24, relative_size=relative_size)
    plain.rgba[..., :3] = COLOURS[number]
    return plain


def grey(level: float, size: tuple[int, int] = (50, 70)) -> Tensor:
    return torch.full((3, *size), level)


def everything(distractors: ForegroundBank, probability: float = 0.5) -> dict[str, Any]:
    """Settings of ``Terse`` with backgrounds, distractors and occludees."""
    return {
        "paste": PasteConfig(occluded_object_probability=0.5, objects=(1, 3)),
        "backgrounds": BackgroundPool([grey(0.3), grey(0.6)], probability),
        "distractors": Distractors(distractors, count=(0, 2)),
    }

"""Large arrays on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised tensor on the CPU with the dtype of another.

    NumPy allocates it, which requests huge pages from 4 MB on: where a process returns its memory between composites,
    the page faults of small pages would take longer than pasting.
    """
    buffer = np.empty(math.prod(shape) * like.element_size(), np.uint8)
    if buffer.size == 0:  # cannot be viewed as another type
        return like.new_empty(tuple(shape))
    return torch.from_numpy(buffer).view(like.dtype).view(tuple(shape))

"""Large arrays on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised tensor with the dtype and device of another.

    On a CPU numpy allocates it, which requests huge pages from 4 MB on: where a process returns its memory between
    composites, the page faults of small pages would take longer than pasting.
    """
    if like.device.type != "cpu":
        return like.new_empty(tuple(shape))
    return _as_tensor(np.empty(math.prod(shape) * like.element_size(), np.uint8), shape, like)


def zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """A tensor of zeros, allocated as in :func:`empty`."""
    if like.device.type != "cpu":
        return like.new_zeros(tuple(shape))
    return _as_tensor(np.zeros(math.prod(shape) * like.element_size(), np.uint8), shape, like)


def _as_tensor(buffer: NDArray[np.uint8], shape: Sequence[int], like: Tensor) -> Tensor:
    if buffer.size == 0:  # cannot be viewed as another type
        return like.new_empty(tuple(shape))
    return torch.from_numpy(buffer).view(like.dtype).view(tuple(shape))

"""Large arrays on a CPU. Imports torch and numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """A tensor of any content, with the dtype and device of another.

    On a CPU the memory is numpy's, which asks the system for huge pages from 4 MB on. Where a process gives its
    memory back between composites, the page faults of small pages would take longer than pasting.
    """
    if like.device.type != "cpu":
        return like.new_empty(tuple(shape))
    return _tensor_of(np.empty(math.prod(shape) * like.element_size(), np.uint8), shape, like)


def zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """A tensor of zeros, otherwise as :func:`empty`."""
    if like.device.type != "cpu":
        return like.new_zeros(tuple(shape))
    return _tensor_of(np.zeros(math.prod(shape) * like.element_size(), np.uint8), shape, like)


def _tensor_of(content: NDArray[np.uint8], shape: Sequence[int], like: Tensor) -> Tensor:
    if content.size == 0:  # has no other type's view
        return like.new_empty(tuple(shape))
    return torch.from_numpy(content).view(like.dtype).view(tuple(shape))

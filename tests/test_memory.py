"""Large arrays have the shape and type requested, and can be written to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from terse_aug.utils.memory import empty, zeros


@pytest.mark.parametrize("make", [empty, zeros])
@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 5, 7), (2, 1500, 1500)])
def test_arrays(make: Callable[[Sequence[int], Tensor], Tensor], dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    made = make(shape, torch.ones(2, dtype=dtype))
    assert (made.shape, made.dtype, made.is_contiguous()) == (shape, dtype, True)
    assert make is empty or not made.any()
    assert made.fill_(1).all()

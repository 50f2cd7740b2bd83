"""Large arrays have the shape and type requested, and can be written to."""

from __future__ import annotations

import pytest
import torch

from terse_aug.utils.memory import empty


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 5, 7), (2, 1500, 1500)])
def test_arrays(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    made = empty(shape, torch.ones(2, dtype=dtype))
    assert (made.shape, made.dtype, made.is_contiguous()) == (shape, dtype, True)
    assert made.fill_(1).all()

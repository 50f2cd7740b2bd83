"""Pixels go to the framework's format and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terse_aug import PixelFormat

triples = st.tuples(*[st.floats(-200, 200)] * 3)
positive = st.floats(0.01, 300)


@st.composite
def formats(draw: st.DrawFn) -> PixelFormat:
    std = draw(st.tuples(positive, positive, positive))
    return PixelFormat(draw(positive), draw(triples), std, draw(st.booleans()))


@settings(deadline=None)
@given(pixels=formats(), seed=st.integers(0, 1000))
def test_decoding_undoes_encoding(pixels: PixelFormat, seed: int) -> None:
    rgb = torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(pixels.decode(pixels.encode(rgb)), rgb, atol=1e-7, rtol=0)


def test_encoding_is_the_documented_formula_in_the_frameworks_channel_order() -> None:
    rgb = torch.tensor([0.1, 0.2, 0.4]).view(3, 1, 1)
    pixels = PixelFormat(scale=255, mean=(1, 2, 3), std=(2, 4, 5), bgr=True)
    expected = [(0.4 * 255 - 1) / 2, (0.2 * 255 - 2) / 4, (0.1 * 255 - 3) / 5]
    torch.testing.assert_close(pixels.encode(rgb).flatten(), torch.tensor(expected))


def test_plain_rgb_is_passed_through() -> None:
    rgb = torch.rand(3, 2, 2)
    assert PixelFormat().identity
    assert PixelFormat().encode(rgb) is rgb
    assert PixelFormat().decode(rgb) is rgb


@pytest.mark.parametrize("other", [{"scale": 255}, {"mean": (0, 0, 1)}, {"std": (1, 2, 1)}, {"bgr": True}])
def test_any_other_format_is_no_identity(other: dict[str, Any]) -> None:
    assert not PixelFormat(**other).identity


@pytest.mark.parametrize("bad", [{"scale": 0}, {"scale": -1}, {"std": (1, 0, 1)}])
def test_a_scale_or_deviation_not_above_zero_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected scale and std above 0, got scale"):
        PixelFormat(**bad)

"""The 8-bit renderer puts the same things in the same places as the one with a gradient."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from compositing_samples import patches_of, plan_of, rectangles_of, rendered_over, settings_of, target_of, units
from hypothesis import given, settings
from hypothesis import strategies as st

from terse_aug import Foreground, PixelFormat
from terse_aug.compositing.compose import compose
from terse_aug.compositing.patches import Patch, blend
from terse_aug.compositing.render_cpu import render_8bit
from terse_aug.transforms import PasteGeometry, place

LEVEL = 1 / 255
# OpenCV 4 rounds positions to 1/32 pixel: half that in x and in y, on neighbours that differ by up to 1.
ROUNDING = 0.0 if int(cv2.__version__.split(".")[0]) >= 5 else 1 / 32
COLOR_ERROR = 0.5 * LEVEL + ROUNDING + 1e-4
ALPHA_ERROR = 2 * (0.5 * LEVEL + ROUNDING) + 1e-4

triples = st.tuples(*[st.floats(-100, 200)] * 3)
positive = st.tuples(*[st.floats(0.1, 100)] * 3)
formats = st.builds(PixelFormat, st.sampled_from([1.0, 255.0]), triples, positive, st.booleans())


def noise(height: int, width: int, seed: int) -> np.ndarray:
    """A foreground, uint8 ``[h, w, 4]``: noise in every channel, with holes and half transparent pixels."""
    rgba = np.random.default_rng(seed).integers(0, 256, (height, width, 4))
    rgba[..., 3] = (rgba[..., 3] * 3 - 150).clip(0, 255)
    return rgba.astype(np.uint8)


@st.composite
def pastes(draw: st.DrawFn) -> tuple[list[Patch], list[Patch], tuple[int, int], PixelFormat]:
    """A paste by both renderers: any transform, anywhere in a frame of any size, cut by it or not."""

    def number(low: float, high: float) -> float:
        return draw(st.floats(low, high))

    size = (draw(st.integers(2, 40)), draw(st.integers(2, 40)))
    rgba = noise(draw(st.integers(1, 20)), draw(st.integers(1, 20)), draw(st.integers(0, 99)))
    transform = (number(-180, 180), number(-0.7, 0.7), 1.0, number(0.3, 6), number(0.3, 6), 0.5, 0.5)
    flip = torch.tensor([draw(st.sampled_from([-1.0, 1.0]))]).double()
    pair, one = torch.ones(1, 2).double(), torch.ones(1).double()
    matrix = place(torch.tensor([transform]).double(), PasteGeometry(pair, pair, one, flip), 0.0).matrix
    center = torch.tensor([[number(0, size[1]), number(0, size[0])]]).double()
    sigma, pixels = draw(st.sampled_from([0.0, 0.4, 1.0, 2.3])), draw(formats)
    planes = torch.from_numpy(rgba).permute(2, 0, 1).double() / 255
    rectangles = rectangles_of([planes], matrix, center, size, sigma)
    exact = patches_of(rendered_over([planes], matrix, center, rectangles, size, sigma), rectangles)
    exact = [Patch(own.rectangle, pixels.encode(own.color), own.alpha) for own in exact]
    return exact, render_8bit([rgba], matrix.numpy(), center.numpy(), rectangles, sigma, pixels), size, pixels


@settings(max_examples=300, deadline=None)
@given(pair=pastes())
def test_colour_and_alpha_are_those_of_the_exact_renderer_to_a_level(
    pair: tuple[list[Patch], list[Patch], tuple[int, int], PixelFormat],
) -> None:
    (exact,), (fast,), _, pixels = pair
    assert fast.rectangle == exact.rectangle
    np.testing.assert_allclose(fast.alpha, exact.alpha, rtol=0, atol=ALPHA_ERROR)
    seen = (fast.alpha > 0) | (exact.alpha > 1e-9)
    difference = pixels.decode(fast.color_like(exact.color)) - pixels.decode(exact.color)
    assert (difference * seen).abs().max() < COLOR_ERROR


@settings(max_examples=100, deadline=None)
@given(pair=pastes())
def test_blended_they_differ_by_about_a_level(
    pair: tuple[list[Patch], list[Patch], tuple[int, int], PixelFormat],
) -> None:
    exact, fast, size, pixels = pair
    background = pixels.encode(torch.rand(3, *size, generator=torch.Generator().manual_seed(0)))
    difference = pixels.decode(blend(background, fast)) - pixels.decode(blend(background, exact))
    assert difference.abs().max() < COLOR_ERROR + ALPHA_ERROR


@settings(max_examples=50, deadline=None)
@given(pair=pastes())
def test_the_mask_is_where_the_blended_alpha_is_above_one_half(
    pair: tuple[list[Patch], list[Patch], tuple[int, int], PixelFormat],
) -> None:
    _, (patch,), size, _ = pair
    white = Patch(patch.rectangle, torch.ones(3, *patch.mask.shape), patch.alpha)
    composite = blend(torch.zeros(3, *size), [white])
    assert np.array_equal(patch.rectangle.of(composite)[0] > 0.5, patch.mask)


@pytest.mark.parametrize("relative_size", [0.05, 0.3, 1.5])
def test_composites_with_and_without_a_gradient_differ_by_about_a_level(relative_size: float) -> None:
    """Some of the foregrounds are reduced before the warp."""
    image = torch.rand(3, 60, 80)
    foregrounds = [Foreground(noise(40, 30, seed), 1, "drawn", relative_size) for seed in range(4)]
    exact, fast = (
        compose([image], [target_of()], plan_of(foregrounds, [0] * 4), unit, settings_of())
        for unit in (units(4).requires_grad_(), units(4))
    )
    assert exact.images[0].requires_grad
    assert not fast.images[0].requires_grad
    difference = (exact.images[0].detach() - fast.images[0]).abs()
    assert 0 < difference.max() < COLOR_ERROR + ALPHA_ERROR
    assert [paste.row for paste in fast.pastes[0]] == [paste.row for paste in exact.pastes[0]]
    torch.testing.assert_close(fast.targets[0]["boxes"], exact.targets[0]["boxes"].detach(), rtol=0, atol=1)

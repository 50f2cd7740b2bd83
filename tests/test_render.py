"""The compositor warps, softens and blends like the reference implementation, with a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import reference
import torch
from compositing_samples import (
    WIDE,
    levels_of,
    opaque_rgba,
    patches_of,
    random_rgba,
    rectangles_of,
    rendered_over,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from terse_aug import PARAMETERS, PixelFormat
from terse_aug.compositing.patches import Patch, blend, covered_rectangles
from terse_aug.compositing.render import composites
from terse_aug.transforms import PasteGeometry, Placement, place

FRAME = (20, 26)
MIDDLE = (13.0, 10.0)
torch.set_num_threads(1)


def matrix_of(
    rotation: float = 0.0, shear: float = 0.0, scale_x: float = 1.0, scale_y: float = 1.0, flipped: bool = False
) -> Tensor:
    """The matrix of a transform, ``[2, 2]``."""
    physical = torch.tensor([[rotation, shear, 1.0, scale_x, scale_y, 0.5, 0.5]], dtype=torch.float64)
    one, pair = torch.ones(1, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    return place(physical, PasteGeometry(pair, pair, one, -one if flipped else one), 0.0).matrix[0]


def rendered(
    foregrounds: Sequence[Tensor],
    matrices: Sequence[Tensor],
    centres: Sequence[Sequence[float]],
    size: tuple[int, int] = FRAME,
    sigma: float = 1.0,
) -> list[Patch]:
    """Patches of foregrounds in one frame."""
    matrix, center = torch.stack(list(matrices)), torch.tensor(centres, dtype=matrices[0].dtype)
    rectangles = rectangles_of(foregrounds, matrix, center, size, sigma)
    return patches_of(rendered_over(foregrounds, matrix, center, rectangles, size, sigma), rectangles)


def over_frame(values: Tensor, patch: Patch, size: tuple[int, int]) -> Tensor:
    """A patch's colour or alpha in a frame of zeros."""
    frame = values.new_zeros(values.shape[0], *size)
    patch.rectangle.of(frame).copy_(values)
    return frame


def assert_like_reference(
    rgba: Tensor, matrix: Tensor, center: Sequence[float], size: tuple[int, int], sigma: float
) -> None:
    patch = rendered([rgba], [matrix], [center], size, sigma)[0]
    color, alpha = reference.render(levels_of(rgba).numpy(), matrix.numpy(), np.array(center), size, sigma)
    np.testing.assert_allclose(over_frame(patch.alpha, patch, size)[0].numpy(), alpha, atol=1e-9)
    np.testing.assert_allclose(patch.color.numpy(), patch.rectangle.of(torch.tensor(color)).numpy(), atol=1e-9)
    expected = patch.rectangle.of(torch.tensor(alpha)).numpy()
    assert ((patch.mask == (expected > 0.5)) | (abs(expected - 0.5) < 1e-9)).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rendering_agrees_with_the_reference(data: st.DataObject) -> None:
    """Any transform, anywhere in a frame that may cut the object: also enlarged so much that its edge is wide."""

    def number(low: float, high: float) -> float:
        return data.draw(st.floats(low, high))

    size = (data.draw(st.integers(2, 14)), data.draw(st.integers(2, 14)))
    rgba = random_rgba(data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)), data.draw(st.integers(0, 99)))
    rgba = data.draw(st.sampled_from([rgba, opaque_rgba(1, 2)]))
    matrix = matrix_of(number(-180, 180), number(-0.7, 0.7), number(0.3, 11), number(0.3, 11), data.draw(st.booleans()))
    center = (number(0, size[1]), number(0, size[0]))
    assert_like_reference(rgba, matrix, center, size, data.draw(st.sampled_from([0.0, 0.3, 1.0])))


def crowd(count: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor], list[list[float]]]:
    """Foregrounds of many sizes with many transforms, all over the frame."""
    numbers = torch.rand(count, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64).tolist()
    foregrounds = [random_rgba(3 + index % 5, 4 + index * 3 % 7, index, dtype) for index in range(count)]
    matrices = [
        matrix_of(360 * a, b - 0.5, 0.4 + c, 0.4 + d, index % 2 == 0).to(dtype)
        for index, (a, b, c, d, _, _) in enumerate(numbers)
    ]
    return foregrounds, matrices, [[e * FRAME[1], f * FRAME[0]] for *_, e, f in numbers]


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_a_layer_is_the_same_alone_and_among_others(sigma: float) -> None:
    foregrounds, matrices, centres = crowd(12)
    together = rendered(foregrounds, matrices, centres, sigma=sigma)
    for patch, *one in zip(together, foregrounds, matrices, centres, strict=True):
        (alone,) = rendered(*([own] for own in one), sigma=sigma)
        torch.testing.assert_close(patch.color, alone.color, atol=1e-10, rtol=0)
        torch.testing.assert_close(patch.alpha, alone.alpha, atol=1e-10, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu() -> None:
    foregrounds, matrices, centres = crowd(12)
    matrix, center = torch.stack(matrices), torch.tensor(centres, dtype=torch.float64)
    rectangles = rectangles_of(foregrounds, matrix, center, FRAME, 1.0)
    background = random_rgba(*FRAME)[:3]
    on_cpu, on_cuda = (
        composites(
            [background.to(device)],
            rendered_over(foregrounds, matrix.to(device), center.to(device), rectangles, FRAME),
            PixelFormat(),
        )[0]
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(on_cuda.cpu(), on_cpu)


def test_blending_agrees_with_the_reference_where_pastes_overlap() -> None:
    """All at once, one after the other, and in 8 bits."""
    background = levels_of(random_rgba(*FRAME, seed=9)[:3])
    foregrounds, matrices, centres = crowd(6)
    matrix, center = torch.stack(matrices), torch.tensor(centres, dtype=torch.float64)
    rectangles = rectangles_of(foregrounds, matrix, center, FRAME, 1.0)
    pixels = rendered_over(foregrounds, matrix, center, rectangles, FRAME)
    patches = patches_of(pixels, rectangles)
    layers = [
        (over_frame(patch.color, patch, FRAME).numpy(), over_frame(patch.alpha, patch, FRAME)[0].numpy())
        for patch in patches
    ]
    expected = reference.blend(background.numpy(), layers)
    np.testing.assert_allclose(blend(background, patches).numpy(), expected)
    np.testing.assert_allclose(composites([background], pixels, PixelFormat())[0].numpy(), expected)
    (in_levels,) = composites([(background * 255).byte()], pixels, PixelFormat())
    np.testing.assert_allclose(in_levels.numpy() / 255, expected, atol=0.501 / 255)


def test_pixels_outside_the_rectangles_and_the_inputs_are_untouched_bit_for_bit() -> None:
    background = random_rgba(*FRAME, seed=9)[:3] * 1e-3 + 1e3
    foregrounds, matrices, centres = crowd(3)
    before = [tensor.clone() for tensor in (background, *foregrounds, *matrices)]
    patches = rendered(foregrounds, matrices, centres)
    drawn = [patch.color.clone() for patch in patches]
    composite = blend(background, patches)
    outside = torch.ones(FRAME, dtype=torch.bool)
    for patch in patches:
        patch.rectangle.of(outside).fill_(False)
    assert outside.any()
    assert torch.equal(composite[:, outside], background[:, outside])
    assert not torch.equal(composite, background)
    assert all(map(torch.equal, (background, *foregrounds, *matrices), before))
    assert all(torch.equal(patch.color, color) for patch, color in zip(patches, drawn, strict=True))


def test_the_rectangle_of_a_paste_outside_the_frame_is_empty() -> None:
    half = np.array([[2.0, 2.0]])
    for center in ([-9.0, 5.0], [5.0, -9.0], [99.0, 5.0], [5.0, 99.0]):
        at = np.array([center])
        assert covered_rectangles(Placement(np.eye(2)[None], at, at, half), [FRAME], 1.0)[0].empty


@pytest.mark.parametrize("sigma", [0.0, 1.0])
@pytest.mark.parametrize(
    ("rotation", "scale_x", "scale_y"), [(0, 1, 1), (40, 1.5, 0.8), (100, 0.6, 0.6), (7, 3.1, 2.3)]
)
def test_the_mask_clean_up_keeps_the_area(rotation: float, scale_x: float, scale_y: float, sigma: float) -> None:
    rows, columns = np.mgrid[:24, :24] - 11.5
    rgba = opaque_rgba(24, 24)
    rgba[3] = torch.tensor(rows**2 + columns**2 < 11**2)
    matrix = matrix_of(rotation, 0.2, scale_x, scale_y, flipped=True)
    (patch,) = rendered([rgba], [matrix], [(50.3, 50.9)], (100, 100), sigma)
    assert float(patch.mask.sum()) == pytest.approx(float(matrix.det().abs() * rgba[3].sum()), rel=0.03)


@pytest.mark.parametrize("sigma", [0.0, 0.8])
@pytest.mark.parametrize(
    ("count", "seed", "outlined"), [(1, 0, False), (1, 1, False), (2, 2, False), (1, 1, True), (2, 2, True)]
)
def test_the_composite_has_the_right_gradient_in_the_unit_parameters(
    count: int, seed: int, outlined: bool, sigma: float
) -> None:
    size = (9, 11)
    foregrounds = [random_rgba(4 + index, 5, seed + index) for index in range(count)]
    background = random_rgba(*size, seed=50)[:3]
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(count, len(PARAMETERS), generator=generator, dtype=torch.float64).requires_grad_()
    geometry = PasteGeometry(
        torch.tensor([[rgba.shape[2], rgba.shape[1]] for rgba in foregrounds]).double(),
        torch.tensor([[size[1], size[0]]] * count).double(),
        torch.full((count,), 1.1).double(),
        torch.tensor([-1.0, 1.0, 1.0][:count]).double(),
        # A triangle: when it turns, its bounding box moves away from the rectangle's middle.
        torch.tensor([[[-2.5, -2.0], [2.5, -2.0], [2.5, 2.0]]] * count).double() if outlined else None,
    )

    def composite(unit: Tensor) -> Tensor:
        placed = place(WIDE.physical(unit), geometry, WIDE.keep_inside)
        known = Placement(*(own.detach().numpy() for own in placed.parts()))
        rectangles = covered_rectangles(known, [size] * count, sigma)
        pixels = rendered_over(foregrounds, placed.matrix, placed.center, rectangles, size, sigma)
        return composites([background], pixels, PixelFormat())[0]

    composed = composite(unit)
    (gradient,) = torch.autograd.grad(composed.square().sum() if outlined else composed[0, 4].sum(), unit)
    assert (gradient != 0).all()
    assert torch.autograd.gradcheck(composite, (unit,))

"""The compositor warps, softens and blends like the reference implementation, with a gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from terse_aug.compositing.warp import RenderSettings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from terse_aug import PARAMETERS, Foreground, PasteConfig, PixelFormat, TransformRanges
from terse_aug.compositing.compose import Composites, compose
from terse_aug.compositing.geometry import foreground_tensor, reduced_foreground
from terse_aug.compositing.plan import Decoy, PastePlan
from terse_aug.compositing.render import Patch, Rectangle, blend, covered_rectangles, gaussian_blur, render
from terse_aug.transforms import PasteGeometry, Placement, place

FRAME = (20, 26)
MIDDLE = (13.0, 10.0)
torch.set_num_threads(1)


def random_rgba(height: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Noise in every channel, with holes and half transparent pixels in alpha."""
    generator = torch.Generator().manual_seed(seed)
    rgba = torch.rand(4, height, width, generator=generator, dtype=torch.float64)
    rgba[3] = (rgba[3] * 3 - 0.6).clamp(0, 1)
    return rgba.to(dtype)


def opaque_rgba(height: int, width: int) -> Tensor:
    return torch.ones(4, height, width, dtype=torch.float64)


def matrix_of(
    rotation: float = 0.0, shear: float = 0.0, scale_x: float = 1.0, scale_y: float = 1.0, flipped: bool = False
) -> Tensor:
    """The matrix of a transform, ``[2, 2]``."""
    physical = torch.tensor([[rotation, shear, 1.0, scale_x, scale_y, 0.5, 0.5]], dtype=torch.float64)
    one, pair = torch.ones(1, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    return place(physical, PasteGeometry(pair, pair, one, -one if flipped else one), 0.0).matrix[0]


def corners_of_pixels(alpha: NDArray[np.uint8]) -> NDArray[np.float64]:
    """All corners of the pixels that show, ``[n, 2]``, x and y from the middle: the object, not only its hull."""
    rows, columns = np.nonzero(alpha)
    corners = [(columns + right, rows + low) for right in (0, 1) for low in (0, 1)]
    points = np.concatenate([np.stack(pair, 1) for pair in corners]).astype(np.float64)
    return points - np.array([alpha.shape[1] / 2, alpha.shape[0] / 2])


def rectangles_of(
    foregrounds: Sequence[Tensor], matrix: Tensor, center: Tensor, size: tuple[int, int], sigma: float
) -> list[Any]:
    sizes = torch.tensor([[rgba.shape[2], rgba.shape[1]] for rgba in foregrounds], dtype=matrix.dtype)
    half_size = (matrix.abs() @ (sizes / 2)[:, :, None])[:, :, 0]
    return covered_rectangles(Placement(matrix, center, center, half_size), [size] * len(foregrounds), sigma)


def rendered(
    foregrounds: Sequence[Tensor],
    matrices: Sequence[Tensor],
    centres: Sequence[Sequence[float]],
    size: tuple[int, int] = FRAME,
    sigma: float = 1.0,
    batched: bool = False,
) -> list[Patch]:
    """Patches of foregrounds in frames of one size."""
    matrix, center = torch.stack(list(matrices)), torch.tensor(centres, dtype=matrices[0].dtype)
    rectangles = rectangles_of(foregrounds, matrix, center, size, sigma)
    return render(foregrounds, matrix, center, rectangles, sigma, batched)


def over_frame(values: Tensor, patch: Patch, size: tuple[int, int]) -> Tensor:
    """A patch's colour or alpha in a frame of zeros."""
    frame = values.new_zeros(values.shape[0], *size)
    patch.rectangle.of(frame).copy_(values)
    return frame


def assert_like_reference(
    rgba: Tensor, matrix: Tensor, center: Sequence[float], size: tuple[int, int], sigma: float
) -> None:
    patch = rendered([rgba], [matrix], [center], size, sigma)[0]
    color, alpha = reference.render(rgba.numpy(), matrix.numpy(), np.array(center), size, sigma)
    np.testing.assert_allclose(over_frame(patch.alpha, patch, size)[0].numpy(), alpha, atol=1e-9)
    np.testing.assert_allclose(patch.color.numpy(), patch.rectangle.of(torch.tensor(color)).numpy(), atol=1e-9)
    expected = patch.rectangle.of(torch.tensor(alpha)).numpy()
    assert ((patch.mask.numpy() == (expected > 0.5)) | (abs(expected - 0.5) < 1e-9)).all()


@pytest.mark.parametrize("sigma", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(
    ("transform", "center"),
    [
        ({}, MIDDLE),
        ({}, (13.3, 9.8)),
        ({"rotation": 30}, MIDDLE),
        ({"rotation": -115}, (12.1, 10.6)),
        ({"shear": 0.6}, MIDDLE),
        ({"flipped": True, "rotation": 20}, MIDDLE),
        ({"scale_x": 1.7, "scale_y": 0.6}, MIDDLE),
        ({"rotation": 10, "scale_x": 0.4, "scale_y": 0.3}, MIDDLE),
        ({"rotation": 5, "scale_x": 9.0, "scale_y": 11.0}, MIDDLE),
        ({"rotation": 15, "shear": -0.3}, (0.2, 19.5)),
        ({"rotation": 15, "flipped": True}, (25.0, 0.0)),
    ],
)
def test_rendering_agrees_with_the_reference(
    transform: dict[str, Any], center: tuple[float, float], sigma: float
) -> None:
    large = transform.get("scale_x", 1.0) > 5
    rgba = opaque_rgba(1, 2) if large else random_rgba(7, 9)
    assert_like_reference(rgba, matrix_of(**transform), center, FRAME, sigma)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_rendering_agrees_with_the_reference(data: st.DataObject) -> None:
    def number(low: float, high: float) -> float:
        return data.draw(st.floats(low, high))

    size = (data.draw(st.integers(2, 12)), data.draw(st.integers(2, 12)))
    rgba = random_rgba(data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)), data.draw(st.integers(0, 99)))
    matrix = matrix_of(number(-180, 180), number(-0.7, 0.7), number(0.3, 6), number(0.3, 6), data.draw(st.booleans()))
    center = (number(0, size[1]), number(0, size[0]))
    assert_like_reference(rgba, matrix, center, size, data.draw(st.sampled_from([0.0, 0.3, 0.8])))


def test_the_identity_reproduces_the_foreground_where_the_object_is() -> None:
    rgba = random_rgba(8, 10)
    rgba[3] = 1
    (patch,) = rendered([rgba], [matrix_of()], [MIDDLE], sigma=0.0)
    composite = blend(torch.zeros(3, *FRAME, dtype=torch.float64), [patch])
    torch.testing.assert_close(composite[:, 6:14, 8:18], rgba[:3])
    assert over_frame(patch.alpha, patch, FRAME)[0].sum() == 80


def test_mirroring_flips_left_and_right() -> None:
    rgba = random_rgba(8, 10)
    (plain,) = rendered([rgba.flip(2)], [matrix_of()], [MIDDLE])
    (flipped,) = rendered([rgba], [matrix_of(flipped=True)], [MIDDLE])
    torch.testing.assert_close(flipped.alpha, plain.alpha)
    torch.testing.assert_close(flipped.color, plain.color)


def crowd(count: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor], list[list[float]]]:
    """Foregrounds of many sizes with many transforms, all over the frame."""
    numbers = torch.rand(count, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64).tolist()
    foregrounds = [random_rgba(3 + index % 5, 4 + index * 3 % 7, index, dtype) for index in range(count)]
    matrices = [
        matrix_of(360 * a, b - 0.5, 0.4 + c, 0.4 + d, index % 2 == 0).to(dtype)
        for index, (a, b, c, d, _, _) in enumerate(numbers)
    ]
    return foregrounds, matrices, [[e * FRAME[1], f * FRAME[0]] for *_, e, f in numbers]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_batched_equals_one_by_one(sigma: float, dtype: torch.dtype) -> None:
    pastes = crowd(12, dtype)
    atol = 1e-4 if dtype == torch.float32 else 1e-10
    for single, batched in zip(
        rendered(*pastes, sigma=sigma), rendered(*pastes, sigma=sigma, batched=True), strict=True
    ):
        assert single.rectangle == batched.rectangle
        torch.testing.assert_close(batched.color, single.color, atol=atol, rtol=0)
        torch.testing.assert_close(batched.alpha, single.alpha, atol=atol, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("batched", [False, True])
def test_cuda_equals_cpu(batched: bool) -> None:
    foregrounds, matrices, centres = crowd(12)
    matrix, center = torch.stack(matrices), torch.tensor(centres, dtype=torch.float64)
    rectangles = rectangles_of(foregrounds, matrix, center, FRAME, 1.0)
    background = random_rgba(*FRAME)[:3]
    on_cpu = blend(background, render(foregrounds, matrix, center, rectangles, 1.0))
    moved = [rgba.cuda() for rgba in foregrounds]
    on_cuda = blend(background.cuda(), render(moved, matrix.cuda(), center.cuda(), rectangles, 1.0, batched))
    torch.testing.assert_close(on_cuda.cpu(), on_cpu)


def test_blending_agrees_with_the_reference_where_pastes_overlap() -> None:
    background = random_rgba(*FRAME, seed=9)[:3]
    patches = rendered(*crowd(6))
    layers = [
        (over_frame(patch.color, patch, FRAME).numpy(), over_frame(patch.alpha, patch, FRAME)[0].numpy())
        for patch in patches
    ]
    np.testing.assert_allclose(blend(background, patches).numpy(), reference.blend(background.numpy(), layers))


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


def test_no_pastes_change_nothing() -> None:
    background = random_rgba(*FRAME)[:3]
    composite = blend(background, [])
    assert torch.equal(composite, background)
    assert composite.data_ptr() != background.data_ptr()
    assert render([], torch.zeros(0, 2, 2), torch.zeros(0, 2), [], 1.0, batched=True) == []


def test_the_rectangle_of_a_paste_outside_the_frame_is_empty() -> None:
    half = torch.tensor([[2.0, 2.0]])
    for center in ([-9.0, 5.0], [5.0, -9.0], [99.0, 5.0], [5.0, 99.0]):
        at = torch.tensor([center])
        assert covered_rectangles(Placement(torch.eye(2)[None], at, at, half), [FRAME], 1.0)[0].empty


@pytest.mark.parametrize("shift", [(0, 0), (-7, 3), (9, -8)])
def test_an_object_that_the_frame_cuts_does_not_fade_there(shift: tuple[int, int]) -> None:
    rgba, matrix = random_rgba(9, 12), matrix_of(25, 0.1)
    center = (MIDDLE[0] + shift[0], MIDDLE[1] + shift[1])
    (cut,) = rendered([rgba], [matrix], [center])
    (whole,) = rendered([rgba], [matrix], [(center[0] + 20, center[1] + 20)], (FRAME[0] + 40, FRAME[1] + 40))
    wide = over_frame(whole.alpha, whole, (FRAME[0] + 40, FRAME[1] + 40))[:, 20:-20, 20:-20]
    torch.testing.assert_close(over_frame(cut.alpha, cut, FRAME), wide)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("rotation", [0, 33])
def test_alpha_rises_towards_the_middle_and_stays_within_zero_and_one(sigma: float, rotation: float) -> None:
    (patch,) = rendered([opaque_rgba(17, 17)], [matrix_of(rotation)], [(25.5, 25.5)], (51, 51), sigma)
    alpha = over_frame(patch.alpha, patch, (51, 51))[0]
    assert ((alpha >= 0) & (alpha <= 1 + 1e-12)).all()
    assert alpha[25, 25] == pytest.approx(1)
    for line in (*alpha, *alpha.T):  # the object is convex
        peak = int(line.argmax())
        assert (line[: peak + 1].diff() >= -1e-6).all()
        assert (line[peak:].diff() <= 1e-6).all()
    if sigma == 2.0:
        assert ((alpha > 0.05) & (alpha < 0.95)).sum() > 50


def test_the_blur_keeps_the_sum_and_a_constant() -> None:
    spot = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    spot[..., 10, 10] = 1
    blurred = gaussian_blur(spot, 1.5)
    assert blurred.shape == (1, 1, 15, 15)
    assert blurred.sum() == pytest.approx(1)
    assert float(blurred[0, 0, 7, 8] / blurred[0, 0, 7, 7]) == pytest.approx(math.exp(-1 / (2 * 1.5**2)))
    torch.testing.assert_close(gaussian_blur(torch.ones_like(spot), 1.5), torch.ones(1, 1, 15, 15).double())


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


WIDE = TransformRanges(
    rotation=(-60, 60), shear=(-0.4, 0.4), scale=(0.6, 1.6), scale_x=(0.7, 1.4), scale_y=(0.7, 1.4), keep_inside=0.5
)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("sigma", [0.0, 0.8])
@pytest.mark.parametrize(
    ("count", "seed", "outlined"), [(1, 0, False), (1, 1, False), (2, 2, False), (1, 1, True), (2, 2, True)]
)
def test_the_composite_has_the_right_gradient_in_the_unit_parameters(
    count: int, seed: int, outlined: bool, sigma: float, batched: bool
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
        rectangles = covered_rectangles(placed.detached_cpu(), [size] * count, sigma)
        return blend(background, render(foregrounds, placed.matrix, placed.center, rectangles, sigma, batched))

    composed = composite(unit)
    (gradient,) = torch.autograd.grad(composed.square().sum() if outlined else composed[0, 4].sum(), unit)
    assert (gradient != 0).all()
    assert torch.autograd.gradcheck(composite, (unit,))


def test_a_graph_changes_no_pixel() -> None:
    background = random_rgba(*FRAME, seed=9)[:3]
    foregrounds, matrices, centres = crowd(5)
    matrix, center = torch.stack(matrices), torch.tensor(centres, dtype=torch.float64)
    rectangles = rectangles_of(foregrounds, matrix, center, FRAME, 1.0)
    plain = blend(background, render(foregrounds, matrix, center, rectangles, 1.0))
    grown = blend(background, render(foregrounds, matrix.requires_grad_(), center, rectangles, 1.0))
    assert grown.requires_grad
    torch.testing.assert_close(grown.detach(), plain, rtol=0, atol=1e-12)


# From a paste plan to composites.

STILL = TransformRanges(rotation=(0, 0), shear=(0, 0), scale=(1, 1), scale_x=(1, 1), scale_y=(1, 1), keep_inside=1)


def foreground_of(rgba: Tensor, relative_size: float = 0.4, keypoints: Any = None, label: int = 7) -> Foreground:
    pixels = (rgba * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return Foreground(pixels, label, "somewhere.jpg#1", relative_size, keypoints)


def settings_of(ranges: TransformRanges = WIDE, **settings: Any) -> RenderSettings:
    keypoint_flip_order = settings.pop("keypoint_flip_order", ())
    return RenderSettings(PasteConfig(ranges=ranges, **settings), PixelFormat(), keypoint_flip_order)


def plan_of(foregrounds: Sequence[Foreground], image_of: Sequence[int], decoys: Sequence[Decoy] = ()) -> PastePlan:
    count = len(foregrounds)
    flipped = [index % 2 == 1 for index in range(count)]
    return PastePlan(list(image_of), list(range(count)), list(foregrounds), flipped, list(decoys))


def target_of(boxes: Sequence[Sequence[float]] = ()) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes).view(-1, 4), "labels": torch.ones(len(boxes), dtype=torch.long)}


def units(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, len(PARAMETERS), generator=torch.Generator().manual_seed(seed))


def test_composites_and_their_labels_agree_with_the_reference() -> None:
    size = (28, 34)
    image = random_rgba(*size, seed=4)[:3]
    foregrounds = [foreground_of(random_rgba(10 + index, 12, index) ** 0.5, 0.4, label=index) for index in range(4)]
    target = target_of([[3, 4, 20, 15], [15, 10, 30, 26]]) | {"masks": torch.zeros(2, *size, dtype=torch.bool)}
    for mask, (left, top, right, bottom) in zip(target["masks"], target["boxes"].int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    plan = plan_of(foregrounds, [0] * 4)
    unit = units(4).double().requires_grad_()
    composites = compose([image], [target], plan, unit, settings_of(min_visibility=0.3))
    layers, covers = [], []
    for index, (foreground, flipped) in enumerate(zip(foregrounds, plan.flipped, strict=True)):
        rgba = foreground.rgba.transpose(2, 0, 1) / 255
        height, width = rgba.shape[1:]
        natural = 0.4 * math.sqrt(size[0] * size[1]) / max(height, width)
        geometry = PasteGeometry(
            torch.tensor([[width, height]]).double(),
            torch.tensor([[size[1], size[0]]]).double(),
            torch.tensor([natural]).double(),
            torch.tensor([-1.0 if flipped else 1.0]).double(),
            torch.from_numpy(corners_of_pixels(foreground.rgba[:, :, 3]))[None],
        )
        placed = place(WIDE.physical(unit.detach()[index : index + 1]), geometry, WIDE.keep_inside)
        matrix, center = placed.matrix, placed.center
        color, alpha = reference.render(rgba, matrix[0].numpy(), center[0].numpy(), size, 1.0)
        layers.append((color, alpha))
        full_area = abs(np.linalg.det(matrix[0].numpy())) * (rgba[3] > 0.5).sum()
        covers.append(reference.Cover(alpha > 0.5, index, float(full_area)))
    np.testing.assert_allclose(composites.images[0].detach().numpy(), reference.blend(image.numpy(), layers), atol=1e-6)
    things = [
        reference.Thing(box, 1, mask.numpy())
        for box, mask in zip(target["boxes"].tolist(), target["masks"], strict=True)
    ]
    expected = reference.correct(things, size, covers, 0.3, True)
    assert composites.targets[0]["labels"].tolist() == [thing.label for thing in expected]
    assert composites.targets[0]["boxes"].tolist() == [thing.box for thing in expected]
    np.testing.assert_array_equal(composites.targets[0]["masks"].numpy(), np.stack([thing.mask for thing in expected]))
    shown = {thing.origin: row for row, thing in enumerate(expected) if thing.pasted}
    assert [paste.row for paste in composites.pastes[0]] == [shown.get(index) for index in range(4)]


def thin_figure() -> Foreground:
    """Of strokes so thin that a small paste loses most of its pixels to the blur."""
    alpha = np.zeros((40, 24), np.uint8)
    alpha[0:8, 9:15] = alpha[8:40, 10:14] = alpha[10:12] = 255
    return Foreground(np.dstack([alpha] * 4), 1, "figure", 0.1)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("least", [0.25, 0.95])
def test_what_lies_inside_is_labelled_beside_the_border_as_in_the_middle(least: float, grad: bool) -> None:
    ranges = TransformRanges((0, 0), (0, 0), (1, 1), (1, 1), (1, 1), keep_inside=1.0)
    unit = torch.tensor([[0.5] * 5 + [x, y] for x in (0, 0.5, 1) for y in (0, 0.5, 1)], requires_grad=grad)
    images = [torch.zeros(3, 160, 200)] * 9
    render_settings = settings_of(min_visibility=least, ranges=ranges)
    found = compose(images, [target_of()] * 9, plan_of([thin_figure()] * 9, list(range(9))), unit, render_settings)
    assert [len(target["boxes"]) for target in found.targets] == [1] * 9


@pytest.mark.parametrize("thin", ["pole", "corner"])
def test_thin_parts_count_towards_the_fraction_that_is_inside(thin: str) -> None:
    """Thinner than the squares that a large foreground is checked in."""
    alpha = np.zeros((512, 512), np.uint8)
    if thin == "pole":  # a T: the pole stays inside, and the bar's ends are cut off
        alpha[:, 257:263] = alpha[3:12] = 255
    else:
        alpha[505:] = alpha[:, 505:] = 255
    figure = Foreground(np.dstack([alpha] * 4), 1, "thin", 0.5)
    opaque = np.argwhere(alpha)[:, ::-1] + 0.5
    for x in (0.0, 1.0):
        ranges = TransformRanges((0, 0), (0, 0), (1, 1), (1, 1), (1, 1), keep_inside=0.5)
        unit = torch.tensor([[0.5] * 5 + [x, 0.5]])
        side = 1024
        middle = 128 + x * (side - 256)
        columns = middle + (opaque[:, 0] - 256)
        fraction = float(((columns >= 0) & (columns < side)).mean())
        for least, labelled in ((fraction - 0.1, 1), (fraction + 0.1, 0)):
            render_settings = settings_of(min_visibility=min(least, 1.0), ranges=ranges)
            found = compose([torch.zeros(3, side, side)], [target_of()], plan_of([figure], [0]), unit, render_settings)
            assert len(found.targets[0]["boxes"]) == (labelled if least <= 1 else 1)


@pytest.mark.parametrize("cut", [0.3, 0.5])
def test_an_object_cut_by_the_frame_counts_by_the_fraction_that_is_inside(cut: float) -> None:
    """A long bar with a known fraction of its length outside, thin or not, is labelled if enough of it is inside."""
    alpha = np.zeros((200, 40), np.uint8)
    alpha[:, 10:30] = 255
    bar = Foreground(np.dstack([alpha] * 4), 1, "bar", 0.5)
    for scale in (0.12, 1.0):  # small enough to be nearly blurred away
        sizes = {"scale": (scale, scale), "keep_inside": 1 - 2 * cut}
        ranges = TransformRanges((0, 0), (0, 0), scale_x=(1, 1), scale_y=(1, 1), **sizes)
        unit = torch.tensor([[0.5] * 5 + [0.5, 0.0]])
        for least, labelled in ((1 - cut - 0.12, 1), (1 - cut + 0.12, 0)):
            render_settings = settings_of(min_visibility=least, ranges=ranges)
            found = compose([torch.zeros(3, 400, 400)], [target_of()], plan_of([bar], [0]), unit, render_settings)
            assert len(found.targets[0]["boxes"]) == labelled


def test_images_without_pastes_are_passed_through_and_pastes_go_where_they_belong() -> None:
    images = [torch.rand(3, 30, 30 + index) for index in range(3)]
    targets = [target_of() for _ in images]
    foregrounds = [foreground_of(opaque_rgba(6, 8), label=5 + index) for index in range(3)]
    composites = compose(images, targets, plan_of(foregrounds, [0, 2, 2]), units(3), settings_of(min_visibility=0))
    assert composites.images[1] is images[1]
    assert composites.targets[1] is targets[1]
    assert [[paste.label for paste in pastes] for pastes in composites.pastes] == [[5], [], [6, 7]]
    assert [len(target["boxes"]) for target in composites.targets] == [1, 0, 2]


def test_twenty_objects_on_an_image_and_none_on_another() -> None:
    images = [torch.rand(3, 60, 80), torch.rand(3, 60, 80)]
    targets = [target_of([[10, 10, 40, 40]]) for _ in images]
    before = [image.clone() for image in images]
    foregrounds = [foreground_of(random_rgba(9, 7, index) ** 0.5, 0.15, label=index) for index in range(20)]
    composites = compose(images, targets, plan_of(foregrounds, [0] * 20), units(20), settings_of())
    assert [len(pastes) for pastes in composites.pastes] == [20, 0]
    assert all(map(torch.equal, images, before))
    labelled = [paste for paste in composites.pastes[0] if paste.row is not None]
    assert len(labelled) > 5
    assert all(int(composites.targets[0]["labels"][paste.row]) == paste.label for paste in labelled)
    lost = composites.dropped["paste_hidden"] + composites.dropped["occluded"]
    assert len(composites.targets[0]["boxes"]) == 21 - lost


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_images_of_any_float_type_are_pasted_on_with_exact_coordinates(dtype: torch.dtype) -> None:
    image = torch.rand(3, 60, 80)
    decoy = Decoy(0, 0, foreground_of(opaque_rgba(6, 8)), units(1, 5), [(0.3, 0.4)])
    plan = plan_of([foreground_of(random_rgba(9, 7) ** 0.5, 0.3)], [0], [decoy])
    wanted = compose([image], [target_of()], plan, units(1), settings_of()).images[0]
    got = compose([image.to(dtype)], [target_of()], plan, units(1), settings_of()).images[0]
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), wanted, atol=0.02, rtol=0)


def test_the_composite_has_a_gradient_where_the_proposal_has_one() -> None:
    unit = units(2).requires_grad_()
    foregrounds = [foreground_of(random_rgba(9, 7) ** 0.5, 0.3)] * 2
    composites = compose([torch.rand(3, 40, 40)], [target_of()], plan_of(foregrounds, [0, 0]), unit, settings_of())
    composites.images[0].square().sum().backward()
    assert (unit.grad != 0).all()
    assert not composites.pastes[0][0].unit.requires_grad


@pytest.mark.parametrize("side", [10, 13, 41])
def test_a_large_foreground_is_averaged_before_it_is_warped(side: int) -> None:
    rows, columns = np.mgrid[: side * 8, : side * 8]
    checkers = opaque_rgba(side * 8, side * 8)
    checkers[:3] = torch.tensor((rows + columns) % 2)
    foreground = foreground_of(checkers, 0.5)
    composites = compose(
        [torch.zeros(3, 80, 80)], [target_of()], plan_of([foreground], [0]), units(1), settings_of(STILL)
    )
    left, top, right, bottom = composites.targets[0]["boxes"][0].int().tolist()
    assert (right - left, bottom - top) == (pytest.approx(40, abs=1), pytest.approx(40, abs=1))
    inner = composites.images[0][:, top + 4 : bottom - 4, left + 4 : right - 4]
    # An average is grey within a step of uint8; a sample that skips pixels is black or white.
    assert ((inner > 0.45) & (inner < 0.55)).all()


def test_the_colour_under_transparent_pixels_does_not_bleed_when_a_foreground_is_reduced() -> None:
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[..., 1] = 255
    rgba[5:58, 3:61] = [255, 0, 0, 255]
    reduced = foreground_tensor(reduced_foreground(Foreground(rgba, 1, "x", 0.4), 0.12), PixelFormat(), torch.zeros(1))
    seen = reduced[3] > 0
    assert reduced.shape == (4, 8, 8)
    assert (reduced[3] < 1).any()
    assert (reduced[0][seen] > 0.98).all()
    assert (reduced[1][seen] < 0.02).all()


def test_a_paste_below_the_smallest_side_is_left_out_and_counted() -> None:
    image = torch.rand(3, 40, 40)
    foregrounds = [foreground_of(opaque_rgba(8, 4), relative_size) for relative_size in (0.11, 0.09)]
    render_settings = settings_of(STILL, min_side=4.0)
    composites = compose([image], [target_of()], plan_of(foregrounds, [0, 0]), units(2), render_settings)
    assert composites.dropped == {"paste_too_small": 1}
    assert [paste.index for paste in composites.pastes[0]] == [0]


def test_keypoints_go_with_the_object_and_swap_sides_when_it_is_mirrored() -> None:
    keypoints = np.array([[2, 3, 2], [9, 3, 2], [5, 7, 1], [0, 0, 0]], np.float32)
    foreground = foreground_of(opaque_rgba(10, 12), 0.3, keypoints)
    target = target_of() | {"keypoints": torch.zeros(0, 4, 3)}
    unit = torch.full((2, len(PARAMETERS)), 0.5)
    unit[1, -2] = 1.0  # to the right border
    render_settings = settings_of(STILL, keypoint_flip_order=(1, 0, 2, 3))
    composites = compose([torch.rand(3, 40, 40)], [target], plan_of([foreground] * 2, [0, 0]), unit, render_settings)
    plain, flipped = composites.targets[0]["keypoints"]
    torch.testing.assert_close(plain, torch.tensor([[16.0, 18, 2], [23, 18, 2], [19, 22, 1], [0, 0, 0]]))
    # From the right: x = 40 - u. The first keypoint is the left eye, which is now where the right one was.
    torch.testing.assert_close(flipped, torch.tensor([[31.0, 18, 2], [38, 18, 2], [35, 22, 1], [0, 0, 0]]))


class _Work(TorchDispatchMode):
    """Counts the numbers that operators write; views and the copy of the background cost nothing here."""

    def __init__(self, background: Tensor) -> None:
        super().__init__()
        self.background = background
        self.written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outcome = func(*args, **(kwargs or {}))
        is_view = any(result.alias_info and not result.alias_info.is_write for result in func._schema.returns)
        copied = func.name() == "aten::copy_" and outcome.shape == self.background.shape
        if not is_view and isinstance(outcome, Tensor) and not copied:
            self.written += outcome.numel()
        return outcome


def work_of(side: int, pixels: int, graph: bool) -> int:
    """Numbers written to paste an object of ``pixels`` in the middle of a square background."""
    foreground = foreground_of(opaque_rgba(30, 40), pixels / side)
    unit = torch.full((1, len(PARAMETERS)), 0.5, requires_grad=graph)
    image, target = torch.rand(3, side, side), target_of([[0, 0, 5, 5]])
    with _Work(image) as work:
        compose([image], [target], plan_of([foreground], [0]), unit, settings_of(STILL))
    return work.written


@pytest.mark.parametrize("graph", [False, True])
def test_the_cost_follows_the_pasted_area_and_not_the_background(graph: bool) -> None:
    assert work_of(128, 40, graph) == work_of(1024, 40, graph)
    assert 2 < work_of(1024, 160, graph) / work_of(1024, 80, graph) < 5


def coded_image(height: int, width: int) -> Tensor:
    """An image whose pixels encode their position: column, row, and a constant."""
    rows, columns = torch.meshgrid(torch.arange(height) / 100, torch.arange(width) / 100, indexing="ij")
    return torch.stack([columns, rows, torch.full((height, width), 2.0)])


def pasted_decoy(boxes: Sequence[Sequence[float]], corners: list[tuple[float, float]], seed: int) -> Composites:
    """A decoy with pixels of a coded second image on a black first one."""
    decoy = Decoy(0, 1, foreground_of(opaque_rgba(12, 16), 0.3), units(1, seed), corners)
    images = [torch.zeros(3, 50, 60), coded_image(45, 55)]
    targets = [target_of(), target_of(boxes)]
    return compose(images, targets, plan_of([], [], [decoy]), units(0), settings_of(replace(STILL, rotation=(-9, 9))))


corners_drawn = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=4)
boxes_drawn = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 30), st.integers(1, 14), st.integers(1, 14)).map(
        lambda box: [float(box[0]), float(box[1]), float(box[0] + box[2]), float(box[1] + box[3])]
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(boxes=boxes_drawn, corners=corners_drawn, seed=st.integers(0, 50))
def test_a_decoy_shows_background_and_never_an_object_and_gets_no_label(
    boxes: list[list[float]], corners: list[tuple[float, float]], seed: int
) -> None:
    composites = pasted_decoy(boxes, corners, seed)
    composite = composites.images[0]
    assert composites.targets[0]["labels"].tolist() == []
    assert composites.pastes == [[], []]
    if composites.dropped["decoy_without_background"]:
        assert boxes
        assert not composite.any()
        return
    assert_background_only(composite, boxes)


def assert_background_only(composite: Tensor, boxes: Sequence[Sequence[float]]) -> None:
    """A decoy on black, with coded pixels, is a piece of its source that shows at most a tenth of each box."""
    alpha = composite[2] / 2
    opaque = alpha > 0.9999
    assert opaque.sum() > 50
    rows, columns = torch.nonzero(opaque, as_tuple=True)
    from_column = (composite[0][opaque] * 100).round().long()
    from_row = (composite[1][opaque] * 100).round().long()
    assert (from_column - columns).unique().numel() == (from_row - rows).unique().numel() == 1
    down, right = int(from_row[0] - rows[0]), int(from_column[0] - columns[0])
    rows, columns = torch.nonzero(alpha > 1e-6, as_tuple=True)
    source = coded_image(45, 55)[:, rows + down, columns + right]
    torch.testing.assert_close(composite[:, rows, columns], source * alpha[rows, columns], atol=1e-4, rtol=0)
    for left, top, far, bottom in boxes:
        x, y = columns + right, rows + down
        shown = ((x >= left) & (x < far) & (y >= top) & (y < bottom)).sum()
        assert shown <= 0.1 * (far - left) * (bottom - top) + 1e-6


def test_a_decoy_beside_an_object_shows_no_more_than_a_tenth_of_it() -> None:
    left_out = 0
    for left in range(30):
        boxes = [[left, 4.0, left + 12.0, 14.0]]
        composites = pasted_decoy(boxes, [(0.0, 0.0)], 1)
        left_out += composites.dropped["decoy_without_background"]
        if not composites.dropped:
            assert_background_only(composites.images[0], boxes)
    assert 15 < left_out < 28


def test_a_decoy_takes_the_next_place_where_the_first_shows_an_object() -> None:
    there = [[0.0, 0.0, 20.0, 20.0]]
    assert pasted_decoy(there, [(0.0, 0.0)], 1).dropped == {"decoy_without_background": 1}
    assert not pasted_decoy(there, [(0.0, 0.0), (1.0, 1.0)], 1).dropped
    assert not pasted_decoy([], [(0.0, 0.0)], 1).dropped


def landed(boxes: list[list[float]], places: Sequence[tuple[float, float]]) -> Composites:
    """A decoy, white, that tries to land with its center at the given fractions of a black image with objects."""
    tries = torch.full((len(places), len(PARAMETERS)), 0.5)
    tries[:, PARAMETERS.index("translate_x")] = torch.tensor([x for x, _ in places])
    tries[:, PARAMETERS.index("translate_y")] = torch.tensor([y for _, y in places])
    decoy = Decoy(0, 1, foreground_of(opaque_rgba(12, 16), 0.3), tries, [(0.0, 0.0)])
    images = [torch.zeros(3, 50, 60), torch.ones(3, 50, 60)]
    targets = [target_of(boxes), target_of()]
    return compose(images, targets, plan_of([], [], [decoy]), units(0), settings_of(STILL))


def test_a_decoy_lands_beside_the_objects_in_the_first_place_that_hides_none() -> None:
    middle = [[20.0, 15.0, 40.0, 35.0]]
    for boxes in (middle, [[28.0, 23.0, 32.0, 27.0]], [[0.0, 0.0, 60.0, 50.0]]):
        on_object = landed(boxes, [(0.5, 0.5)])
        assert not on_object.images[0].any()
        assert on_object.dropped == {"decoy_without_background": 1}
    beside = landed(middle, [(0.5, 0.5), (0.0, 0.0), (1.0, 1.0)])
    assert beside.images[0][:, :12, :16].amax() > 0.9
    assert not beside.images[0][:, 15:, 20:].any()
    assert beside.targets[0]["boxes"].tolist() == middle
    assert not beside.dropped


def test_what_is_too_thin_for_a_label_is_not_drawn_either() -> None:
    image, thin = torch.zeros(3, 50, 60), foreground_of(opaque_rgba(40, 1), 0.4)
    composites = compose([image], [target_of()], plan_of([thin], [0]), units(1, 3), settings_of(STILL, min_side=1.0))
    assert not composites.images[0].any()
    assert composites.dropped == {"paste_too_small": 1}


@pytest.mark.parametrize("side", [4, 6, 20])
def test_a_paste_that_nothing_covers_is_fully_visible(side: int) -> None:
    image, middle = torch.zeros(3, 64, 64), torch.full((1, len(PARAMETERS)), 0.5)
    foreground = foreground_of(opaque_rgba(side, side), side / 64)
    render_settings = settings_of(STILL, min_visibility=1.0)
    composites = compose([image], [target_of()], plan_of([foreground], [0]), middle, render_settings)
    assert composites.images[0].amax() > 0.5
    assert composites.pastes[0][0].row == 0


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 1000), shrink=st.sampled_from([0.1, 0.3, 0.7, 1.5]), sigma=st.sampled_from([0.0, 1.0]))
def test_nothing_that_shows_lies_outside_the_pixels_that_are_rendered(seed: int, shrink: float, sigma: float) -> None:
    """A triangle, rendered where it reaches or in the whole frame, is the same."""
    rng = np.random.default_rng(seed)
    rgba = np.full((90, 90, 4), 255, np.uint8)
    rgba[..., 3] = cv2.fillConvexPoly(np.zeros((90, 90), np.uint8), rng.integers(0, 90, (3, 2)), 255)
    rows, columns = np.nonzero(rgba[..., 3])
    foreground = Foreground(rgba[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1], 1, "triangle", 1.0)
    frame = (160, 160)
    ranges = TransformRanges(rotation=(-90, 90), shear=(-0.3, 0.3), scale=(0.5, 0.5), keep_inside=0.5)
    unit = torch.rand(1, len(PARAMETERS), generator=torch.Generator().manual_seed(seed)).requires_grad_()
    foreground = replace(foreground, relative_size=shrink)
    render_settings = settings_of(ranges, edge_blur_sigma=sigma, min_side=0.0)
    image = torch.zeros(3, *frame)
    plan = plan_of([foreground], [0])
    tight = compose([image], [target_of()], plan, unit, render_settings)
    with pytest.MonkeyPatch.context() as patch:
        whole = [Rectangle(0, 0, *frame)]
        patch.setattr("terse_aug.compositing.warp.covered_rectangles", lambda *arguments: whole)
        full = compose([image], [target_of()], plan, unit, render_settings)
    torch.testing.assert_close(tight.images[0], full.images[0], rtol=0, atol=1e-4)

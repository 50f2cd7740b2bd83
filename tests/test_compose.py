"""From a paste plan to composites and their labels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import reference
import torch
from compositing_samples import (
    STILL,
    WIDE,
    foreground_of,
    opaque_rgba,
    plan_of,
    random_rgba,
    settings_of,
    target_of,
    units,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from terse_aug import PARAMETERS, Foreground, TransformRanges
from terse_aug.compositing.compose import compose
from terse_aug.compositing.geometry import reduced_foreground
from terse_aug.compositing.patches import Rectangle
from terse_aug.transforms import PasteGeometry, place


def corners_of_pixels(alpha: NDArray[np.uint8]) -> NDArray[np.float64]:
    """All corners of the pixels that show, ``[n, 2]``, x and y from the middle: the object, not only its hull."""
    rows, columns = np.nonzero(alpha)
    corners = [(columns + right, rows + low) for right in (0, 1) for low in (0, 1)]
    points = np.concatenate([np.stack(pair, 1) for pair in corners]).astype(np.float64)
    return points - np.array([alpha.shape[1] / 2, alpha.shape[0] / 2])


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


def labelled(figure: Foreground, place: tuple[float, float], side: int, least: float, **ranges: Any) -> bool:
    """Whether a figure, at a place of a black square, gets a label with this ``min_visibility``."""
    unit, chosen = torch.tensor([[0.5] * 5 + list(place)]), settings_of(replace(STILL, **ranges), min_visibility=least)
    found = compose([torch.zeros(3, side, side)], [target_of()], plan_of([figure], [0]), unit, chosen)
    return len(found.targets[0]["boxes"]) == 1


def figure_of(alpha: NDArray[np.uint8], relative_size: float) -> Foreground:
    return Foreground(np.dstack([alpha] * 4), 1, "figure", relative_size)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("least", [0.25, 0.95])
def test_what_lies_inside_is_labelled_beside_the_border_as_in_the_middle(least: float, grad: bool) -> None:
    """Strokes so thin that a small paste loses most of its pixels to the blur."""
    alpha = np.zeros((40, 24), np.uint8)
    alpha[0:8, 9:15] = alpha[8:40, 10:14] = alpha[10:12] = 255
    unit = torch.tensor([[0.5] * 5 + [x, y] for x in (0, 0.5, 1) for y in (0, 0.5, 1)], requires_grad=grad)
    plan, chosen = plan_of([figure_of(alpha, 0.1)] * 9, list(range(9))), settings_of(STILL, min_visibility=least)
    found = compose([torch.zeros(3, 160, 200)] * 9, [target_of()] * 9, plan, unit, chosen)
    assert [len(target["boxes"]) for target in found.targets] == [1] * 9


@pytest.mark.parametrize("thin", ["pole", "corner"])
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_thin_parts_count_towards_the_fraction_that_is_inside(thin: str, x: float) -> None:
    """Thinner than the squares that a large foreground is checked in."""
    alpha = np.zeros((512, 512), np.uint8)
    if thin == "pole":  # a T: the pole stays inside, and the bar's ends are cut off
        alpha[:, 257:263] = alpha[3:12] = 255
    else:
        alpha[505:] = alpha[:, 505:] = 255
    side = 1024
    columns = 128 + x * (side - 256) + np.nonzero(alpha)[1] + 0.5 - 256
    fraction = float(((columns >= 0) & (columns < side)).mean())
    figure = figure_of(alpha, 0.5)
    assert labelled(figure, (x, 0.5), side, fraction - 0.1, keep_inside=0.5)
    assert labelled(figure, (x, 0.5), side, min(fraction + 0.1, 1.0), keep_inside=0.5) is (fraction > 0.9)


@pytest.mark.parametrize("cut", [0.3, 0.5])
@pytest.mark.parametrize("scale", [0.12, 1.0])  # small enough to be nearly blurred away, or not
def test_an_object_cut_by_the_frame_counts_by_the_fraction_that_is_inside(cut: float, scale: float) -> None:
    """A long bar with a known fraction of its length outside, thin or not, is labelled if enough of it is inside."""
    alpha = np.zeros((200, 40), np.uint8)
    alpha[:, 10:30] = 255
    ranges: dict[str, Any] = {"scale": (scale, scale), "keep_inside": 1 - 2 * cut}
    for least, expected in ((1 - cut - 0.12, True), (1 - cut + 0.12, False)):
        assert labelled(figure_of(alpha, 0.5), (0.5, 0.0), 400, least, **ranges) is expected


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
    reduced = torch.from_numpy(reduced_foreground(Foreground(rgba, 1, "x", 0.4), 0.12)).permute(2, 0, 1) / 255
    seen = reduced[3] > 0
    assert reduced.shape == (4, 8, 8)
    assert (reduced[3] < 1).any()
    assert (reduced[0][seen] > 0.98).all()
    assert (reduced[1][seen] < 0.02).all()


def test_a_paste_below_the_smallest_side_is_left_out_and_counted() -> None:
    foregrounds = [foreground_of(opaque_rgba(8, 4), relative_size) for relative_size in (0.11, 0.09)]
    chosen = settings_of(STILL, min_side=4.0)
    composites = compose([torch.rand(3, 40, 40)], [target_of()], plan_of(foregrounds, [0, 0]), units(2), chosen)
    assert composites.dropped == {"paste_too_small": 1}
    assert [paste.index for paste in composites.pastes[0]] == [0]
    image, thin = torch.zeros(3, 50, 60), foreground_of(opaque_rgba(40, 1), 0.4)
    composites = compose([image], [target_of()], plan_of([thin], [0]), units(1, 3), settings_of(STILL, min_side=1.0))
    assert not composites.images[0].any()
    assert composites.dropped == {"paste_too_small": 1}


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
        copies = func.name() in ("aten::copy_", "aten::cat")
        if not is_view and isinstance(outcome, Tensor):
            copied = copies and outcome.numel() - self.background.numel() in (0, 1)
            # Of a scatter what is written, not what it is written to.
            written = args[2] if func.name().startswith("aten::index_put") else outcome
            self.written += 0 if copied else written.numel()
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


@pytest.mark.parametrize("side", [4, 6, 20])
def test_a_paste_that_nothing_covers_is_fully_visible(side: int) -> None:
    assert labelled(foreground_of(opaque_rgba(side, side), side / 64), (0.5, 0.5), 64, 1.0)


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
        patch.setattr("terse_aug.compositing.layers.covered_rectangles", lambda *arguments: whole)
        full = compose([image], [target_of()], plan, unit, render_settings)
    torch.testing.assert_close(tight.images[0], full.images[0], rtol=0, atol=1e-4)

"""Ranges map the unit cube to transforms, and transforms to affine maps, as documented."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terse_aug import PARAMETERS, TransformRanges
from terse_aug.structures.convex_hull import convex_outline
from terse_aug.transforms import PasteGeometry, place

WIDE = TransformRanges(
    rotation=(-180, 180), shear=(-0.8, 0.8), scale=(0.2, 4), scale_x=(0.5, 2), scale_y=(0.5, 2), keep_inside=1
)


def geometry_of(
    make_foreground: tuple[float, float], frame: tuple[float, float], natural: float = 1.0, flipped: bool = False
) -> PasteGeometry:
    """Geometry of a single paste; sizes are (width, height)."""
    return PasteGeometry(
        torch.tensor([make_foreground], dtype=torch.float64),
        torch.tensor([frame], dtype=torch.float64),
        torch.tensor([natural], dtype=torch.float64),
        torch.tensor([-1.0 if flipped else 1.0], dtype=torch.float64),
    )


unit_points = st.lists(st.floats(0, 1), min_size=len(PARAMETERS), max_size=len(PARAMETERS)).map(
    lambda values: torch.tensor([values], dtype=torch.float64)
)
sizes = st.tuples(st.integers(1, 60), st.integers(1, 60))


@settings(deadline=None)
@given(unit=unit_points)
def test_the_corners_of_the_unit_cube_are_the_ends_of_the_ranges(unit: torch.Tensor) -> None:
    corner = (unit > 0.5).double()
    for name, value, end in zip(PARAMETERS, WIDE.physical(corner)[0].tolist(), corner[0].long().tolist(), strict=True):
        assert value == pytest.approx(getattr(WIDE, name)[end])
    for name, value in zip(PARAMETERS, WIDE.physical(unit)[0].tolist(), strict=True):
        low, high = getattr(WIDE, name)
        assert low - 1e-9 <= value <= high + 1e-9


def test_a_range_of_one_value_fixes_the_parameter() -> None:
    fixed = TransformRanges(rotation=(7, 7), scale=(1.3, 1.3)).physical(torch.rand(50, len(PARAMETERS)))
    torch.testing.assert_close(fixed[:, PARAMETERS.index("rotation")], torch.full((50,), 7.0))
    torch.testing.assert_close(fixed[:, PARAMETERS.index("scale")], torch.full((50,), 1.3))


@pytest.mark.parametrize("name", PARAMETERS)
def test_uniform_points_give_uniform_values_and_uniform_logarithms_of_scales(name: str) -> None:
    steps = torch.linspace(0, 1, 101, dtype=torch.float64)
    values = WIDE.physical(steps[:, None].expand(-1, len(PARAMETERS)))[:, PARAMETERS.index(name)]
    spaced = values.log() if name.startswith("scale") else values
    torch.testing.assert_close(spaced.diff(), ((spaced[-1] - spaced[0]) / 100).expand(100))


@settings(max_examples=50, deadline=None)
@given(
    unit=unit_points,
    make_foreground=sizes,
    frame=sizes,
    natural=st.floats(0.1, 5),
    flipped=st.booleans(),
    data=st.data(),
)
def test_the_affine_map_is_mirror_scale_shear_rotation_translation(
    unit: torch.Tensor,
    make_foreground: tuple[int, int],
    frame: tuple[int, int],
    natural: float,
    flipped: bool,
    data: st.DataObject,
) -> None:
    physical = WIDE.physical(unit)
    placed = place(physical, geometry_of(make_foreground, frame, natural, flipped), WIDE.keep_inside)
    matrix, center = placed.matrix, placed.center
    u, v = data.draw(st.floats(0, make_foreground[0])), data.draw(st.floats(0, make_foreground[1]))
    expected = reference.transform_point(
        u,
        v,
        dict(zip(PARAMETERS, physical[0].tolist(), strict=True)),
        make_foreground,
        natural,
        flipped,
        (float(center[0, 0]), float(center[0, 1])),
    )
    offset = np.array([u - make_foreground[0] / 2, v - make_foreground[1] / 2])
    np.testing.assert_allclose(matrix[0].numpy() @ offset + center[0].numpy(), expected, atol=1e-9)


@settings(max_examples=200, deadline=None)
@given(
    unit=unit_points,
    make_foreground=sizes,
    frame=sizes,
    natural=st.floats(0.05, 2),
    flipped=st.booleans(),
    seed=st.none() | st.integers(0, 1000),
)
def test_keep_inside_one_keeps_the_whole_object_or_its_outline_inside_wherever_it_fits(
    unit: torch.Tensor,
    make_foreground: tuple[int, int],
    frame: tuple[int, int],
    natural: float,
    flipped: bool,
    seed: int | None,
) -> None:
    geometry = geometry_of(make_foreground, frame, natural, flipped)
    points = torch.tensor([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]], dtype=torch.float64)
    if seed is not None:
        points = torch.rand(5, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
    points = points * torch.tensor(make_foreground)
    geometry = geometry if seed is None else dataclasses.replace(geometry, outlines=points[None])
    placed = place(WIDE.physical(unit), geometry, 1.0)
    reached = points @ placed.matrix[0].T + placed.center[0]
    low, high = reached.amin(0), reached.amax(0)
    torch.testing.assert_close((low + high) / 2, placed.box_center[0])
    torch.testing.assert_close((high - low) / 2, placed.half_size[0])
    for axis in (0, 1):
        if high[axis] - low[axis] <= frame[axis]:
            assert low[axis] >= -1e-6
            assert high[axis] <= frame[axis] + 1e-6
        elif seed is None:
            assert float(placed.center[0, axis]) == pytest.approx(frame[axis] / 2)


@settings(max_examples=50, deadline=None)
@given(unit=unit_points, make_foreground=sizes, frame=sizes, keep_inside=st.floats(0, 1))
def test_keep_inside_keeps_that_much_of_the_half_extent_inside_and_always_the_centre(
    unit: torch.Tensor, make_foreground: tuple[int, int], frame: tuple[int, int], keep_inside: float
) -> None:
    placed = place(WIDE.physical(unit), geometry_of(make_foreground, frame), keep_inside)
    center, half = placed.center, placed.half_size
    for axis in (0, 1):
        wanted = min(keep_inside * float(half[0, axis]), frame[axis] / 2)
        assert wanted - 1e-6 <= float(center[0, axis]) <= frame[axis] - wanted + 1e-6


@pytest.mark.parametrize("keep_inside", [0.0, 0.5, 1.0])
def test_translation_reaches_both_ends_of_what_keep_inside_allows(keep_inside: float) -> None:
    ranges = TransformRanges(rotation=(0, 0), shear=(0, 0), scale=(1, 1), scale_x=(1, 1), scale_y=(1, 1))
    unit = torch.tensor([[0.0] * 7, [1.0] * 7], dtype=torch.float64)
    geometry = PasteGeometry(
        torch.tensor([[8.0, 4.0]] * 2), torch.tensor([[50.0, 40.0]] * 2), torch.ones(2), torch.ones(2)
    )
    center = place(ranges.physical(unit).float(), geometry, keep_inside).center
    left, top = 4 * keep_inside, 2 * keep_inside
    assert center.tolist() == [[left, top], [50 - left, 40 - top]]


@settings(max_examples=50, deadline=None)
@given(unit=unit_points, make_foreground=sizes, frame=sizes, keep_inside=st.floats(0, 1))
def test_a_full_rectangle_s_outline_changes_nothing(
    unit: torch.Tensor, make_foreground: tuple[int, int], frame: tuple[int, int], keep_inside: float
) -> None:
    outline = convex_outline(np.full((make_foreground[1], make_foreground[0]), 255, np.uint8))
    geometry = geometry_of(make_foreground, frame)
    with_outline = dataclasses.replace(geometry, outlines=torch.from_numpy(outline).double()[None])
    plain, outlined = (place(WIDE.physical(unit), each, keep_inside) for each in (geometry, with_outline))
    for field in dataclasses.fields(plain):
        torch.testing.assert_close(getattr(plain, field.name), getattr(outlined, field.name))


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), fraction=st.floats(0, 1), seed=st.integers(0, 1000))
def test_an_outline_reaches_as_far_as_the_pixels_that_show_in_every_direction(
    height: int, width: int, fraction: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    alpha = (rng.random((height, width)) < fraction).astype(np.uint8) * rng.integers(1, 256, (height, width), np.uint8)
    rows, columns = np.nonzero(alpha if alpha.any() else np.ones_like(alpha))
    corners = [np.stack([columns + right, rows + low], 1) for right in (0, 1) for low in (0, 1)]
    points = np.concatenate(corners) - np.array([width / 2, height / 2])
    angles = rng.random(20) * 2 * np.pi
    directions = np.stack([np.cos(angles), np.sin(angles)])
    outline = convex_outline(alpha)
    np.testing.assert_allclose((outline @ directions).max(0), (points @ directions).max(0), atol=1e-4)

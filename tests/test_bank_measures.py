"""Measures of shapes and appearance: known values of simple shapes, and what must not change them."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from terse_aug.bank.analysis.class_shapes import (
    chamfer_distance,
    drawn_pairs,
    mean_shapes,
    shape_diversity,
    unit_mask,
)
from terse_aug.bank.analysis.near_duplicates import MAX_HASH_DISTANCE, appearance_of, find_near_duplicates
from terse_aug.bank.analysis.outline import (
    Outline,
    even_points,
    outline_length,
    parts_and_holes,
    shape_complexity,
    silhouette,
    simplified,
    unit_outline,
)

Mask = NDArray[np.uint8]


def disk(side: int) -> Mask:
    rows, columns = np.mgrid[:side, :side] + 0.5 - side / 2
    return (np.hypot(rows, columns) <= side / 2).astype(np.uint8)


def cross(side: int) -> Mask:
    mask = np.zeros((3 * side, 3 * side), np.uint8)
    mask[side : 2 * side] = mask[:, side : 2 * side] = 1
    return mask


def diagonal(side: int, width: int) -> Mask:
    rows, columns = np.mgrid[:side, :side]
    return (abs(rows - columns) < width).astype(np.uint8)


def blob(seed: int, side: int = 60) -> Mask:
    """An irregular shape, possibly of several parts and with holes."""
    noise = np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)
    return silhouette(np.where(cv2.GaussianBlur(noise, (0, 0), side / 10) > 0, 255, 0).astype(np.uint8))


def texture(seed: int, height: int = 90, width: int = 70) -> NDArray[np.uint8]:
    """A foreground with a texture of its own."""
    generator = np.random.default_rng(seed)
    colors = generator.integers(0, 256, (5, 4, 3)).astype(np.uint8)
    rgba = np.dstack([cv2.resize(colors, (width, height), interpolation=cv2.INTER_CUBIC), np.zeros((height, width))])
    rgba = rgba.astype(np.uint8)
    rgba[:, :, 3] = 255 * cv2.resize(blob(seed), (width, height), interpolation=cv2.INTER_NEAREST)
    left, top, width, height = cv2.boundingRect(np.ascontiguousarray(rgba[:, :, 3]))
    return np.ascontiguousarray(rgba[top : top + height, left : left + width])


def corners_and_length(mask: Mask) -> tuple[int, float]:
    simple = simplified(unit_outline(mask))
    return shape_complexity(simple), outline_length(simple)


def points_of(mask: Mask) -> NDArray[np.float32]:
    return even_points(unit_outline(mask))


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3), (64, 64), (7, 300)])
def test_every_rectangle_is_the_unit_square(shape: tuple[int, int]) -> None:
    mask = np.ones(shape, np.uint8)
    assert corners_and_length(mask) == (4, pytest.approx(4))
    (polygon,) = unit_outline(mask)
    assert sorted(polygon.tolist()) == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_known_shapes() -> None:
    corners, length = corners_and_length(disk(200))
    assert 16 <= corners <= 30
    assert length == pytest.approx(math.pi, rel=0.02)
    assert corners_and_length(cross(40)) == (12, pytest.approx(4, rel=0.02))
    ellipse = cv2.resize(disk(400), (100, 400), interpolation=cv2.INTER_NEAREST)
    assert corners_and_length(ellipse)[1] == pytest.approx(math.pi, rel=0.02)
    assert corners_and_length(diagonal(200, 2))[1] == pytest.approx(2 * math.sqrt(2), rel=0.03)


def test_parts_are_measured_together_and_holes_are_counted() -> None:
    mask = np.zeros((20, 50), np.uint8)
    mask[:, :20] = mask[:, 30:] = 1
    assert parts_and_holes(mask) == (2, 0)
    assert corners_and_length(mask) == (8, pytest.approx(2 * (2 * 1 + 2 * 0.4)))
    mask[5:8, 5:8] = mask[12:15, 5:8] = 0
    assert parts_and_holes(mask) == (2, 2)
    assert corners_and_length(mask)[0] == 8
    assert parts_and_holes(np.ones((1, 1), np.uint8)) == (1, 0)


def test_silhouettes_are_tight_and_at_least_half_opaque() -> None:
    alpha = np.zeros((9, 9), np.uint8)
    alpha[2:5, 3:8] = 200
    alpha[0, 0] = 127
    np.testing.assert_array_equal(silhouette(alpha), np.ones((3, 5)))
    np.testing.assert_array_equal(silhouette(alpha // 2), silhouette(np.where(alpha, 255, 0).astype(np.uint8)))
    with pytest.raises(ValueError, match="pixels above 0"):
        silhouette(0 * alpha)


def test_points_are_evenly_spaced_and_on_the_outline() -> None:
    square: Outline = [np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)]
    expected = [[0.25, 0], [0.75, 0], [1, 0.25], [1, 0.75], [0.75, 1], [0.25, 1], [0, 0.75], [0, 0.25]]
    np.testing.assert_allclose(even_points(square, 8), expected, atol=1e-6)
    parts = even_points([square[0], square[0] / 3 + 5], 1000)
    assert (parts > 4).all(1).mean() == pytest.approx(0.25, abs=2e-3), "in proportion to the lengths of the parts"


def test_chamfer_distance() -> None:
    points = np.stack([points_of(blob(seed)) for seed in range(4)])
    first, second = points[:3], points[1:]
    np.testing.assert_array_equal(chamfer_distance(points, points), np.zeros(4))
    np.testing.assert_allclose(chamfer_distance(first, second), chamfer_distance(second, first), rtol=1e-6)
    assert chamfer_distance(first, second).min() > 0.01
    singles = [chamfer_distance(one, other) for one, other in zip(first, second, strict=True)]
    np.testing.assert_allclose(chamfer_distance(first, second), singles, rtol=1e-6)
    line = np.stack([np.linspace(0, 1, 9), np.zeros(9)], 1).astype(np.float32)
    assert chamfer_distance(line, line + np.float32([0, 0.25])) == pytest.approx(0.25)
    point = np.zeros((1, 2), np.float32)  # from it to the line nothing, from the line to it one half in the mean
    assert chamfer_distance(line, point) == pytest.approx(0.25)


@given(count=st.integers(0, 60), limit=st.integers(0, 400), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_pairs_are_different_pairs_of_different_items(count: int, limit: int, seed: int) -> None:
    pairs = drawn_pairs(count, limit, np.random.default_rng(seed))
    assert len({tuple(pair) for pair in pairs.tolist()}) == len(pairs) == min(limit, count * (count - 1) // 2)
    assert ((pairs[:, 1] >= 0) & (pairs[:, 1] < pairs[:, 0]) & (pairs[:, 0] < count)).all()


def test_diversity_is_of_pairs_and_differs_between_classes() -> None:
    same = np.stack([points_of(disk(side)) for side in range(60, 80)])
    mixed = np.stack([points_of(shape) for side in range(30, 40) for shape in (disk(side), diagonal(side, 3))])
    generator = np.random.default_rng(0)
    low, high = (shape_diversity(points, generator) for points in (same, mixed))
    assert low is not None
    assert high is not None
    assert (low.pairs, low.is_complete) == (190, True)
    assert low.mean < 0.01 < 0.1 < high.mean
    some = shape_diversity(mixed, generator, limit=150)
    assert some is not None
    assert (some.pairs, some.is_complete) == (150, False)
    assert some.mean == pytest.approx(high.mean, rel=0.15)
    assert shape_diversity(same[:1], generator) is None


def test_mean_shapes_separate_two_kinds() -> None:
    masks = np.stack([unit_mask(disk(side)) for side in range(40, 70)])
    others = np.stack([unit_mask(diagonal(side, 4)) for side in range(50, 60)])
    every = np.random.default_rng(1).permutation(np.concatenate([masks, others]))
    found = mean_shapes(every, np.random.default_rng(0), 2)
    assert found.counts.tolist() == [30, 10]
    np.testing.assert_allclose(found.means[0], masks.mean(0) / 255, atol=1e-5)
    np.testing.assert_allclose(found.means[1], others.mean(0) / 255, atol=1e-5)


def test_mean_shapes_are_those_of_their_generator_the_largest_first() -> None:
    masks = np.stack([unit_mask(blob(seed)) for seed in range(40)])
    first, again, other = (mean_shapes(masks, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.means, again.means)
    assert first.counts.sum() == other.counts.sum() == 40
    assert (np.diff(first.counts) <= 0).all()
    assert not np.array_equal(first.means, other.means)


def test_mean_shapes_of_fewer_shapes_than_wanted() -> None:
    masks = np.stack([unit_mask(disk(40))] * 6 + [unit_mask(diagonal(40, 3))] * 2)
    assert mean_shapes(masks, np.random.default_rng(0)).counts.tolist() == [6, 2]
    for clusters in (0, 9):
        with pytest.raises(ValueError, match="clusters of 8 masks"):
            mean_shapes(masks, np.random.default_rng(0), clusters)


def alike(*images: NDArray[np.uint8]) -> list[list[int]]:
    looks = [appearance_of(one) for one in images]
    found = find_near_duplicates(np.array([look.bits for look in looks]), np.stack([look.thumbnail for look in looks]))
    assert found.complete_distance == MAX_HASH_DISTANCE
    return [group.tolist() for group in found.groups]


def recompressed(rgba: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    _, file = cv2.imencode(".jpg", rgba[:, :, :3], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.dstack([cv2.imdecode(file, cv2.IMREAD_COLOR), rgba[:, :, 3]])


def test_copies_are_found_and_others_are_not() -> None:
    originals = [texture(seed) for seed in range(40)]
    assert alike(*originals) == []
    half = [cv2.resize(one, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for one in originals[:10]]
    double = [cv2.resize(one, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR) for one in originals[:10]]
    noisy = [recompressed(one, 60) for one in originals[:10]]
    copies = [one.copy() for one in originals[:10]]
    groups = alike(*originals, *half, *double, *noisy, *copies)
    assert sorted(groups) == [[n, 40 + n, 50 + n, 60 + n, 70 + n] for n in range(10)]


def test_neither_the_shape_nor_the_colours_alone_make_it_alike() -> None:
    one, other = texture(1), texture(2)
    recoloured = one.copy()
    recoloured[:, :, :3] = recoloured[:, :, [2, 0, 1]] // 2
    whole = one.copy()
    whole[:, :, 3] = 255
    assert alike(one, other, recoloured, whole) == []
    assert alike(np.full((1, 9, 4), 255, np.uint8), np.full((1, 30, 4), 255, np.uint8)) == [[0, 1]]


@pytest.mark.parametrize("seed", range(3))
def test_every_pair_within_seven_bits_is_found(seed: int) -> None:
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 1 << 63, 400, dtype=np.uint64)
    wanted = generator.integers(0, 12, 200)
    for position, distance in enumerate(wanted):
        turned = generator.choice(64, distance, replace=False).astype(np.uint64)
        bits[200 + position] = bits[position] ^ (np.uint64(1) << turned).sum(dtype=np.uint64)
    found = find_near_duplicates(bits, np.zeros((400, 8, 8, 4), np.uint8))
    assert found.complete_distance == MAX_HASH_DISTANCE
    expected = [[position, 200 + position] for position in np.flatnonzero(wanted <= MAX_HASH_DISTANCE)]
    assert sorted(group.tolist() for group in found.groups) == expected
    assert found.comparisons < 400 * 399 / 2


def test_groups_are_no_chains_and_thumbnails_decide() -> None:
    bits = np.array([0, 0b111111, 0b111111111111, 1 << 40, 0], np.uint64)  # the third is near the second only
    thumbnails = np.full((5, 8, 8, 4), 255, np.uint8)
    thumbnails[4] = 255 - 24  # in three of four channels
    thumbnails[..., 3] = 255
    assert [group.tolist() for group in find_near_duplicates(bits, thumbnails).groups] == [[0, 1, 3]]
    with_more = find_near_duplicates(bits, thumbnails, difference=18)
    assert [group.tolist() for group in with_more.groups] == [[0, 1, 3, 4]]
    others = thumbnails - np.array([100, 100, 100, 0], np.uint8)
    apart = find_near_duplicates(np.tile(bits, 2), np.concatenate([thumbnails, others]))
    assert [group.tolist() for group in apart.groups] == [[0, 1, 3], [5, 6, 8]]
    two_groups = find_near_duplicates(bits[[1, 0, 0, 2, 2]], np.full((5, 8, 8, 4), 255, np.uint8))
    assert [group.tolist() for group in two_groups.groups] == [[0, 1, 2, 3, 4]]  # its first is near all of them


def test_a_search_that_ends_early_reports_how_far_it_came() -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 1 << 63, 2000, dtype=np.uint64)
    bits[1000] = bits[0]
    thumbnails = np.zeros((2000, 8, 8, 4), np.uint8)
    whole = find_near_duplicates(bits, thumbnails)
    partly = find_near_duplicates(bits, thumbnails, comparisons=whole.comparisons // 2)
    assert (whole.complete_distance, partly.complete_distance) == (7, 3)
    assert [group.tolist() for group in partly.groups] == [[0, 1000]]

"""Decoys show background alone, and hide no object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from compositing_samples import (
    STILL,
    foreground_of,
    opaque_rgba,
    plan_of,
    settings_of,
    target_of,
    units,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from terse_aug import PARAMETERS
from terse_aug.compositing.compose import Composites, compose
from terse_aug.compositing.plan import Decoy


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

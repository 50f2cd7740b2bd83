"""The color under the soft edge of an extracted foreground is that of the object."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from terse_aug.bank.extract import spread_object_color


def test_the_old_background_is_replaced_by_the_color_of_the_nearest_object_pixel():
    rgba = np.zeros((9, 12, 4), np.uint8)
    rgba[..., :3] = (0, 255, 0)
    rgba[2:7, 2:5] = (200, 10, 10, 255)
    rgba[2:7, 8:10] = (10, 10, 200, 255)
    spread = spread_object_color(rgba)
    assert (spread[:, :6, :3] == (200, 10, 10)).all()
    assert (spread[:, 7:, :3] == (10, 10, 200)).all()
    assert (rgba[0, 0, :3] == (0, 255, 0)).all()


def test_the_color_under_a_faint_edge_is_the_objects():
    rgba = np.zeros((5, 5, 4), np.uint8)
    rgba[1:4, 1:4] = (90, 80, 70, 60)
    rgba[2, 2] = (250, 240, 230, 255)
    assert (spread_object_color(rgba)[..., :3] == (250, 240, 230)).all()


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4))))
def test_alpha_and_the_object_itself_are_untouched_and_nothing_new_appears(rgba):
    spread = spread_object_color(rgba)
    inside = rgba[..., 3] >= 128
    assert (spread[..., 3] == rgba[..., 3]).all()
    assert (spread[inside] == rgba[inside]).all()
    if inside.any():
        known = {tuple(color) for color in rgba[inside][:, :3]}
        assert {tuple(color) for color in spread[..., :3].reshape(-1, 3)} <= known

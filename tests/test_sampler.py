"""Which cut-outs are drawn."""

from __future__ import annotations

import numpy as np
import pytest

from terse_aug._random import generator_for
from terse_aug._sampler import Sampler

LABELS = np.array([7] + [3] * 9 + [7] + [5] * 30)


@pytest.mark.parametrize("only", [None, [3, 7]])
def test_offers_are_of_one_class_and_classes_as_frequent_as_in_the_bank(only: list[int] | None) -> None:
    sampler = Sampler(LABELS)
    sampler.only(only)
    rows = np.array(sampler.draw(4000, 5, generator_for(0))).reshape(4000, 5)
    drawn = LABELS[rows]
    assert (drawn == drawn[:, :1]).all()
    allowed = LABELS if only is None else LABELS[np.isin(LABELS, only)]
    for column in range(5):
        for label in set(allowed.tolist()):
            assert (drawn[:, column] == label).mean() == pytest.approx((allowed == label).mean(), abs=0.03)
    counts = np.bincount(rows.ravel(), minlength=len(LABELS)) / rows.size
    expected = np.isin(LABELS, allowed) / len(allowed)
    assert np.abs(counts - expected).max() < 0.01


def test_offers_of_any_class_are_independent_and_uniform_over_what_is_allowed() -> None:
    sampler = Sampler(LABELS)
    sampler.only([3, 7])
    rows = np.array(sampler.draw(4000, 3, generator_for(0), any_class=True)).reshape(4000, 3)
    sevens = LABELS[rows] == 7
    assert np.isin(LABELS[rows], [3, 7]).all()
    assert sevens.mean(0) == pytest.approx([2 / 11] * 3, abs=0.03)
    assert (sevens[:, 0] & sevens[:, 1]).mean() == pytest.approx((2 / 11) ** 2, abs=0.02)
    assert np.bincount(rows.ravel(), minlength=len(LABELS))[:11] / rows.size == pytest.approx([1 / 11] * 11, abs=0.02)


def test_one_offer_is_uniform_over_what_is_allowed_and_all_may_be_allowed_again() -> None:
    sampler = Sampler(LABELS)
    sampler.only([3])
    assert sampler.allowed_labels == [3]
    assert set(sampler.draw(500, 1, generator_for(0))) == set(range(1, 10))
    with pytest.raises(ValueError, match=r"no cut-out in the bank has any of the labels \[4\]"):
        sampler.only([4])
    assert set(sampler.draw(500, 1, generator_for(0))) == set(range(1, 10))
    sampler.only(None)
    assert sampler.allowed_labels is None
    assert set(sampler.draw(2000, 1, generator_for(0))) == set(range(len(LABELS)))

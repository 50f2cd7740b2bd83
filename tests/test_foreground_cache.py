"""The cache of thumbnails and outlines of foregrounds."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import every_image, make_bank, make_batch, white_disc

from terse_aug import ForegroundBank, Terse
from terse_aug.data.foreground_cache import ForegroundCache
from terse_aug.policies import Critic
from terse_aug.policies.thumbnails import foreground_thumbnails
from terse_aug.structures.convex_hull import convex_outline


@pytest.mark.parametrize("flipped", [False, True])
def test_a_thumbnail_shows_the_foreground(tiny_bank: ForegroundBank, flipped: bool) -> None:
    cache, whole = ForegroundCache(tiny_bank), list(tiny_bank)
    seen = [cache.thumbnail(index) for index in range(len(whole))]
    flags = [flipped] * len(whole)
    assert torch.equal(foreground_thumbnails(seen, flags), foreground_thumbnails(whole, flags))
    assert [
        (thumbnail.label, thumbnail.relative_size, thumbnail.size, thumbnail.outline.tolist()) for thumbnail in seen
    ] == [(own.label, own.relative_size, own.rgba.shape[1::-1], own.outline.tolist()) for own in whole]


def test_thumbnails_are_read_once_until_the_least_recently_used_is_evicted(
    tiny_bank: ForegroundBank, reads: Counter[int]
) -> None:
    cache = ForegroundCache(tiny_bank, capacity=2)
    for index in (0, 1, 0, 1, 0):
        cache.thumbnail(index)
    assert reads == {0: 1, 1: 1}
    cache.clear_decoded()
    for index in (2, 0, 1):
        cache.thumbnail(index)
    assert reads == {0: 1, 1: 2, 2: 1}


def test_an_outline_is_computed_once_and_a_foreground_is_cached_until_clear_decoded(
    tiny_bank: ForegroundBank, reads: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setattr(
        "terse_aug.structures.foreground.convex_outline", lambda alpha: found.append(1) or convex_outline(alpha)
    )
    cache = ForegroundCache(tiny_bank)
    expected = convex_outline(tiny_bank[3].rgba[:, :, 3])
    reads.clear()
    thumbnail = cache.thumbnail(3)
    assert cache.foreground(3).outline is thumbnail.outline
    assert reads == {3: 1}
    cache.clear_decoded()
    assert np.array_equal(cache.foreground(3).outline, expected)
    assert reads == {3: 2}
    assert len(found) == 1


def test_a_pickled_cache_is_empty_and_works(tiny_bank: ForegroundBank) -> None:
    cache = ForegroundCache(tiny_bank)
    for index in range(len(tiny_bank)):
        cache.thumbnail(index)
    copied = pickle.loads(pickle.dumps(cache))
    assert len(pickle.dumps(copied)) == len(pickle.dumps(ForegroundCache(tiny_bank)))
    assert np.array_equal(copied.thumbnail(2).small, cache.thumbnail(2).small)


def test_once_all_thumbnails_are_cached_only_what_is_pasted_is_read(
    tiny_bank: ForegroundBank, reads: Counter[int]
) -> None:
    policy = Critic(foreground_candidates=8, update_interval=1000)
    terse = Terse(tiny_bank, policy, paste=every_image(objects=(2, 2)))
    for seed in range(8):
        terse(*make_batch(seed))
    reads.clear()
    terse(*make_batch(8))
    pasted = Counter(paste.index for pastes in terse.pastes for paste in pastes)
    assert sum(pasted.values()) == 4
    assert reads == pasted


def test_policies_without_a_choice_read_each_foreground_once(tiny_bank: ForegroundBank, reads: Counter[int]) -> None:
    terse = Terse(tiny_bank, "adversarial", paste=every_image(objects=(2, 2)))
    terse(*make_batch(0))
    assert reads.total() == 4


def test_small_foregrounds_are_enlarged(tmp_path: Path) -> None:
    thumbnail = ForegroundCache(make_bank(tmp_path, [white_disc(side=3)])).thumbnail(0)
    assert thumbnail.small.dtype == np.uint8
    assert max(thumbnail.small.shape[:2]) == 29

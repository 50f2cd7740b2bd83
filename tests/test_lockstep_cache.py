"""Lock-step: the cache of hard examples, and batches mixed from it and real ones."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import make_batch
from processes import exit_code, fresh
from torch import Tensor

from terse_aug import ForegroundBank, PixelFormat
from terse_aug.lockstep import HardExampleCache, mix_batches
from terse_aug.utils.random import generator_for


def example(seed: int, label: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    (image,), (target,) = make_batch(seed, sizes=((20, 30),), masks=True)
    return image, target | {"labels": torch.tensor([label])}


def test_examples_are_stored_in_the_pixel_format(tmp_path: Path) -> None:
    pixels = PixelFormat(scale=255, mean=(120, 110, 100), bgr=True)
    with HardExampleCache(tmp_path / "hard", pixel_format=pixels) as cache:
        added = [example(seed, label=seed % 2) for seed in range(5)]
        for image, target in added:
            cache.add(pixels.encode(image), target | {"image_id": 3}, int(target["labels"][0]))
        assert len(cache) == cache.written == 5
        assert cache.counts == {0: 3, 1: 2}
        for position, (image, target) in enumerate(added):
            out, fields = cache[position]
            torch.testing.assert_close(pixels.decode(out), image, rtol=0, atol=0.51 / 255)
            assert fields.keys() == target.keys()
            assert all(torch.equal(fields[name], value) for name, value in target.items())


def test_the_cache_is_bounded_and_the_oldest_is_replaced(tmp_path: Path) -> None:
    with HardExampleCache(tmp_path / "hard", capacity=3) as cache:
        for label in range(5):
            cache.add(*example(label, label), label)
        assert len(cache) == 3
        assert [int(cache[position][1]["labels"]) for position in range(3)] == [2, 3, 4]
        assert int(cache[-1][1]["labels"]) == 4
        with pytest.raises(IndexError, match="has 3 examples, got position 3"):
            cache[3]
        for seed in range(20):
            cache.add(*example(seed), 1)
        size = cache.path.stat().st_size
        for seed in range(150):
            cache.add(*example(seed), 1)
        assert cache.path.stat().st_size < 1.5 * size


def test_the_file_grows_beyond_its_first_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terse_aug.lockstep.cache._FIRST_MAP_BYTES", 1 << 15)
    with HardExampleCache(tmp_path / "hard") as cache:
        for seed in range(40):
            cache.add(*example(seed), 1)
        assert len(cache) == 40
        assert cache[39][1].keys() == cache[0][1].keys()
        cache.rollback(0)
        assert len(cache) == 0


def add_many(path: Path, count: int, side: int, killed: bool = False) -> None:
    cache = HardExampleCache(path)
    target = {"boxes": torch.zeros(1, 4), "labels": torch.tensor([2])}
    for _ in range(count):
        cache.add(torch.rand(3, side, side), target, 2)
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    assert exit_code(add_many, tmp_path / "hard", 7, 8, True) == -signal.SIGKILL
    with HardExampleCache(tmp_path / "hard") as cache:
        assert len(cache) == 7
        assert cache.counts == {2: 7}
        cache.add(*example(0), 1)
        assert cache[7][0].shape == (3, 20, 30)


def test_two_processes_may_write_and_grow_the_file(tmp_path: Path) -> None:
    with HardExampleCache(tmp_path / "hard") as cache:
        cache.add(*example(0), 1)
        other = fresh().Process(target=add_many, args=(tmp_path / "hard", 40, 64))
        other.start()
        for seed in range(40):
            cache.add(*example(seed), 1)
        other.join()
        assert other.exitcode == 0
        assert cache.counts == {1: 41, 2: 40}
        assert len(cache) == 81
        assert sum(cache[position][0].shape == (3, 64, 64) for position in range(81)) == 40


def test_a_view_is_stored_without_the_rest_of_its_storage(tmp_path: Path) -> None:
    with HardExampleCache(tmp_path / "hard") as cache:
        image, target = example(0)
        cache.add(image, target | {"boxes": torch.zeros(1_000_000, 4)[:1]}, 1)
    assert (tmp_path / "hard").stat().st_size < 1_000_000


def test_a_foreign_file_or_another_capacity_is_refused(tmp_path: Path, tiny_bank: ForegroundBank) -> None:
    (tmp_path / "text").write_text("no database" * 1000)
    with pytest.raises(ValueError, match="cannot be opened as a cache of hard examples"):
        HardExampleCache(tmp_path / "text")
    with pytest.raises(ValueError, match=r"cannot be opened as a cache of hard examples: .*No such file"):
        HardExampleCache(tmp_path / "missing" / "hard")
    with HardExampleCache(tmp_path / "hard", capacity=5) as cache:
        cache.add(*example(0), 1)
    with pytest.raises(ValueError, match="capacity 6, got 2 and 5; choose another file"):
        HardExampleCache(tmp_path / "hard", capacity=6)
    with pytest.raises(ValueError, match="capacity: expected at least 1, got 0"):
        HardExampleCache(tmp_path / "other", capacity=0)


def test_samples_are_a_function_of_the_generator(tmp_path: Path) -> None:
    with HardExampleCache(tmp_path / "hard") as cache:
        with pytest.raises(ValueError, match="the cache is empty"):
            cache.sample(1, generator_for(0))
        for label in range(4):
            cache.add(*example(label, label), label)
        first, second = (cache.sample(50, generator_for(3))[1] for _ in range(2))
        labels = [int(target["labels"]) for target in first]
        assert labels == [int(target["labels"]) for target in second]
        assert set(labels) == {0, 1, 2, 3}


@pytest.mark.parametrize(("capacity", "kept"), [(100, [0, 1, 2, 3]), (4, [0, 1, 2, 3]), (3, [1, 2, 3])])
def test_rollback_is_as_if_the_newest_had_never_been_added(tmp_path: Path, capacity: int, kept: list[int]) -> None:
    with HardExampleCache(tmp_path / "hard", capacity=capacity) as cache:
        for number, label in enumerate((0, 1, 2, 3, 0, 1, np.int64(2))):
            cache.add(*example(number, int(label)), label)
        cache.rollback(4)
        assert cache.written == 4
        assert cache.counts == dict.fromkeys(range(4), 1)
        assert [int(cache[position][1]["labels"]) for position in range(len(cache))] == kept
        torch.testing.assert_close(cache[-1][0], example(3)[0], rtol=0, atol=0.51 / 255)
        cache.add(*example(5, 7), 7)
        assert cache.counts == dict.fromkeys([*range(4), 7], 1)
        for impossible in (6, -1):
            with pytest.raises(ValueError, match="can be removed, not all after the first"):
                cache.rollback(impossible)
        assert cache.written == 5


def test_examples_that_are_gone_cannot_be_restored(tmp_path: Path) -> None:
    with HardExampleCache(tmp_path / "hard", capacity=3) as cache:
        for label in range(10):
            cache.add(*example(label, label), label)
        cache.rollback(7)
        with pytest.raises(ValueError, match="can be removed, not all after the first 4"):
            cache.rollback(4)
        assert [int(cache[position][1]["labels"]) for position in range(len(cache))] == [4, 5, 6]


@pytest.mark.parametrize("number", range(1, 12))
def test_examples_can_be_removed_from_a_full_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr("terse_aug.lockstep.cache._FIRST_MAP_BYTES", 1 << 15)
    with HardExampleCache(tmp_path / "hard") as cache:
        for seed in range(number):
            cache.add(*example(seed), 1)
        cache.rollback(0)
        assert len(cache) == 0


def test_every_epoch_draws_other_examples(tmp_path: Path) -> None:
    with HardExampleCache(tmp_path / "hard") as cache:
        for label in range(30):
            cache.add(*example(label, label), label)
        real = [make_batch(0, sizes=((20, 30),) * 8)]
        first, again, other = (next(mix_batches(real, cache, 1.0, seed=1, epoch=epoch))[1] for epoch in (0, 0, 1))
    labels = [[int(target["labels"][0]) for target in targets] for targets in (first, again, other)]
    assert labels[0] == labels[1] != labels[2]


@pytest.mark.parametrize(
    ("size", "fraction", "expected"),
    [
        (4, 0.0, [0] * 4),
        (4, 0.5, [2] * 4),
        (4, 1.0, [4] * 4),
        (1, 0.5, [0, 1, 0, 1]),
        (2, 0.25, [0, 1, 0, 1]),
        (3, 0.5, [1, 2, 1, 2]),
        (10, 0.1, [1] * 4),
        (5, 0.6, [3] * 4),
    ],
)
def test_a_fraction_of_the_images_is_replaced_and_the_rest_carried_over(
    tmp_path: Path, size: int, fraction: float, expected: list[int]
) -> None:
    with HardExampleCache(tmp_path / "hard") as cache:
        cache.add(*example(0, label=9), 9)
        real = [make_batch(seed, sizes=((20, 30),) * size) for seed in range(4)]
        batches = list(mix_batches(real, cache, fraction, seed=1))
    for (images, targets), (real_images, _), count in zip(batches, real, expected, strict=True):
        assert len(images) == len(targets) == size
        assert [int(target["labels"][0]) == 9 for target in targets] == [False] * (size - count) + [True] * count
        assert all(torch.equal(one, other) for one, other in zip(images[: size - count], real_images, strict=False))


def test_an_impossible_fraction_is_refused(tmp_path: Path) -> None:
    message = r"fraction: expected a value within \[0, 1\], got 1.5"
    with HardExampleCache(tmp_path / "hard") as cache, pytest.raises(ValueError, match=message):
        next(mix_batches([make_batch()], cache, 1.5, seed=1))

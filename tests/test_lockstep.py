"""Lock-step: the whole cycle of hunts and trainings, stopped and gone on with."""

from __future__ import annotations

import os
import pickle
import signal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import every_image, make_batch
from hunting import hunt, noise_batches
from processes import exit_code
from torch import Tensor, nn

from terse_aug import ForegroundBank, Terse
from terse_aug.lockstep import HardExampleCache, HardExampleMining, LockStep, MiningReport, mixed
from terse_aug.models import ClassifierAdapter, class_of
from terse_aug.policies import Critic


def cycle(bank: Path, folder: Path, kill_at: int) -> None:
    """Two rounds, gone on with where they were; killed at the ``kill_at``-th batch, and told in ``out.pt``."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(108, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    target = ClassifierAdapter(model, classes=3)
    terse = Terse(ForegroundBank.open(bank), Critic(update_interval=1), paste=every_image(objects=(1, 1)), model=target)
    events = 0

    def event() -> None:
        nonlocal events
        events += 1
        if events == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def backgrounds(number: int) -> Any:
        for seed in count(1000 * number):
            event()
            yield make_batch(seed, sizes=((32, 32),) * 4, objects=0)

    def train(number: int, reports: list[MiningReport]) -> None:
        assert len(reports) == number + 1
        real = [make_batch(seed, sizes=((32, 32),) * 8, objects=1) for seed in range(5)]
        for images, targets in mixed(real, cache, 0.5, seed=1, epoch=number):
            event()
            loss = nn.functional.cross_entropy(model(torch.stack(images)), class_of(targets))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with HardExampleCache(folder / "hard", capacity=10) as cache:
        hunter = HardExampleMining(terse, target, cache, {1: 4, 2: 4}, budget=60)
        lockstep = LockStep(hunter, folder / "run", {"model": model, "optimizer": optimizer}, save_every=2)
        reports = lockstep.run(2, backgrounds, train, show=False)
        kept = [cache[position] for position in range(len(cache))]
    content = {
        "reports": [vars(report) for report in reports],
        "model": model.state_dict(),
        "terse": terse.state_dict(),
        "images": [image for image, _ in kept],
        "labels": [own["labels"] for _, own in kept],
        "events": events,
    }
    torch.save(content, folder / "out.pt")


def run_cycle(bank: ForegroundBank, folder: Path, kill_at: int = 0) -> int | None:
    return exit_code(cycle, bank.path, folder, kill_at)


def assert_equal(one: Any, other: Any, where: str) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_equal(one[name], other[name], f"{where} {name}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where} {number}")
    elif isinstance(one, Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=where)
    else:
        assert one == other, where


def test_a_run_killed_anywhere_ends_as_one_that_was_not(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    assert run_cycle(tiny_bank, tmp_path / "whole") == 0
    whole = torch.load(tmp_path / "whole" / "out.pt")
    events = whole.pop("events")
    assert [report["complete"] for report in whole["reports"]][:1] == [True]
    assert len(whole["images"]) == 10  # the cache ran over: more were found
    assert sorted(path.name for path in (tmp_path / "whole" / "run").iterdir()) == ["learners-2.pt", "lockstep.pt"]
    # In the first hunt between two checkpoints, while training, and in the second hunt.
    first = whole["reports"][0]["batches"]
    for kill_at in (first - 1, first + 3, first + 5 + 4):
        folder = tmp_path / f"killed-{kill_at}"
        assert run_cycle(tiny_bank, folder, kill_at) == -9
        assert run_cycle(tiny_bank, folder) == 0
        resumed = torch.load(folder / "out.pt")
        assert resumed.pop("events") <= events
        assert_equal(resumed, whole, f"killed at {kill_at}:")


def test_a_cycle_can_be_gone_on_with_and_refuses_what_does_not_belong_to_it(
    tiny_bank: ForegroundBank, tmp_path: Path
) -> None:
    hunter, _, _ = hunt(tiny_bank, tmp_path, "random", label1=2)
    trained: list[int] = []

    def run(rounds: int, **learners: Any) -> list[MiningReport]:
        cycle = LockStep(hunter, tmp_path / "run", learners or {"model": nn.Linear(2, 2)})
        return cycle.run(
            rounds, lambda number: noise_batches(), lambda number, reports: trained.append(number), show=rounds == 2
        )

    reports = run(2)
    assert trained == [0, 1]
    assert [report.found for report in reports] == [{1: 2}] * 2
    more = run(3)
    assert trained == [0, 1, 2]
    assert more[:2] == reports
    assert run(3) == more
    with pytest.raises(ValueError, match=r"expected the learners \['model'\], got \['other'\]"):
        run(3, other=nn.Linear(1, 1))
    other = hunt(tiny_bank, tmp_path / "other", "random", label1=2)[0]
    other.run(noise_batches())
    with pytest.raises(ValueError, match=r"is not the cache that the run in .* has filled"):
        LockStep(other, tmp_path / "run", {"model": nn.Linear(2, 2)}).run(3, lambda number: [], lambda *_: None)
    assert len(other.cache) == 2
    (tmp_path / "run" / "lockstep.pt").unlink()
    with pytest.raises(ValueError, match="expected an empty cache for a new run"):
        run(3)
    torch.save({"format": 9}, tmp_path / "run" / "lockstep.pt")
    with pytest.raises(ValueError, match="expected a checkpoint of version 1, got 9"):
        run(3)
    assert trained == [0, 1, 2]
    with pytest.raises(ValueError, match="save_every: expected at least 1 batch, got 0"):
        LockStep(hunter, tmp_path, {}, save_every=0)


def test_a_run_that_found_nothing_yet_does_not_empty_the_cache_of_another(
    tiny_bank: ForegroundBank, tmp_path: Path
) -> None:
    hunter, cache, _ = hunt(tiny_bank, tmp_path, "random", label1=2)

    def killed(number: int) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LockStep(hunter, tmp_path / "run", {"model": nn.Linear(2, 2)}).run(1, killed, lambda *_: None, show=False)
    assert cache.written == 0
    other = hunt(tiny_bank, tmp_path / "other", "random", label1=2)[0]
    other.run(noise_batches())
    with pytest.raises(ValueError, match="is not the cache that the run in"):
        LockStep(other, tmp_path / "run", {"model": nn.Linear(2, 2)}).run(1, lambda _: [], lambda *_: None, show=False)
    assert len(other.cache) == 2


class Unloadable:
    """Its state can be saved and not be loaded."""

    def state_dict(self) -> dict[str, Any]:
        return {"value": Path("a")}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        raise AssertionError


def test_a_state_that_cannot_be_loaded_is_noticed_before_anything_is_done(
    tiny_bank: ForegroundBank, tmp_path: Path
) -> None:
    hunter, cache, _ = hunt(tiny_bank, tmp_path, "random", label1=2)
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        LockStep(hunter, tmp_path / "run", {"odd": Unloadable()}).run(1, lambda number: [], lambda *_: None)
    assert len(cache) == 0

"""Lock-step: the schedule of mining and training, killed and resumed."""

from __future__ import annotations

import os
import pickle
import signal
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_batch
from lockstep_samples import make_miner, make_terse, noise_batches
from processes import exit_code
from torch import Tensor, nn

from terse_aug import ForegroundBank
from terse_aug.lockstep import HardExampleCache, HardExampleMiner, LockStep, MiningReport, mix_batches
from terse_aug.models import ClassifierAdapter, class_of


def cycle(bank: Path, folder: Path, kill_at: int) -> None:
    """Two rounds, resumed if begun, killed at the ``kill_at``-th batch; the result is in ``out.pt``."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(108, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    adapter = ClassifierAdapter(model, classes=3)
    terse = make_terse(ForegroundBank.open(bank), "critic", model=adapter)
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
        for images, targets in mix_batches(real, cache, 0.5, seed=1, epoch=number):
            event()
            loss = nn.functional.cross_entropy(model(torch.stack(images)), class_of(targets))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with HardExampleCache(folder / "hard", capacity=10) as cache:
        miner = HardExampleMiner(terse, adapter, cache, {1: 4, 2: 4}, budget=36)
        lockstep = LockStep(miner, folder / "run", {"model": model, "optimizer": optimizer}, save_every=2)
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


def test_a_run_killed_anywhere_ends_like_an_uninterrupted_one(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    assert run_cycle(tiny_bank, tmp_path / "whole") == 0
    whole = torch.load(tmp_path / "whole" / "out.pt")
    events = whole.pop("events")
    assert whole["reports"][0]["complete"]
    assert len(whole["images"]) == 10  # more were found than the cache holds
    assert sorted(path.name for path in (tmp_path / "whole" / "run").iterdir()) == ["learners-2.pt", "lockstep.pt"]
    # In the first mining phase between two checkpoints, while training, and in the second mining phase.
    first = whole["reports"][0]["batches"]
    for kill_at in (first - 1, first + 3, first + 5 + 4):
        folder = tmp_path / f"killed-{kill_at}"
        assert run_cycle(tiny_bank, folder, kill_at) == -9
        assert run_cycle(tiny_bank, folder) == 0
        resumed = torch.load(folder / "out.pt")
        assert resumed.pop("events") <= events
        assert_equal(resumed, whole, f"killed at {kill_at}:")


def run_lockstep(miner: HardExampleMiner, folder: Path, rounds: int, learner: Any = None, **more: Any) -> Any:
    learners = {"model": nn.Linear(2, 2)} if learner is None else learner
    own: dict[str, Any] = {"backgrounds": lambda number: noise_batches(), "train": lambda *_: None, "show": False}
    return LockStep(miner, folder, learners).run(rounds, **(own | more))


def test_a_finished_run_can_be_continued(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    miner = make_miner(tiny_bank, tmp_path, {1: 2})
    trained: list[int] = []

    def run(rounds: int) -> list[MiningReport]:
        own = {"train": lambda number, reports: trained.append(number), "show": rounds == 2}
        reports: list[MiningReport] = run_lockstep(miner, tmp_path / "run", rounds, **own)
        return reports

    reports = run(2)
    assert trained == [0, 1]
    assert [report.found for report in reports] == [{1: 2}] * 2
    more = run(3)
    assert more[:2] == reports
    assert run(3) == more
    assert trained == [0, 1, 2]


def interrupt(number: int) -> Any:
    raise KeyboardInterrupt


def test_what_does_not_belong_to_a_run_is_refused_and_left_as_it_is(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    miner, other = (make_miner(tiny_bank, tmp_path / name, {1: 2}) for name in "ab")
    other.run(noise_batches())
    # Also where the run has found nothing yet.
    for backgrounds in (interrupt, lambda number: noise_batches()):
        with pytest.raises(KeyboardInterrupt) if backgrounds is interrupt else nullcontext():
            run_lockstep(miner, folder, 1, backgrounds=backgrounds)
        with pytest.raises(ValueError, match=r"is not the cache that the run in .* has filled"):
            run_lockstep(other, folder, 1)
        assert len(other.cache) == 2
    with pytest.raises(ValueError, match=r"expected the learners \['model'\], got \['other'\]"):
        run_lockstep(miner, folder, 2, {"other": nn.Linear(1, 1)})
    (folder / "lockstep.pt").unlink()
    with pytest.raises(ValueError, match="expected an empty cache for a new run"):
        run_lockstep(miner, folder, 2)
    torch.save({"format": 9}, folder / "lockstep.pt")
    with pytest.raises(ValueError, match="expected a checkpoint of version 2, got 9"):
        run_lockstep(miner, folder, 2)
    with pytest.raises(ValueError, match="save_every: expected at least 1 batch, got 0"):
        LockStep(miner, tmp_path, {}, save_every=0)


class Unloadable:
    """Its state can be saved but not loaded."""

    def state_dict(self) -> dict[str, Any]:
        return {"value": Path("a")}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        raise AssertionError


def test_a_state_that_cannot_be_loaded_raises_at_once(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    miner = make_miner(tiny_bank, tmp_path, {1: 2})
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        run_lockstep(miner, tmp_path / "run", 1, {"odd": Unloadable()})
    assert len(miner.cache) == 0

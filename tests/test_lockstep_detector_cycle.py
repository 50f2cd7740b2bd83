"""Lock-step with a detector: the rounds with a policy, a discriminator and a detector, interrupted and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import all_equal, every_image, make_batch, make_detector, parameters_of, policy_with
from lockstep_samples import make_terse, noise_batches
from test_lockstep import assert_equal

from terse_aug import ForegroundBank, Terse, TerseWarning
from terse_aug.lockstep import HardExampleCache, HardExampleMiner, LockStep, MiningReport, mix_batches
from terse_aug.models import TorchvisionAdapter

SIZES = ((64, 80), (72, 64))


class Interrupted(Exception):
    """Of a run, as by a kill: nothing after it is done."""


def adversary(bank: ForegroundBank, **settings: Any) -> Terse:
    policy = policy_with("adversarial", update_interval=1, discriminator_weight=0.1)
    return Terse(bank, policy, paste=every_image(objects=(1, 1)), **settings)


def cycle(bank: ForegroundBank, folder: Path, stop_at: int = 0, seed: int = 0) -> dict[str, Any]:
    """Two rounds, resumed if begun, interrupted at a batch; the detector draws proposals from the global generator."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    detector = make_detector("fasterrcnn")
    optimizer = torch.optim.SGD(detector.parameters(), 1e-3, momentum=0.9)
    model = TorchvisionAdapter(detector)
    terse = adversary(bank, model=model)
    events = 0

    def event() -> None:
        nonlocal events
        events += 1
        if events == stop_at:
            raise Interrupted

    def backgrounds(number: int) -> Iterator[Any]:
        for batch, _ in zip(noise_batches(sizes=SIZES), range(4), strict=False):
            event()
            yield batch

    def train(number: int, reports: list[MiningReport]) -> None:
        real = [make_batch(seed, sizes=SIZES) for seed in range(2)]
        for images, targets in mix_batches(real, cache, 0.5, seed=1, epoch=number, terse=terse):
            event()
            loss = torch.stack(list(detector(images, targets).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with HardExampleCache(folder / "hard", capacity=100) as cache:
        miner = HardExampleMiner(terse, model, cache, {1: 50, 2: 50}, budget=1000, learning_batches=2)
        lockstep = LockStep(miner, folder / "run", {"model": detector, "optimizer": optimizer}, save_every=2)
        reports = lockstep.run(2, backgrounds, train, show=False)
        kept = [cache[position] for position in range(len(cache))]
    return {
        "reports": [vars(report) for report in reports],
        "model": detector.state_dict(),
        "terse": terse.state_dict(),
        "images": [image for image, _ in kept],
        "targets": [target for _, target in kept],
    }


def test_a_run_interrupted_anywhere_ends_like_an_uninterrupted_one(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    whole = cycle(tiny_bank, tmp_path / "whole")
    assert [report["batches"] for report in whole["reports"]] == [4, 4]
    assert len(whole["images"]) == sum(sum(report["found"].values()) for report in whole["reports"]) > 0
    # While examples are kept, while the detector trains, and while the policy learns in the second round.
    for stop_at in (4, 6, 8):
        with pytest.raises(Interrupted):
            cycle(tiny_bank, tmp_path / str(stop_at), stop_at)
        assert_equal(cycle(tiny_bank, tmp_path / str(stop_at), seed=99), whole, f"stopped at {stop_at}:")


@pytest.mark.parametrize("policy", ["critic", "adversarial"])
def test_the_policy_learns_first_and_is_fixed_while_examples_are_kept(
    tiny_bank: ForegroundBank, tmp_path: Path, policy: str
) -> None:
    model = TorchvisionAdapter(make_detector("fasterrcnn"))
    terse = make_terse(tiny_bank, policy, model=model)
    states, kept = [parameters_of(terse.policy)], []

    def progress(report: MiningReport) -> None:
        states.append(parameters_of(terse.policy))
        kept.append(len(cache))

    with HardExampleCache(tmp_path / "hard") as cache:
        miner = HardExampleMiner(terse, model, cache, {1: 50, 2: 50}, 24, learning_batches=3)
        report = miner.run(noise_batches(sizes=SIZES), progress=progress)
    changed = [not all_equal(*pair) for pair in pairwise(states)]
    assert changed[:3] == [True] * 3
    assert not any(changed[3:])
    assert kept[:3] == [0] * 3
    assert kept[-1] == sum(report.found.values()) > 0
    assert terse.metrics()["updates"] == 3
    assert terse.metrics()["skipped_updates"] == terse.metrics()["dropped/graph"] == 0
    assert terse.trainer.learns_from_batch()  # again


def test_the_discriminator_is_trained_beside_the_detector_and_not_while_mining(
    tiny_bank: ForegroundBank, tmp_path: Path
) -> None:
    """On backgrounds without objects, as in the paper, mining has no real ones to show it."""
    model = TorchvisionAdapter(make_detector("fasterrcnn"))
    terse = adversary(tiny_bank, model=model)
    discriminator = terse.trainer.updater.discriminator
    assert discriminator is not None
    first = parameters_of(discriminator)
    with HardExampleCache(tmp_path / "hard") as cache:
        HardExampleMiner(terse, model, cache, {1: 50, 2: 50}, 4).run(noise_batches(sizes=SIZES, objects=1))
        assert terse.metrics()["updates"] > 0
        assert all_equal(parameters_of(discriminator), first)
        real = [make_batch(seed, sizes=SIZES) for seed in range(4)]
        losses = []
        for epoch in range(4):
            for batch in mix_batches(real, cache, 0.5, seed=0, epoch=epoch):
                losses.append(float(terse.trainer.updater.train_discriminator(*batch)["discriminator_loss"]))
        assert sum(losses[-4:]) < 0.95 * sum(losses[:4])
        assert all(parameter.grad is None for parameter in terse.policy.parameters())
        # One image in a batch: it is real or a composite, and the discriminator learns from it alone.
        alone = [make_batch(seed, sizes=SIZES[:1]) for seed in range(2)]
        for _ in mix_batches(alone, cache, 0.5, seed=0, terse=terse):
            now = parameters_of(discriminator)
            assert not all_equal(now, first)
            first = now
        with pytest.raises(ValueError, match="terse: expected one with a discriminator"):
            next(mix_batches(real, cache, 0.5, seed=0, terse=make_terse(tiny_bank)))


@pytest.mark.parametrize("trained", [False, True])
def test_a_discriminator_that_is_never_trained_is_warned_about(
    tiny_bank: ForegroundBank, tmp_path: Path, trained: bool
) -> None:
    model = TorchvisionAdapter(make_detector("ssd"))
    terse = adversary(tiny_bank, model=model)
    with HardExampleCache(tmp_path / "hard") as cache:
        lockstep = LockStep(HardExampleMiner(terse, model, cache, {1: 1}, 8), tmp_path / "run", {"model": model.model})

        def train(number: int, reports: list[MiningReport]) -> None:
            list(mix_batches([make_batch(0, sizes=SIZES)], cache, 0.5, seed=0, terse=terse if trained else None))

        def run() -> None:
            lockstep.run(1, lambda number: noise_batches(sizes=SIZES), train, show=False)

        if trained:
            run()
        else:
            with pytest.warns(TerseWarning, match="the discriminator was not trained in round 0"):
                run()

"""Lock-step: the hunt for hard examples, and the whole cycle."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import EVERY_IMAGE, make_batch, make_detector, parameters_of
from processes import exit_code
from torch import Tensor, nn

from terse_aug import ForegroundBank, PixelFormat, Terse
from terse_aug.lockstep import HardExampleCache, Hunt, HuntReport, LockStep, mixed
from terse_aug.targets import ClassifierTarget, TorchvisionDetector, class_of

# --- hunt -----------------------------------------------------------------------------------------------------------


class Brightness(nn.Module):
    """A classifier that takes what is bright on the left for class 1 and all else for class 2."""

    def forward(self, images: Tensor) -> Tensor:
        left = images[..., : images.shape[-1] // 2].mean((1, 2, 3)) - images[..., images.shape[-1] // 2 :].mean(
            (1, 2, 3)
        )
        return torch.stack([torch.zeros_like(left), 40 * left, -40 * left], 1)


def hunt(bank: ForegroundBank, folder: Path, policy: str, budget: int = 4000, **wanted: int) -> tuple[Hunt, Any, Terse]:
    folder.mkdir(exist_ok=True)
    target = ClassifierTarget(Brightness(), classes=3)
    terse = Terse(bank, policy, target=target, objects=(1, 1), move_every=1, **EVERY_IMAGE)
    cache = HardExampleCache(folder / "hard")
    labels = {int(name.removeprefix("label")): number for name, number in wanted.items()}
    return Hunt(terse, target, cache, labels, budget), cache, terse


def noise_batches() -> Any:
    for seed in count():
        yield make_batch(seed, sizes=((48, 48),) * 4, objects=0)


@pytest.mark.parametrize("policy", ["random", "hard-random", "critic", "learned"])
def test_a_hunt_ends_with_the_wanted_number_of_each_label(
    tiny_bank: ForegroundBank, tmp_path: Path, policy: str
) -> None:
    hunter, cache, terse = hunt(tiny_bank, tmp_path, policy, label1=6, label2=4)
    report = hunter.run(noise_batches())
    assert report.complete
    assert report.found == cache.counts == {1: 6, 2: 4}
    target = ClassifierTarget(Brightness(), classes=3)
    for position in range(len(cache)):
        image, fields = cache[position]
        assert float(target.object_scores([image], [fields])[0].min()) < 0.55
    forwards = {"random": 1, "hard-random": 3, "critic": 1, "learned": 2}[policy]
    assert report.target_forwards == 4 * forwards * terse.metrics()["iterations"]
    assert terse.metrics()["moves"] == (terse.metrics()["iterations"] if terse.policy.learns else 0)


def test_a_hunt_ends_with_its_budget(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    hunter, cache, terse = hunt(tiny_bank, tmp_path, "random", budget=10, label1=1000)
    report = hunter.run(noise_batches())
    assert not report.complete
    assert report.target_forwards == 12
    assert terse.metrics()["iterations"] == 3
    assert sum(report.found.values()) == len(cache) <= report.seen == 12


def test_a_hunt_goes_on_where_an_interrupted_one_was(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    hunter, cache, _ = hunt(tiny_bank, tmp_path, "random", label1=3, label2=3)
    reports = []

    def interrupt(report: HuntReport) -> None:
        reports.append(report)
        if sum(report.found.values()) >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hunter.run(noise_batches(), progress=interrupt)
    assert len(cache) == sum(reports[-1].found.values()) < 6
    report = hunter.run(noise_batches(), begun=reports[-1])
    assert report.complete
    assert report.found == cache.counts == {1: 3, 2: 3}
    assert report.batches > reports[-1].batches == len(reports)
    assert report.target_forwards == 4 * report.batches
    assert hunter.run(noise_batches()).found == {1: 3, 2: 3}
    assert cache.counts == {1: 6, 2: 6}


def test_only_labels_that_are_short_are_pasted(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    hunter, _, terse = hunt(tiny_bank, tmp_path, "random", budget=200, label1=1, label2=40)
    pasted: set[int] = set()
    both_short = True

    def watch(report: HuntReport) -> None:
        nonlocal both_short
        if not both_short:
            pasted.update(watched)
        both_short = report.found.get(1, 0) == 0

    watched: list[int] = []
    forward = terse.forward

    def spy(*batch: Any) -> Any:
        out = forward(*batch)
        watched[:] = [paste.label for pastes in terse.pastes for paste in pastes]
        return out

    terse.forward = spy  # type: ignore[method-assign]  # a spy
    hunter.run(noise_batches(), progress=watch)
    assert pasted == {2}
    terse.forward = forward  # type: ignore[method-assign]  # a spy
    for images, targets in (make_batch(seed, sizes=((48, 48),) * 4) for seed in range(5)):
        spy(images, targets)
        pasted.update(watched)
    assert pasted == {1, 2}


def test_a_hunt_keeps_a_restriction_and_needs_no_target_of_terse(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    """The target tells ten classes, Terse knows of none, and the user has chosen what is pasted."""

    class Ten(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            return torch.nn.functional.pad(super().forward(images), (0, 7), value=-9.0)

    terse = Terse(tiny_bank, "critic", objects=(1, 1), move_every=1, **EVERY_IMAGE)
    terse.paste_only([2])
    report = Hunt(terse, ClassifierTarget(Ten(), 10), HardExampleCache(tmp_path / "hard"), {1: 3}, 400).run(
        noise_batches()
    )
    assert report.found == {1: 3}
    assert terse.metrics()["moves"] > 0
    assert terse.pasted_labels == [2]
    done = Hunt(terse, ClassifierTarget(Ten(), 10), HardExampleCache(tmp_path / "more"), {1: 2}, 400)
    assert done.run(noise_batches(), begun=dataclasses.replace(report, complete=False)).batches == report.batches


def test_a_score_that_is_not_known_does_not_stop_the_policy(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    class Partly(ClassifierTarget):
        object_chances = None  # type: ignore[assignment]  # it has none

        def object_scores(self, images: Any, targets: Any) -> list[Tensor]:
            return [torch.tensor([float("nan"), *[0.2] * (len(target["labels"]) - 1)]) for target in targets]

    terse = Terse(tiny_bank, "critic", objects=(1, 1), move_every=1, **EVERY_IMAGE)
    hunter = Hunt(terse, Partly(Brightness(), 3), HardExampleCache(tmp_path / "hard"), {1: 50}, 12)
    hunter.run(make_batch(seed, sizes=((48, 48),) * 4, objects=1) for seed in count())
    assert terse.metrics()["losses_not_finite"] == 0
    assert terse.metrics()["moves"] == 3


@pytest.mark.parametrize(("margin", "hard"), [(0.05, True), (0.7, False)])
def test_hard_may_be_what_another_class_is_ahead_of(
    tiny_bank: ForegroundBank, tmp_path: Path, margin: float, hard: bool
) -> None:
    """Chances 0.3 for the right class, 0.6 for another, 0.1 for the third."""

    class Told(ClassifierTarget):
        def object_chances(self, images: Any, targets: Any) -> list[Tensor]:
            rows = torch.tensor([[0.0, 0.3, 0.6], [0.0, 0.3, 0.6], [0.0, 0.6, 0.3]]) + torch.tensor([0.1, 0, 0])
            return [rows[target["labels"]] for target in targets]

    target = Told(Brightness(), classes=3)
    terse = Terse(tiny_bank, "random", objects=(1, 1), **EVERY_IMAGE)
    cache = HardExampleCache(tmp_path / "hard")
    report = Hunt(terse, target, cache, {1: 2, 2: 2}, 40, rival_margin=margin).run(noise_batches())
    assert report.complete is hard
    with pytest.raises(ValueError, match=r"rival_margin: expected a target that tells .* got TorchvisionDetector"):
        Hunt(terse, TorchvisionDetector(make_detector("fasterrcnn")), cache, {1: 1}, 1, rival_margin=0.1)
    with pytest.raises(ValueError, match=r"rival_margin: expected a difference .* got 1.0"):
        Hunt(terse, target, cache, {1: 1}, 1, rival_margin=1.0)
    for most, fewer in ((0.31, True), (0.29, False)):
        hunter = Hunt(terse, target, HardExampleCache(tmp_path / str(most)), {1: 2, 2: 2}, 40, hard_below=most)
        assert hunter.run(noise_batches()).complete is fewer
    everything = Hunt(terse, target, HardExampleCache(tmp_path / "all"), {1: 2, 2: 2}, 400, hard_below=1.0)
    assert everything.run(noise_batches()).complete


def test_a_hunt_teaches_a_sampler_and_asks_nothing_for_it(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    terse = Terse(tiny_bank, "random", sampler="loss", move_every=1, **EVERY_IMAGE)
    detector = TorchvisionDetector(make_detector("fasterrcnn"))
    Hunt(terse, detector, HardExampleCache(tmp_path / "hard"), {1: 50, 2: 50}, budget=6).run(
        make_batch(seed) for seed in count()
    )
    assert float(terse.state_dict()["sampler.known"][1].sum()) > 0
    assert terse.metrics()["extra_forwards"] == 0
    pool = [torch.zeros(3, 40, 40)]
    graph = Terse(tiny_bank, "random", sampler="biregular", backgrounds=pool, background_probability=0.5)
    with pytest.raises(ValueError, match="another sampler than 'biregular'"):
        Hunt(graph, detector, HardExampleCache(tmp_path / "none"), {1: 1}, budget=6)


@pytest.mark.parametrize("policy", ["critic", "learned"])
def test_a_hunt_leaves_the_target_as_it_was(tiny_bank: ForegroundBank, tmp_path: Path, policy: str) -> None:
    detector = make_detector("fasterrcnn")
    before, state = parameters_of(detector), torch.get_rng_state()
    terse = Terse(tiny_bank, policy, move_every=1, **EVERY_IMAGE)
    cache = HardExampleCache(tmp_path / "hard")
    start = parameters_of(terse)
    report = Hunt(terse, TorchvisionDetector(detector), cache, {1: 50, 2: 50}, budget=12).run(
        make_batch(seed) for seed in count()
    )
    assert report.seen > 0
    assert detector.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in detector.parameters())
    assert all(torch.equal(new, old) for new, old in zip(parameters_of(detector), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert any(not torch.equal(new, old) for new, old in zip(parameters_of(terse), start, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "budget: expected at least 1 image, got 0"),
        ({"hard_below": 0.0}, r"hard_below: expected a probability in \(0, 1\], got 0.0"),
        ({"wanted": {}}, "wanted: expected a number of hard examples"),
        ({"wanted": {1: 60_000}}, "wanted: 60000 examples, more than the cache's capacity 50000"),
        ({"wanted": {1: 1, 5: 1}}, r"no cut-out in the bank has the label\(s\) \[5\]"),
    ],
)
def test_a_hunt_refuses_what_it_cannot_do(
    tiny_bank: ForegroundBank, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    settings: dict[str, Any] = {"wanted": {1: 1}, "budget": 1} | changes
    target = ClassifierTarget(Brightness(), classes=3)
    with pytest.raises(ValueError, match=message):
        Hunt(Terse(tiny_bank, "random"), target, HardExampleCache(tmp_path / "hard"), **settings)


def test_a_hunt_wants_the_pixels_of_its_cache_and_training_mode(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    target = ClassifierTarget(Brightness(), classes=3)
    terse = Terse(tiny_bank, "random", pixels=PixelFormat(scale=255))
    with HardExampleCache(tmp_path / "hard") as cache, pytest.raises(ValueError, match=r"expected a cache with .*255"):
        Hunt(terse, target, cache, {1: 1}, 10)
    hunter, _, terse = hunt(tiny_bank, tmp_path, "random", label1=1)
    terse.eval()
    with pytest.raises(ValueError, match="expected Terse in training mode"):
        hunter.run(noise_batches())


def test_a_hunt_draws_no_batch_that_it_does_not_use(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    hunter, _, terse = hunt(tiny_bank, tmp_path, "random", budget=8, label1=1000)
    drawn = []
    hunter.run(drawn.append(0) or batch for batch in noise_batches())  # type: ignore[func-returns-value]  # it appends, too
    assert len(drawn) == terse.metrics()["iterations"] == 2


# --- the whole cycle ------------------------------------------------------------------------------------------------


def cycle(bank: Path, folder: Path, kill_at: int) -> None:
    """Two rounds, gone on with where they were; killed at the ``kill_at``-th batch, and told in ``out.pt``."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(108, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    target = ClassifierTarget(model, classes=3)
    terse = Terse(ForegroundBank.open(bank), "critic", target=target, objects=(1, 1), move_every=1, **EVERY_IMAGE)
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

    def train(number: int, reports: list[HuntReport]) -> None:
        assert len(reports) == number + 1
        real = [make_batch(seed, sizes=((32, 32),) * 8, objects=1) for seed in range(5)]
        for images, targets in mixed(real, cache, 0.5, seed=1, epoch=number):
            event()
            loss = nn.functional.cross_entropy(model(torch.stack(images)), class_of(targets))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with HardExampleCache(folder / "hard", capacity=10) as cache:
        hunter = Hunt(terse, target, cache, {1: 4, 2: 4}, budget=60)
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

    def run(rounds: int, **learners: Any) -> list[HuntReport]:
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

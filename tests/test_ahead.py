"""Batches that are composed ahead, in a thread, while the detector trains on the one before."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import all_equal, every_image, make_batch, make_detector, make_terse, observe_hardness
from simulated_accelerator import DEVICE, counted
from test_accelerator import coloured_bank
from torch import Tensor

from terse_aug import ForegroundBank, Robustness, Terse
from terse_aug.data.planner import PastePlanner
from terse_aug.policies import AdversarialPolicy, Critic

STOP, END = 5, 9
SIZES = ((64, 80), (72, 64), (64, 64))


def batches(first: int = 0, end: int = END) -> list[Any]:
    return [make_batch(number, SIZES, masks=True) for number in range(first, end)]


class Run:
    """A training with a critic that learns in every second iteration, and can be saved and loaded."""

    def __init__(self, bank: ForegroundBank, **more: Any) -> None:
        self.detector = make_detector("fasterrcnn")
        self.optimizer = torch.optim.SGD(self.detector.parameters(), lr=0.01)
        policy = Critic(update_interval=2, target_hardness=1.0, temperature=0.2)
        self.terse = Terse(bank, policy, model=self.detector, seed=3, paste=every_image(), **more)

    def train(self, loader: list[Any], epochs: int = 1) -> list[Tensor]:
        seen: list[Tensor] = []
        for images, targets in itertools.chain.from_iterable(self.terse.ahead(loader) for _ in range(epochs)):
            seen += [*images, *(target["boxes"] for target in targets)]
            losses = self.detector(list(images), targets)
            torch.stack(list(losses.values())).sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.terse.step(losses)
        return seen

    def state(self) -> dict[str, Any]:
        parts = {"detector": self.detector, "optimizer": self.optimizer, "terse": self.terse}
        return {name: part.state_dict() for name, part in parts.items()} | {"rng": torch.get_rng_state()}

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        torch.set_rng_state(state.pop("rng"))
        for name, own in state.items():
            getattr(self, name).load_state_dict(own)


def test_random_composes_ahead_what_it_composes_in_the_loop(tiny_bank: ForegroundBank) -> None:
    ahead, in_loop = (make_terse(tiny_bank, "random", seed=3) for _ in range(2))
    for batch, (images, targets) in zip(batches(), ahead.ahead(batches()), strict=True):
        expected, corrected = in_loop(*batch)
        assert all_equal(list(images), list(expected))
        assert all(torch.equal(a[name], b[name]) for a, b in zip(targets, corrected, strict=True) for name in b)
        assert [len(own) for own in ahead.pastes] == [len(own) for own in in_loop.pastes]
        for terse in (ahead, in_loop):
            terse.step(torch.tensor(1.0))
    assert ahead.metrics() == in_loop.metrics()


def test_a_resumed_run_composes_ahead_what_the_run_before_would_have(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    whole, stopped, resumed = (Run(tiny_bank) for _ in range(3))
    torch.manual_seed(0)
    expected = whole.train(batches())
    torch.manual_seed(0)
    before = stopped.train(batches(0, STOP))
    torch.save(stopped.state(), tmp_path / "state.pt")
    torch.manual_seed(7)
    resumed.load(tmp_path / "state.pt")
    assert all_equal(before + resumed.train(batches(STOP)), expected)
    assert all_equal(*(list(run.terse.state_dict().values()) for run in (resumed, whole)))
    assert whole.terse.metrics()["updates"] == (END + 1) // 2


def test_a_state_saved_while_the_next_batch_is_composed_resumes_with_that_batch(
    tiny_bank: ForegroundBank, tmp_path: Path
) -> None:
    """As a framework saves it: inside of the loop."""
    run, resumed = Run(tiny_bank), Run(tiny_bank)
    torch.manual_seed(0)
    seen: list[list[Tensor]] = []
    for number, (images, targets) in enumerate(run.terse.ahead(batches())):
        seen.append(list(images))
        losses = run.detector(list(images), targets)
        torch.stack(list(losses.values())).sum().backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.terse.step(losses)
        if number == STOP - 1:
            torch.save(run.state(), tmp_path / "state.pt")
    resumed.load(tmp_path / "state.pt")
    assert all_equal(resumed.train(batches(STOP))[: len(SIZES)], seen[STOP])
    expected = [value for name, value in run.terse.state_dict().items() if "average" not in name]
    found = [value for name, value in resumed.terse.state_dict().items() if "average" not in name]
    assert all_equal(found, expected)


def test_what_the_critic_learns_has_an_effect_on_later_batches(tiny_bank: ForegroundBank) -> None:
    """The copy that composes follows the network that learns, two iterations behind."""
    terse = make_terse(tiny_bank, "critic", seed=3)
    trained, acting = [], []
    for _, targets in terse.ahead(batches()):
        acting.append([own.clone() for own in terse.trainer.acting.policy().parameters()])
        observe_hardness(terse, targets, 0.9)
        terse.step(torch.tensor(1.0))
        trained.append([own.detach().clone() for own in terse.policy.parameters()])
    assert not all_equal(trained[0], trained[1])
    for iteration in range(2, END):
        assert all_equal(acting[iteration], trained[iteration - 2])


def test_the_next_batch_is_composed_while_the_loop_has_the_one_before(tiny_bank: ForegroundBank) -> None:
    begun = [threading.Event() for _ in range(END)]

    def split(batch: Any) -> tuple[Any, ...]:
        begun[batch[1]].set()
        return (*batch[0], None)

    loader = list(zip(batches(), range(END), strict=True))
    loop = make_terse(tiny_bank, "random").ahead(loader, split, lambda batch, images, targets: (images, targets))
    for number, _ in enumerate(loop):
        if number + 1 < END:
            assert begun[number + 1].wait(timeout=30)
            assert not any(event.is_set() for event in begun[number + 2 :])


@pytest.mark.parametrize("evaluating", [False, True])
def test_updates_without_composing_ahead_leave_no_copies(tiny_bank: ForegroundBank, evaluating: bool) -> None:
    """And the loop ahead that follows begins with a network two iterations old."""
    terse = make_terse(tiny_bank, "critic", seed=3, model=make_detector("fasterrcnn"))
    trained: list[list[Tensor]] = []

    def train(loop: Any) -> None:
        for _, targets in loop:
            if terse.pastes:
                observe_hardness(terse, targets, 0.9)
            terse.step(torch.tensor(1.0))
            trained.append([own.detach().clone() for own in terse.policy.parameters()])

    train(terse.ahead(batches(0, 2)))
    sizes = []
    for _ in range(2):
        train(terse.train(not evaluating).ahead(batches()) if evaluating else (terse(*own) for own in batches()))
        sizes.append(len(terse.state_dict()))
    assert sizes[0] == sizes[1]
    first = terse.train().trainer.turn_ahead(seed=0)
    assert all_equal(list(first.policy.parameters()), trained[-2])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"policy": "adversarial"}, "policy: AdversarialPolicy"),
        ({"policy": "best-of-n"}, "policy: BestOfNPolicy"),
        ({"sampler": "hardness"}, "sampler: HardnessSampler"),
        ({"robustness": Robustness()}, "robustness"),
    ],
)
def test_what_needs_the_iteration_before_is_refused(
    tiny_bank: ForegroundBank, arguments: dict[str, Any], reason: str
) -> None:
    terse = Terse(tiny_bank, model=make_detector("fasterrcnn"), **arguments)
    with pytest.raises(ValueError, match=f"{reason}.*compose there"):
        terse.ahead([])


def test_a_policy_that_learns_from_gradients_is_refused_whatever_it_says(tiny_bank: ForegroundBank) -> None:
    class Ahead(AdversarialPolicy):
        ahead = True

    with pytest.raises(ValueError, match=r"policy: Ahead.*compose there"):
        Terse(tiny_bank, Ahead()).ahead([])


def test_composites_for_inspection_do_not_disturb_the_thread(
    tiny_bank: ForegroundBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the planner caches is used by one thread at a time."""
    plain, watched = (make_terse(tiny_bank, "critic", seed=3, foreground_candidates=2) for _ in range(2))
    expected = [list(images) for images, _ in plain.ahead(batches())]
    plan, active, most = PastePlanner.plan, [0], [0]

    def slow(*arguments: Any, **more: Any) -> Any:
        active[0] += 1
        most[0] = max(most[0], active[0])
        time.sleep(0.05)
        try:
            return plan(*arguments, **more)
        finally:
            active[0] -= 1

    monkeypatch.setattr(PastePlanner, "plan", slow)
    for (images, _), own in zip(watched.ahead(batches()), expected, strict=True):
        watched.compose(*make_batch(77))
        assert all_equal(list(images), own)
    assert most == [1]


def test_records_and_an_empty_batch_are_refused(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank, "random")
    images, targets = make_batch()
    *_, record = terse.composer()(images[0], targets[0], 0)
    with pytest.raises(ValueError, match="composed in the workers"):
        list(terse.ahead([(images[:1], targets[:1], [record])]))
    with pytest.raises(ValueError, match="at least one image"):
        list(terse.ahead([([], [])]))


def test_bad_input_is_an_error_of_the_loop_and_leaves_no_thread(tiny_bank: ForegroundBank) -> None:
    before = threading.active_count()
    good, (images, targets) = make_batch(0), make_batch(1)
    targets[0]["boxes"] = targets[0]["boxes"][:, :3]
    loop = iter(make_terse(tiny_bank, "random").ahead([good, (images, targets), good]))
    next(loop)
    with pytest.raises(ValueError, match="boxes"):
        next(loop)
    for _ in make_terse(tiny_bank, "random").ahead([good, good, good]):
        break
    assert threading.active_count() == before


def test_evaluation_mode_passes_batches_through_and_stacked_ones_stay_stacked(tiny_bank: ForegroundBank) -> None:
    terse, batch = make_terse(tiny_bank, "random").eval(), make_batch()
    assert list(terse.ahead([batch])) == [batch]
    ((composites, targets),) = make_terse(tiny_bank, "random").to(DEVICE).eval().ahead([batch])
    assert all(own.device == DEVICE for own in (*composites, *(target["boxes"] for target in targets)))
    images, targets = make_batch(sizes=((64, 64), (64, 64)))
    ((composites, _),) = terse.train().ahead([(torch.stack(images), targets)])
    assert isinstance(composites, Tensor)
    assert composites.shape == (2, 3, 64, 64)


def test_on_a_device_nothing_is_waited_for_and_batches_are_those_of_the_cpu(tmp_path: Path) -> None:
    bank = coloured_bank(tmp_path)
    on_cpu, on_device = Run(bank), Run(bank)
    on_device.detector.to(DEVICE)
    on_device.terse.to(DEVICE)
    expected = on_cpu.train(batches(0, 1))
    loop = iter(on_device.terse.ahead(batches(0, 3)))
    for number in range(3):
        with counted() as composing:
            images, targets = next(loop)
        assert all(own.device == DEVICE for own in (*images, *(target["boxes"] for target in targets)))
        if number == 0:
            found = [own.cpu() for own in (*images, *(target["boxes"] for target in targets))]
            assert all_equal(found, expected)
        else:
            assert composing.synchronisations == 0
        losses = on_device.detector(list(images), targets)
        torch.stack(list(losses.values())).sum().backward()
        with counted() as step:
            on_device.terse.step(losses)
        assert number != 1 or step.synchronisations == 0
    assert on_device.terse.metrics()["updates"] == 2
    assert on_device.terse.metrics()["extra_forwards"] == 0


def test_batches_are_split_in_the_thread_and_fields_may_stay_on_the_cpu(tmp_path: Path) -> None:
    threads = []

    def split(batch: Any) -> tuple[Any, ...]:
        threads.append(threading.current_thread().name)
        return (*batch, None)

    terse = make_terse(coloured_bank(tmp_path), "random").to(DEVICE)
    for images, targets in terse.ahead(batches(0, 2), split, on_cpu=("masks",)):
        assert all(own.device == DEVICE for own in (*images, *(target["boxes"] for target in targets)))
        assert all(target["masks"].device.type == "cpu" for target in targets)
    assert threads == ["terse_aug_0"] * 2

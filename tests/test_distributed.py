"""Two processes under DistributedDataParallel (gloo): one policy, two streams of composites."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import RampLoss, all_equal, backward, every_image, make_bank, make_batch, make_detector, parameters_of
from processes import METHOD, fresh
from torch import Tensor, distributed, nn
from torch import multiprocessing as mp

from terse_aug import BackgroundPool, ForegroundBank, Robustness, Terse, TerseWarning
from terse_aug.policies import Adversarial, Critic

RANKS, STEPS, BAD_STEP = 2, 8, 4

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")


def _work(rank: int, folder: Path, bank_path: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", TerseWarning)
    rendezvous = (folder / "rendezvous").as_uri()
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=RANKS)
    bank = ForegroundBank.open(bank_path)
    torch.save({name: scenario(rank, bank) for name, scenario in SCENARIOS.items()}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def without_values(images: list[Tensor], rank: int, own: int) -> list[Tensor]:
    """On one rank images that are not finite, so that nothing is pasted there."""
    return [image * math.nan for image in images] if rank == own else images


def _train(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """The loop in the manual with a detector in DDP and data of its own on each rank."""
    detector = nn.parallel.DistributedDataParallel(make_detector("retinanet"))
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    policy = Adversarial(update_interval=2, discriminator_weight=0.1)
    terse = Terse(bank, policy, paste=every_image(), model=detector)
    start = parameters_of(terse)
    for step in range(STEPS):
        losses = backward(detector(*terse(*make_batch(1000 * rank + step, sizes=((64, 64),)))))
        optimizer.step()
        optimizer.zero_grad()
        terse.step(losses)
    composites, _ = terse(*make_batch(0))
    return {
        "start": start,
        "end": parameters_of(terse),
        "optimizer": list(terse.trainer.updater.policy_optimizer.buffers()),  # type: ignore[union-attr]  # it learns
        "detector": parameters_of(detector),
        "composites": [image.detach() for image in composites],
        "metrics": terse.metrics(),
    }


def _critic(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """Data of its own on each rank; in one step the last rank's loss is NaN, in one it has nothing pasted."""
    detector = nn.parallel.DistributedDataParallel(make_detector("retinanet"))
    terse = Terse(bank, Critic(update_interval=1), paste=every_image(), model=detector)
    start = parameters_of(terse)
    for step in range(4):
        images, targets = make_batch(1000 * rank + step, sizes=((64, 64),))
        terse(without_values(images, rank, RANKS - 1) if step == 2 else images, targets)
        terse.step(math.nan if step == 1 and rank == RANKS - 1 else 1.0)
    return {"start": start, "end": parameters_of(terse), "metrics": terse.metrics()}


def _no_source_of_hardness(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """On the last rank nothing is pasted; all ranks have to raise, or the others would wait for ever."""
    terse = Terse(bank, Critic(update_interval=1), paste=every_image())
    images, targets = make_batch(0, sizes=((64, 64),))
    terse(without_values(images, rank, RANKS - 1), targets)
    return _error_of(lambda: terse.step(1.0))


def _error_of(action: Callable[[], object]) -> dict[str, Any]:
    try:
        action()
    except ValueError as error:
        return {"error": str(error)}
    return {"error": ""}


def _balanced(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """Passes over the six foregrounds, and rounds over four backgrounds; every image has one paste."""
    pool = BackgroundPool([torch.full((3, 70, 80), 0.2 * number) for number in range(4)], probability=1.0)
    paste = every_image(objects=(1, 1))
    passes = Terse(bank, paste=paste, sampler="balanced")
    rounds = Terse(bank, paste=paste, sampler="balanced", backgrounds=pool)
    foregrounds, pairs = [], []
    for step in range(12):
        passes(*make_batch(step, sizes=((96, 96),), objects=0))
        foregrounds += [paste.index for (paste,) in passes.pastes]
        rounds(*make_batch(step, sizes=((96, 96),), objects=0))
        pairs.append([rounds.replaced[0], rounds.pastes[0][0].index])
    return {"foregrounds": foregrounds, "pairs": pairs}


def _too_few_backgrounds(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    pool = BackgroundPool([torch.zeros(3, 70, 80)], probability=1.0)
    return _error_of(lambda: Terse(bank, paste=every_image(), backgrounds=pool, sampler="balanced"))


def _hard_classes(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """Rank 0 knows the hardness of cats (1), rank 1 of dogs (2); once one has nothing pasted."""
    terse = Terse(bank, paste=every_image(), sampler="hardness")
    for step in range(8):
        images, targets = make_batch(100 * rank + step, objects=0)
        _, targets = terse(without_values(images, rank, RANKS - 1) if step == 4 else images, targets)
        labels = [target["labels"] for target in targets]
        terse.observe([torch.where(own == rank + 1, 0.9 - 0.4 * rank, math.nan) for own in labels])
        terse.step(math.nan if step == 5 and rank == 0 else 1.0)
    return {"known": terse.sampler.state()["totals"]}


def _one_bad_loss(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """In one iteration the last rank's loss is NaN; its backward is fine."""
    terse, detector = Terse(bank, Adversarial(update_interval=2), paste=every_image()), RampLoss()
    history, random_fallback = [parameters_of(terse)], []
    for step in range(BAD_STEP + 3):
        losses = backward(detector(*terse(*make_batch(10 * rank + step))))
        terse.step(math.nan if step == BAD_STEP and rank == RANKS - 1 else losses)
        history.append(parameters_of(terse))
        random_fallback.append(terse.metrics()["random_fallback"])
    return {"history": history, "random_fallback": random_fallback, "metrics": terse.metrics()}


def _nothing_on_one_rank(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    policy = Adversarial(update_interval=1, discriminator_weight=0.1)
    terse, detector = Terse(bank, policy, paste=every_image()), RampLoss()
    for step in range(2):
        images, targets = make_batch(step)
        backward(detector(*terse(without_values(images, rank, 0), targets)))
        terse.step(1.0)
    return {"end": parameters_of(terse), "metrics": terse.metrics()}


def _one_update(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """A single update; its gradient, and this rank's part of it."""
    policy = Adversarial(update_interval=1, max_gradient_norm=1e9)
    terse, detector = Terse(bank, policy, paste=every_image()), RampLoss()
    losses = backward(detector(*terse(*make_batch(rank))))
    (pending,) = terse.trainer.feedback.batches
    gradients = tuple(leaf.grad * pending.image_count for leaf in pending.proposal.leaves if leaf.grad is not None)
    parameters = list(terse.policy.parameters())
    own = torch.autograd.grad(terse.policy.objective(pending.proposal, gradients), parameters, retain_graph=True)
    terse.step(losses)
    optimizer = terse.trainer.updater.policy_optimizer
    got = [10 * getattr(optimizer, f"exp_avg_{index}") for index in range(len(parameters))]
    return {"own": list(own), "got": got}


def _best_of_n(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """Only rank 1 needs the detector: a forward of the wrapper would wait for the other rank."""
    detector = nn.parallel.DistributedDataParallel(make_detector("retinanet"))
    terse = Terse(bank, "best-of-n", paste=every_image(), model=detector)
    if rank == 1:
        terse(*make_batch())
    return {"metrics": terse.metrics()}


def _robustness(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """Data of its own on each rank, in one step not finite on the last; before that it perturbs a batch all alone."""
    detector = nn.parallel.DistributedDataParallel(make_detector("fcos"))
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    settings: dict[str, Any] = {"paste": every_image(), "robustness": Robustness(steps=2, probability=0.7)}
    if rank == RANKS - 1:
        Terse(bank, **settings, model=detector)(*make_batch())
    terse = Terse(bank, **settings, model=detector)
    start, passes = parameters_of(detector), []
    for step in range(6):
        images, targets = make_batch(1000 * rank + step, sizes=((64, 64), (64, 64)))
        composites, targets = terse(without_values(images, rank, RANKS - 1) if step == 2 else images, targets)
        passes.append(terse.metrics()["robustness/passes"])
        losses = backward(detector([image.nan_to_num() for image in composites], targets))
        optimizer.step()
        optimizer.zero_grad()
        terse.step(losses)
    return {"start": start, "end": parameters_of(detector), "passes": passes, "metrics": terse.metrics()}


class Whole(nn.Module):
    """A detector and its Terse in one module, as a person wraps it."""

    def __init__(self, bank: ForegroundBank) -> None:
        super().__init__()
        self.detector = make_detector("retinanet")
        self.terse = Terse(bank, Critic(update_interval=1), paste=every_image(), model=self.detector)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.detector(*self.terse(images, targets))
        return found


def _inside(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """The wrapper waits for gradients of all parameters, and gives all ranks the buffers of the first."""
    whole = Whole(bank)
    wrapped = nn.parallel.DistributedDataParallel(whole)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=1e-3, weight_decay=0.1)
    for step in range(4):
        losses = backward(wrapped(*make_batch(1000 * rank + step, sizes=((64, 64),))))
        optimizer.step()
        optimizer.zero_grad()
        whole.terse.step(losses)
    replay = dict(whole.terse.policy.named_buffers())["replay_numbers"]
    return {"policy": parameters_of(whole.terse.policy), "replay": replay, "metrics": whole.terse.metrics()}


SCENARIOS = {
    "in the wrapped module": _inside,
    "training": _train,
    "one loss is not finite": _one_bad_loss,
    "one rank has nothing pasted": _nothing_on_one_rank,
    "average": _one_update,
    "best-of-n": _best_of_n,
    "critic": _critic,
    "critic without a source": _no_source_of_hardness,
    "balanced": _balanced,
    "too few backgrounds": _too_few_backgrounds,
    "hard classes": _hard_classes,
    "robustness": _robustness,
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    bank = make_bank(tmp_path_factory.mktemp("bank"))
    fresh()
    mp.start_processes(_work, args=(folder, bank.path), nprocs=RANKS, start_method=METHOD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def test_both_ranks_have_the_same_policy_and_paste_different_things(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["training"] for rank in ranks)
    assert not all_equal(first["start"], first["end"])
    for part in ("start", "end", "optimizer", "detector"):
        assert all_equal(first[part], second[part])
    assert first["metrics"]["updates"] == second["metrics"]["updates"] == STEPS / 2
    assert not any(torch.equal(*pair) for pair in zip(first["composites"], second["composites"], strict=True))


def test_a_loss_that_is_not_finite_on_one_rank_skips_the_update_on_all(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["one loss is not finite"] for rank in ranks)
    for one, other in zip(first["history"], second["history"], strict=True):
        assert all_equal(one, other)
    updated = [not all_equal(a, b) for a, b in zip(first["history"], first["history"][1:], strict=False)]
    assert updated == [step % 2 == 0 and step != BAD_STEP for step in range(BAD_STEP + 3)]
    for rank in (first, second):
        assert rank["random_fallback"] == [float(BAD_STEP <= step < BAD_STEP + 2) for step in range(BAD_STEP + 3)]
        assert rank["metrics"]["skipped_updates"] == 1
    assert [rank["metrics"]["non_finite_losses"] for rank in (first, second)] == [0, 1]


def test_a_rank_on_which_nothing_was_pasted_follows_the_others(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["one rank has nothing pasted"] for rank in ranks)
    assert [rank["metrics"]["composites"] for rank in (first, second)] == [0, 4]
    assert all_equal(first["end"], second["end"])
    assert first["metrics"]["updates"] == second["metrics"]["updates"] == 2


def test_the_gradient_is_the_mean_over_the_ranks(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["average"] for rank in ranks)
    scale = max(float(gradient.abs().max()) for gradient in first["got"])
    expected: list[Tensor] = [(one + other) / 2 for one, other in zip(first["own"], second["own"], strict=True)]
    for got, mean in zip(first["got"], expected, strict=True):
        torch.testing.assert_close(got, mean, rtol=1e-4, atol=1e-5 * scale)


def test_the_critic_learns_the_same_on_all_ranks_from_data_of_their_own(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["critic"] for rank in ranks)
    assert not all_equal(first["start"], first["end"])
    assert all_equal(first["end"], second["end"])
    assert first["metrics"]["updates"] == second["metrics"]["updates"] == 3
    assert first["metrics"]["skipped_updates"] == second["metrics"]["skipped_updates"] == 1


def test_a_wrapped_module_may_hold_terse(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["in the wrapped module"] for rank in ranks)
    for own in (first, second):
        assert [own["metrics"][name] for name in ("updates", "extra_forwards", "feedback_failed")] == [4, 0, 0]
    assert all_equal(first["policy"], second["policy"])
    # Each rank has its own pastes in its memory, from the first one on.
    known = first["replay"].any(1) & second["replay"].any(1)
    assert int(known.sum()) >= 4
    assert not (first["replay"] == second["replay"]).all(1)[known].any()


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("critic without a source", "learns from hardness"),
        ("too few backgrounds", "expected at least 2 backgrounds"),
    ],
)
def test_what_cannot_work_is_refused_on_all_ranks(ranks: list[dict[str, Any]], scenario: str, message: str) -> None:
    assert all(message in rank[scenario]["error"] for rank in ranks)


def test_forwards_of_the_detector_are_made_outside_its_wrapper(ranks: list[dict[str, Any]]) -> None:
    assert [rank["best-of-n"]["metrics"]["extra_forwards"] for rank in ranks] == [0, 4]


def test_ranks_share_passes_and_rounds_and_paste_no_pair_twice(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["balanced"] for rank in ranks)
    for start in range(0, 12, 3):
        together = first["foregrounds"][start : start + 3] + second["foregrounds"][start : start + 3]
        assert sorted(together) == list(range(6))
    for own in (first, second):
        assert sorted(own["foregrounds"][:6]) == sorted(own["foregrounds"][6:]) == list(range(6))
    # Four backgrounds, two a rank, get six foregrounds each: all pairs that there are.
    assert len({tuple(pair) for pair in first["pairs"] + second["pairs"]}) == 24
    assert not {pair[0] for pair in first["pairs"]} & {pair[0] for pair in second["pairs"]}


def test_hardness_of_classes_is_shared_by_all_ranks(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["hard classes"]["known"] for rank in ranks)
    assert torch.equal(first, second)
    assert torch.allclose(first[0] / first[1], torch.tensor([0.9, 0.5], dtype=torch.float64))


def test_perturbed_composites_keep_the_detectors_of_the_ranks_equal(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["robustness"] for rank in ranks)
    assert all_equal(first["start"], second["start"])
    assert not all_equal(first["start"], first["end"])
    assert all_equal(first["end"], second["end"])
    # The same number of passes in the same iterations: a framework's loss may communicate with the other ranks.
    assert first["passes"] == second["passes"]
    images = [own["metrics"]["robustness/images"] for own in (first, second)]
    assert 0 < images[0] < 12
    assert images[1] in (images[0], images[0] - 2)
    assert first["metrics"]["robustness/no_gradient"] == first["metrics"]["robustness/not_finite"] == 0

"""Two processes under DistributedDataParallel (gloo): one adversary, two streams of composites."""

from __future__ import annotations

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import EVERY_IMAGE, RampLoss, all_equal, make_bank, make_batch, make_detector, parameters_of
from processes import METHOD, fresh
from torch import Tensor, distributed, nn
from torch import multiprocessing as mp

from terse_aug import ForegroundBank, Terse, TerseWarning

RANKS, STEPS, BAD_STEP = 2, 20, 4

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")


# --- what each process does -----------------------------------------------------------------------------------------


def _work(rank: int, folder: Path, bank_path: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", TerseWarning)
    rendezvous = (folder / "rendezvous").as_uri()
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=RANKS)
    bank = ForegroundBank.open(bank_path)
    scenarios = {
        "training": _train,
        "one loss is not finite": _one_bad_loss,
        "one rank has nothing pasted": _nothing_on_one_rank,
        "average": _one_move,
        "hard-random": _hard_random,
        "critic": _critic,
        "critic with nobody to ask": _nobody_to_ask,
        "pairing": _pairing,
        "too few backgrounds": _too_few_backgrounds,
        "hard classes": _hard_classes,
        "gradient steps": partial(_robust, "pgd"),
        "universal pattern": partial(_robust, "universal"),
    }
    torch.save({name: run(rank, bank) for name, run in scenarios.items()}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def _train(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """The loop in the manual with a detector in DDP and data of its own on each rank."""
    detector = nn.parallel.DistributedDataParallel(make_detector("retinanet"))
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    terse = Terse(bank, "learned", target=detector, move_every=2, discriminator_weight=0.1, **EVERY_IMAGE)
    start, composites = parameters_of(terse), []
    for step in range(STEPS):
        images, targets = terse(*make_batch(1000 * rank + step, sizes=((64, 64),)))
        losses = detector(images, targets)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        terse.step(losses)
    images, targets = make_batch(0)
    composites = list(terse(images, targets)[0])
    return {
        "start": start,
        "end": parameters_of(terse),
        "optimizer": list(terse.adversary.policy_optimizer.buffers()),  # type: ignore[union-attr]  # this policy learns
        "detector": parameters_of(detector),
        "composites": [image.detach() for image in composites],
        "metrics": terse.metrics(),
    }


def _critic(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """Data of its own on each rank; in one step the last rank's loss is NaN, in one it has nothing pasted."""
    detector = nn.parallel.DistributedDataParallel(make_detector("retinanet"))
    terse = Terse(bank, "critic", target=detector, move_every=1, **EVERY_IMAGE)
    start = parameters_of(terse)
    for step in range(4):
        images, targets = make_batch(1000 * rank + step, sizes=((64, 64),))
        if step == 2 and rank == RANKS - 1:
            images = [torch.full_like(image, math.nan) for image in images]
        terse(images, targets)
        terse.step(math.nan if step == 1 and rank == RANKS - 1 else 1.0)
    return {"start": start, "end": parameters_of(terse), "metrics": terse.metrics()}


def _nobody_to_ask(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """On the last rank nothing is pasted; all ranks have to raise, or the others would wait for ever."""
    terse = Terse(bank, "critic", move_every=1, **EVERY_IMAGE)
    images, targets = make_batch(0, sizes=((64, 64),))
    terse([torch.full_like(image, math.nan) for image in images] if rank == RANKS - 1 else images, targets)
    try:
        terse.step(1.0)
    except ValueError as error:
        return {"error": str(error)}
    return {"error": ""}


def _pairing(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """Passes over the six cut-outs, and rounds over four backgrounds; in step, as every image has as many pastes."""
    pool = [torch.full((3, 70, 80), 0.2 * number) for number in range(4)]
    own: dict[str, Any] = {"sampler": "balanced", "objects": (1, 1), **EVERY_IMAGE}
    passes, rounds = (
        Terse(bank, "random", **own),
        Terse(bank, "random", backgrounds=pool, background_probability=1.0, **own),
    )
    dealt, edges = [], []
    for step in range(12):
        passes(*make_batch(step, sizes=((96, 96),), objects=0))
        dealt += [paste.index for (paste,) in passes.pastes]
        rounds(*make_batch(step, sizes=((96, 96),), objects=0))
        edges.append([rounds.replaced[0], rounds.pastes[0][0].index])
    return {"dealt": dealt, "edges": edges}


def _too_few_backgrounds(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """One background for two ranks."""
    pool = [torch.zeros(3, 70, 80)]
    try:
        Terse(bank, "random", sampler="balanced", backgrounds=pool, background_probability=1.0, **EVERY_IMAGE)
    except ValueError as error:
        return {"error": str(error)}
    return {"error": ""}


def _hard_classes(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """Each rank is told of another class: rank 0 of cats (1), rank 1 of dogs (2); once one has nothing pasted."""
    terse = Terse(bank, "random", sampler="hardness", move_every=2, **EVERY_IMAGE)
    for step in range(8):
        images, targets = make_batch(100 * rank + step, objects=0)
        if step == 4 and rank == RANKS - 1:
            images = [image * math.nan for image in images]
        _, targets = terse(images, targets)
        labels = [target["labels"] for target in targets]
        terse.observe([torch.where(own == rank + 1, 0.9 - 0.4 * rank, math.nan) for own in labels])
        terse.step(math.nan if step == 5 and rank == 0 else 1.0)
    return {"known": terse.sampler.state()["totals"], "calls": terse.metrics()["calls"]}


def _one_bad_loss(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """In one iteration the last rank's loss is NaN; its backward is fine."""
    terse, detector = Terse(bank, "learned", move_every=2, **EVERY_IMAGE), RampLoss()
    history, suspended = [parameters_of(terse)], []
    for step in range(BAD_STEP + 3):
        losses = detector(*terse(*make_batch(10 * rank + step)))
        losses["loss_ramp"].backward() if losses["loss_ramp"].requires_grad else None
        terse.step(float("nan") if step == BAD_STEP and rank == RANKS - 1 else losses)
        history.append(parameters_of(terse))
        suspended.append(terse.metrics()["suspended"])
    return {"history": history, "suspended": suspended, "metrics": terse.metrics()}


def _nothing_on_one_rank(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """Rank 0 sees only images that are not finite, so that nothing is pasted there."""
    terse, detector = Terse(bank, "learned", move_every=1, discriminator_weight=0.1, **EVERY_IMAGE), RampLoss()
    for step in range(2):
        images, targets = make_batch(step)
        if rank == 0:
            images = [image * float("nan") for image in images]
        composites, targets = terse(images, targets)
        losses = detector(composites, targets)
        losses["loss_ramp"].backward()
        terse.step(1.0)
    return {"end": parameters_of(terse), "metrics": terse.metrics()}


def _one_move(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """A single move; its gradient, and what this rank's share of it was."""
    terse, detector = Terse(bank, "learned", move_every=1, max_gradient_norm=1e9, **EVERY_IMAGE), RampLoss()
    losses = detector(*terse(*make_batch(rank)))
    losses["loss_ramp"].backward()
    (turn,) = terse._turns
    gradients = tuple(leaf.grad * turn.image_count for leaf in turn.proposal.leaves if leaf.grad is not None)
    parameters = list(terse.policy.parameters())
    own = torch.autograd.grad(terse.policy.objective(turn.proposal, gradients), parameters, retain_graph=True)
    terse.step(losses)
    optimizer = terse.adversary.policy_optimizer
    got = [10 * getattr(optimizer, f"exp_avg_{index}") for index in range(len(parameters))]
    return {"own": list(own), "got": got}


def _hard_random(rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """Only rank 1 asks the detector: a pass through the wrapper would wait for the other rank."""
    detector = nn.parallel.DistributedDataParallel(make_detector("retinanet"))
    terse = Terse(bank, "hard-random", target=detector, **EVERY_IMAGE)
    if rank == 1:
        terse(*make_batch())
    return {"metrics": terse.metrics()}


def _robust(robust: str, rank: int, bank: ForegroundBank) -> dict[str, Any]:
    """Data of its own on each rank, in one step not finite on the last; before that it perturbs a batch all alone."""
    detector = nn.parallel.DistributedDataParallel(make_detector("fcos"))
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    settings: dict[str, Any] = {"robust": robust, "robust_steps": 2, "robust_probability": 0.7, **EVERY_IMAGE}
    if rank == RANKS - 1:
        Terse(bank, "random", target=detector, **settings)(*make_batch())
    terse = Terse(bank, "random", target=detector, **settings)
    start, passes, heard = parameters_of(detector), [], []
    for step in range(6):
        images, targets = make_batch(1000 * rank + step, sizes=((64, 64), (64, 64)))
        if step == 2 and rank == RANKS - 1:
            images = [image * math.nan for image in images]
        composites, targets = terse(images, targets)
        passes.append(terse.metrics()["robust/passes"])
        losses = detector([image.nan_to_num() for image in composites], targets)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        terse.step(losses)
        heard.append(terse.metrics()["robust/images"])
    end = parameters_of(detector)
    return {"start": start, "end": end, "passes": passes, "images": heard, "metrics": terse.metrics()}


# --- what is expected of them ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    bank = make_bank(tmp_path_factory.mktemp("bank"))
    fresh()
    mp.start_processes(_work, args=(folder, bank.path), nprocs=RANKS, start_method=METHOD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def test_after_twenty_steps_both_ranks_have_the_same_adversary(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["training"] for rank in ranks)
    assert all_equal(first["start"], second["start"])
    assert not all_equal(first["start"], first["end"])
    assert all_equal(first["end"], second["end"])
    assert all_equal(first["optimizer"], second["optimizer"])
    assert all_equal(first["detector"], second["detector"])
    assert first["metrics"]["moves"] == second["metrics"]["moves"] == STEPS / 2


def test_the_ranks_paste_different_things_on_the_same_images(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["training"]["composites"] for rank in ranks)
    assert not any(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_loss_that_is_not_finite_on_one_rank_skips_the_move_on_all(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["one loss is not finite"] for rank in ranks)
    for one, other in zip(first["history"], second["history"], strict=True):
        assert all_equal(one, other)
    moved = [not all_equal(a, b) for a, b in zip(first["history"], first["history"][1:], strict=False)]
    assert moved == [step % 2 == 0 and step != BAD_STEP for step in range(BAD_STEP + 3)]
    for rank in (first, second):
        assert rank["suspended"] == [float(BAD_STEP <= step < BAD_STEP + 2) for step in range(BAD_STEP + 3)]
        assert rank["metrics"]["skipped_moves"] == 1
    assert [rank["metrics"]["losses_not_finite"] for rank in (first, second)] == [0, 1]


def test_a_rank_on_which_nothing_was_pasted_follows_the_others(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["one rank has nothing pasted"] for rank in ranks)
    assert [rank["metrics"]["composites"] for rank in (first, second)] == [0, 4]
    assert all_equal(first["end"], second["end"])
    assert first["metrics"]["moves"] == second["metrics"]["moves"] == 2


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
    assert first["metrics"]["moves"] == second["metrics"]["moves"] == 3
    assert first["metrics"]["skipped_moves"] == second["metrics"]["skipped_moves"] == 1


def test_all_ranks_say_that_there_is_nobody_to_ask(ranks: list[dict[str, Any]]) -> None:
    assert all("learns from hardness" in rank["critic with nobody to ask"]["error"] for rank in ranks)


def test_the_detector_is_asked_outside_its_wrapper(ranks: list[dict[str, Any]]) -> None:
    assert [rank["hard-random"]["metrics"]["extra_forwards"] for rank in ranks] == [0, 4]


def test_ranks_share_passes_and_rounds_and_paste_no_pair_twice(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["pairing"] for rank in ranks)
    for start in range(0, 12, 3):
        together = first["dealt"][start : start + 3] + second["dealt"][start : start + 3]
        assert sorted(together) == list(range(6))
    for own in (first, second):
        assert sorted(own["dealt"][:6]) == sorted(own["dealt"][6:]) == list(range(6))
    # Four backgrounds, two a rank, get six cut-outs each: all pairs that there are.
    edges = [tuple(edge) for edge in first["edges"] + second["edges"]]
    assert len(set(edges)) == 24
    assert not {edge[0] for edge in first["edges"]} & {edge[0] for edge in second["edges"]}


def test_fewer_backgrounds_than_ranks_are_refused_before_training_begins(ranks: list[dict[str, Any]]) -> None:
    assert all("expected at least 2 backgrounds" in rank["too few backgrounds"]["error"] for rank in ranks)


def test_all_ranks_know_how_hard_the_classes_are_on_any(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["hard classes"]["known"] for rank in ranks)
    assert torch.equal(first, second)
    assert torch.allclose(first[0] / first[1], torch.tensor([0.9, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("robust", ["gradient steps", "universal pattern"])
def test_perturbed_composites_keep_the_detectors_of_the_ranks_equal(ranks: list[dict[str, Any]], robust: str) -> None:
    first, second = (rank[robust] for rank in ranks)
    assert all_equal(first["start"], second["start"])
    assert not all_equal(first["start"], first["end"])
    assert all_equal(first["end"], second["end"])
    # The same number of passes in the same iterations: a host's loss may talk to the other ranks.
    assert first["passes"] == second["passes"]
    assert (first["passes"][-1] > 0) is (robust == "gradient steps")
    assert 0 < first["images"][-1] < 12
    assert second["images"][-1] in (first["images"][-1], first["images"][-1] - 2)
    assert first["metrics"]["robust/no_gradient"] == first["metrics"]["robust/not_finite"] == 0

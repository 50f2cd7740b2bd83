"""Pasting that ends before the training does: in the loop, in a thread, in workers and in the frameworks' hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import all_equal, make_batch, make_terse
from test_composer import SIZES, Composed, contents, everything, loader_of, samples, seen

from terse_aug import ForegroundBank, Terse
from terse_aug.integration import TerseSettings, TrainingHook

OPEN, ALL = 3, 6


def batches() -> list[Any]:
    return [make_batch(number, SIZES[:2], masks=True) for number in range(ALL)]


@pytest.mark.parametrize("policy", ["random", "matched", "critic"])
def test_batches_after_the_last_are_left_alone(tiny_bank: ForegroundBank, policy: str) -> None:
    whole, closing, ahead = (make_terse(tiny_bank, policy, seed=3) for _ in range(3))
    for terse in (closing, ahead):
        terse.close_after(OPEN)
    composed_ahead = iter(ahead.ahead(batches()))
    for number, batch in enumerate(batches()):
        images, targets = closing(*batch)
        composed = whole(*batch)
        expected = composed if number < OPEN else batch
        assert all_equal([*images], [*expected[0]])
        assert contents([own["boxes"] for own in targets]) == contents([own["boxes"] for own in expected[1]])
        assert any(closing.pastes) == (number < OPEN)
        images, targets = next(composed_ahead)
        assert any(ahead.pastes) == (number < OPEN)
        if policy == "random" or number >= OPEN:  # others learn a little later there
            assert all_equal([*images], [*expected[0]])
        for terse in (whole, closing, ahead):
            terse.observe([torch.ones(len(own["boxes"])) for own in terse._composer.targets()])
            terse.step(torch.tensor(1.0))
    assert closing.metrics()["images"] == whole.metrics()["images"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_workers_end_where_the_loop_does(tmp_path: Path) -> None:
    """With backgrounds, decoys and distractors; a run of two epochs that is resumed in the second."""
    arguments, data = everything(tmp_path, keypoints=False), samples(True, masks=True)
    total = 2 * len(SIZES)

    def run(workers: int | None, state: Any = None) -> tuple[list[Any], Terse]:
        terse = Terse(**arguments)
        if state is not None:
            terse.load_state_dict(state)
        terse.close_after(total - 3 - terse.image_count)
        composer = None if workers is None else terse.composer(closes_at=total - 3)
        loader = loader_of(Composed(data, composer), workers or 0, lambda: terse.image_count)
        for _ in range(terse.image_count // len(SIZES)):
            list(loader.batch_sampler or ())  # the order of a first epoch
        return seen(terse, loader, (total - terse.image_count) // len(SIZES)), terse

    expected, _ = run(None)
    assert [any(pastes) or bool(replaced) for *_, pastes, replaced in expected[:-1]][-4:] == [True, False, False, False]
    for workers in (0, 2):
        assert run(workers)[0] == expected
    terse = Terse(**arguments)
    seen(terse, loader_of(Composed(data), 0, 0), 1)
    assert run(2, terse.state_dict())[1].metrics() == expected[-1]


def test_a_composer_needs_to_know_when_only_after_it(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank, "random")
    terse.composer()
    terse.close_after(4)
    with pytest.raises(ValueError, match="closes_at"):
        terse.composer()
    terse.close_after(None)
    terse.composer()
    with pytest.raises(ValueError, match="batches"):
        terse.close_after(-1)


@pytest.mark.parametrize(
    ("fraction", "done", "total", "batches", "open_batches"),
    [
        (0.25, 0, 8, 1, 6),
        (0.25, 0, 10, 1, 8),
        (0.7, 0, 10, 1, 3),
        (0.25, 5, 8, 1, 1),
        (0.25, 7, 8, 1, 0),
        (0.5, 1, 4, 3, 3),
        (1, 0, 4, 1, 0),
    ],
)
def test_a_fraction_of_the_training_is_closed(
    tiny_bank: ForegroundBank, fraction: float, done: int, total: int, batches: int, open_batches: int
) -> None:
    periods: dict[str, Any] = {"log_period": 0, "image_period": 0}
    hook = TrainingHook(TerseSettings(), input_format="RGB", seed=0, close_fraction=fraction, **periods)
    hook._terse = make_terse(tiny_bank, "random")
    hook.close(done, total, batches)
    pasted = 0
    for batch in make_batches(open_batches + 2):
        hook.terse(*batch)
        pasted += any(hook.terse.pastes)
    assert pasted == open_batches


def make_batches(count: int) -> list[Any]:
    return [make_batch(number, SIZES[:2]) for number in range(count)]


def test_a_fraction_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="close_fraction"):
        TrainingHook(TerseSettings(), input_format="RGB", seed=0, log_period=0, image_period=0, close_fraction=1.5)

"""Foregrounds that are drawn and decoded in a data loader's workers."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import (
    every_image,
    keypoint_foregrounds,
    make_bank,
    make_batch,
    make_detector,
    make_foreground,
)
from processes import METHOD, fresh
from torch.utils.data import DataLoader, Dataset

from terse_aug import BackgroundPool, ForegroundBank, ForegroundLoader, PasteConfig, SampledForegrounds, Terse
from terse_aug.bank import Foreground
from terse_aug.policies import Critic


class Loaded(Dataset[SampledForegrounds]):
    """A data set of sampled foregrounds."""

    def __init__(self, loader: ForegroundLoader, size: int = 8) -> None:
        self.loader, self.size = loader, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> SampledForegrounds:
        return self.loader()


def loaded(loader: ForegroundLoader, workers: int, seed: int = 0, start: str = "fork") -> list[SampledForegrounds]:
    """One epoch."""
    generator = torch.Generator().manual_seed(seed)
    fresh()
    context = start if workers else None
    data_loader = DataLoader(
        Loaded(loader), None, num_workers=workers, generator=generator, multiprocessing_context=context
    )
    return list(data_loader)


def contents(foreground: Foreground) -> tuple[Any, ...]:
    points = None if foreground.keypoints is None else foreground.keypoints.tolist()
    head = (foreground.label, foreground.source, foreground.relative_size, points)
    return (*head, foreground.rgba.tolist(), foreground.outline.tolist())


@pytest.mark.parametrize(("workers", "start"), [(0, "fork"), (2, "fork"), (2, METHOD)])
def test_any_worker_gives_whole_foregrounds(tmp_path: Path, workers: int, start: str) -> None:
    bank = make_bank(tmp_path, keypoint_foregrounds(), keypoint_names=("nose", "left_eye", "right_eye"))
    paste = PasteConfig(objects=(1, 3), decoys=(0, 2), paste_probability=0.8)
    sampled = loaded(ForegroundLoader(bank, paste=paste, seed=2), workers, start=start)
    assert len(sampled) == 8
    assert {len(sample.objects) for sample in sampled} >= {1, 3}
    for sample in sampled:
        assert len(sample.objects) <= 3
        assert len(sample.decoys) <= 2
        assert sample.objects or not sample.decoys
        assert set(sample.foregrounds) == {*sample.objects, *sample.decoys}
        for index, foreground in sample.foregrounds.items():
            assert contents(foreground) == contents(bank[index])


def test_an_image_may_get_none(tiny_bank: ForegroundBank) -> None:
    paste = every_image(objects=(0, 0), decoys=(0, 0))
    sample = pickle.loads(pickle.dumps(ForegroundLoader(tiny_bank, paste=paste)()))
    assert (sample.objects, sample.decoys, sample.foregrounds) == ([], [], {})
    images, _ = Terse(tiny_bank, "random", paste=paste)(*make_batch(), [sample] * 2)
    assert all(torch.equal(own, before) for own, before in zip(images, make_batch()[0], strict=True))


def test_every_call_worker_and_epoch_draws_anew_and_the_global_state_is_left_alone(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, [make_foreground(seed) for seed in range(40)])
    always: dict[str, Any] = {"paste": PasteConfig(objects=(5, 5), paste_probability=1.0)}
    loader = ForegroundLoader(bank, **always)
    before = torch.get_rng_state()
    here = [tuple(loader().objects) for _ in range(6)]
    assert torch.equal(torch.get_rng_state(), before)
    drawn = [tuple(sample.objects) for sample in loaded(ForegroundLoader(bank, **always), 2)]
    again = [tuple(sample.objects) for sample in loaded(ForegroundLoader(bank, **always), 2)]
    later = [tuple(sample.objects) for sample in loaded(ForegroundLoader(bank, **always), 2, seed=1)]
    other = [tuple(ForegroundLoader(bank, **always, seed=1)().objects)]
    assert drawn == again
    assert len({*here, *drawn, *later, *other}) == 6 + 8 + 8 + 1
    numbered = [tuple(loader(number).objects) for number in (4, 5, 4)]
    assert numbered[0] == numbered[2] == tuple(ForegroundLoader(bank, **always)(4).objects) != numbered[1]


@pytest.mark.parametrize("mix_classes", [False, True])
def test_a_critic_gets_several_candidates_for_each_paste(tiny_bank: ForegroundBank, mix_classes: bool) -> None:
    loader = ForegroundLoader(
        tiny_bank,
        Critic(foreground_candidates=4, mix_classes=mix_classes),
        paste=PasteConfig(objects=(3, 3), paste_probability=1.0),
    )
    rows = [loader().objects[start : start + 4] for start in (0, 4, 8) for _ in range(10)]
    assert all(len(row) == 4 for row in rows)
    mixed = [len({int(tiny_bank.labels[index]) for index in row}) > 1 for row in rows]
    assert any(mixed) == mix_classes


@pytest.mark.parametrize(
    "policy",
    ["random", "best-of-n", "adversarial", "critic", Critic(foreground_candidates=3)],
)
def test_what_is_pasted_was_sampled_in_the_worker_and_nothing_is_read_here(
    tmp_path: Path, reads: Counter[int], policy: Any
) -> None:
    bank = make_bank(tmp_path, [make_foreground(seed, label=1 + seed % 2) for seed in range(30)])
    paste = PasteConfig(objects=(1, 3), decoys=(1, 2), paste_probability=1.0)
    terse = Terse(bank, policy, paste=paste, model=make_detector("fasterrcnn"), classes={"cat": 2, "dog": 1})
    loader = ForegroundLoader(bank, policy, paste=paste)
    sampled = [[pickle.loads(pickle.dumps(loader())) for _ in range(2)] for _ in range(3)]
    reads.clear()
    pasted = 0
    for step, own in enumerate(sampled):
        _, targets = terse(*make_batch(step), own)
        for pastes, sample, target in zip(terse.pastes, own, targets, strict=True):
            assert {paste.index for paste in pastes} <= set(sample.objects)
            assert len(pastes) <= len(sample.objects) // sample.foreground_candidates
            assert all(paste.label == 3 - int(bank.labels[paste.index]) for paste in pastes)
            rows = {paste.row: paste.label for paste in pastes if paste.row is not None}
            assert len(rows) == sum(paste.row is not None for paste in pastes)
            assert all(int(target["labels"][row]) == label for row, label in rows.items())
            pasted += len(pastes)
    assert pasted
    assert not reads


def test_pastes_are_as_many_with_a_loader_as_without(tmp_path: Path) -> None:
    """Each image alike: how many are drawn in the workers, and which, is distributed as here."""
    bank = make_bank(tmp_path, [make_foreground(seed, label=1 + seed % 2) for seed in range(30)])
    paste = PasteConfig(objects=(0, 3), decoys=(0, 2), paste_probability=0.6)
    loader = ForegroundLoader(bank, paste=paste)
    counts: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
    for sampled in counts:
        terse = Terse(bank, seed=1, paste=paste)
        for step in range(150):
            batch = make_batch(step, sizes=((64, 64),) * 4, objects=0)
            terse(*batch, [loader() for _ in range(4)] if sampled else None)
            counts[sampled].update(len(pastes) for pastes in terse.pastes)
        counts[sampled][100] = round(terse.metrics()["decoys"])
    for count in range(4):
        assert counts[True][count] == pytest.approx(counts[False][count], abs=60)
    assert counts[True][100] == pytest.approx(counts[False][100], rel=0.25)


def test_images_of_a_pool_have_as_many_decoys_with_a_loader_as_without(tiny_bank: ForegroundBank) -> None:
    paste = PasteConfig(paste_probability=0.2, decoys=(2, 2), objects=(0, 1))
    loader = ForegroundLoader(tiny_bank, paste=paste, background_probability=1.0)
    pool = BackgroundPool([torch.rand(3, 200, 200)] * 2, probability=1.0)
    for sampled in (True, False):
        terse = Terse(tiny_bank, backgrounds=pool, paste=paste)
        drawn = [loader() for _ in range(40)]
        terse(*make_batch(sizes=((200, 200),) * 40, objects=0), drawn if sampled else None)
        assert terse.metrics()["backgrounds"] == 40
        assert terse.metrics()["decoys"] + terse.metrics()["dropped/decoy_without_background"] == 80


def test_foregrounds_that_do_not_fit_are_refused(tmp_path: Path, tiny_bank: ForegroundBank) -> None:
    policy, paste = Critic(foreground_candidates=2), PasteConfig(objects=(1, 2), decoys=(0, 1))
    terse = Terse(tiny_bank, policy, paste=paste)
    images, targets = make_batch()
    good = ForegroundLoader(tiny_bank, policy, paste=paste)()
    other_bank = make_bank(tmp_path, [make_foreground(9)])
    for bad, message in (
        ([good], "for each of 2 images, got 1"),
        ([good, 3], "image 1: expected what a ForegroundLoader gives, got int"),
        ([good, ForegroundLoader(tiny_bank, paste=paste)()], "image 1: foreground_candidates: expected 2"),
        ([ForegroundLoader(tiny_bank.select([5, 4]), policy, paste=paste)(), good], "image 0: from another bank"),
        ([ForegroundLoader(other_bank, policy, paste=paste)(), good], "image 0: from another bank"),
        ([good, ForegroundLoader(tiny_bank, policy, background_probability=0.5)()], "background_probability: expected"),
        ([good, ForegroundLoader(tiny_bank, policy, sampler="rarity")()], "sampler: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            terse(images, targets, bad)  # type: ignore[arg-type]  # wrong on purpose
    terse.restrict_labels([1])
    with pytest.raises(ValueError, match=r"only \[1\] may be pasted"):
        terse(images, targets, [good, good])

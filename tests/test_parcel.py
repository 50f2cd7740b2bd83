"""Cut-outs that are drawn and decoded in a data loader's workers."""

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
    """A data set of parcels."""

    def __init__(self, cutouts: ForegroundLoader, size: int = 8) -> None:
        self.cutouts, self.size = cutouts, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> SampledForegrounds:
        return self.cutouts()


def loaded(cutouts: ForegroundLoader, workers: int, seed: int = 0, start: str = "fork") -> list[SampledForegrounds]:
    """One pass over a data set, as a training script does it."""
    generator = torch.Generator().manual_seed(seed)
    fresh()
    context = start if workers else None
    loader = DataLoader(
        Loaded(cutouts), None, num_workers=workers, generator=generator, multiprocessing_context=context
    )
    return list(loader)


def contents(foreground: Foreground) -> tuple[Any, ...]:
    points = None if foreground.keypoints is None else foreground.keypoints.tolist()
    head = (foreground.label, foreground.source, foreground.relative_size, points)
    return (*head, foreground.rgba.tolist(), foreground.outline.tolist())


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each cut-out of any bank was read in this process."""
    counts: Counter[int] = Counter()
    read = ForegroundBank.__getitem__

    def counted(self: ForegroundBank, index: Any) -> Any:
        counts[int(index)] += 1
        return read(self, index)

    monkeypatch.setattr(ForegroundBank, "__getitem__", counted)
    return counts


@pytest.mark.parametrize(("workers", "start"), [(0, "fork"), (2, "fork"), (2, METHOD)])
def test_a_parcel_brings_whole_cut_outs_from_any_worker(tmp_path: Path, workers: int, start: str) -> None:
    bank = make_bank(tmp_path, keypoint_foregrounds(), keypoint_names=("nose", "left_eye", "right_eye"))
    own = {"objects": (1, 3), "decoys": (0, 2), "image_probability": 0.8}
    sampled = loaded(ForegroundLoader(bank, "random", **own), workers, start=start)  # type: ignore[arg-type]  # settings of several types
    assert len(sampled) == 8
    assert {len(sample.objects) for sample in sampled} >= {1, 3}
    for sample in sampled:
        assert len(sample.objects) <= 3
        assert len(sample.decoys) <= 2
        assert sample.objects or not sample.decoys
        assert set(sample.foregrounds) == {*sample.objects, *sample.decoys}
        for index, foreground in sample.foregrounds.items():
            assert contents(foreground) == contents(bank[index])


def test_a_parcel_without_cut_outs_is_none_the_worse(tiny_bank: ForegroundBank) -> None:
    sample = pickle.loads(
        pickle.dumps(ForegroundLoader(tiny_bank, "random", paste=PasteConfig(objects=(0, 0), decoys=(0, 0)))())
    )
    assert (sample.objects, sample.decoys, sample.foregrounds) == ([], [], {})
    images, _ = Terse(tiny_bank, "random", paste=every_image(objects=(0, 0)))(*make_batch(), [sample] * 2)
    assert all(torch.equal(own, before) for own, before in zip(images, make_batch()[0], strict=True))


def test_every_call_worker_and_pass_draws_afresh_and_the_global_state_is_left_alone(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, [make_foreground(seed) for seed in range(40)])
    always: dict[str, Any] = {"objects": (5, 5), "image_probability": 1.0}
    cutouts = ForegroundLoader(bank, "random", **always)
    before = torch.get_rng_state()
    here = [tuple(cutouts().objects) for _ in range(6)]
    assert torch.equal(torch.get_rng_state(), before)
    drawn = [tuple(sample.objects) for sample in loaded(ForegroundLoader(bank, "random", **always), 2)]
    again = [tuple(sample.objects) for sample in loaded(ForegroundLoader(bank, "random", **always), 2)]
    later = [tuple(sample.objects) for sample in loaded(ForegroundLoader(bank, "random", **always), 2, seed=1)]
    other = [tuple(ForegroundLoader(bank, "random", **always, seed=1)().objects)]
    assert drawn == again
    assert len({*here, *drawn, *later, *other}) == 6 + 8 + 8 + 1


@pytest.mark.parametrize("settings", [{}, {"critic_any_class": True}])
def test_a_critic_is_offered_several_of_a_class(tiny_bank: ForegroundBank, settings: dict[str, Any]) -> None:
    cutouts = ForegroundLoader(
        tiny_bank, Critic(foreground_candidates=4), paste=PasteConfig(objects=(3, 3), paste_probability=1.0), **settings
    )
    rows = [cutouts().objects[start : start + 4] for start in (0, 4, 8) for _ in range(10)]
    assert all(len(row) == 4 for row in rows)
    mixed = [len({int(tiny_bank.labels[index]) for index in row}) > 1 for row in rows]
    assert any(mixed) == bool(settings)


@pytest.mark.parametrize(
    ("policy", "settings"),
    [("random", {}), ("best-of-n", {}), ("adversarial", {}), ("critic", {}), ("critic", {"critic_cutouts": 3})],
)
def test_what_is_pasted_is_what_came_and_no_cut_out_is_read_here(
    tmp_path: Path, reads: Counter[int], policy: str, settings: dict[str, Any]
) -> None:
    bank = make_bank(tmp_path, [make_foreground(seed, label=1 + seed % 2) for seed in range(30)])
    chosen = {"objects": (1, 3), "decoys": (1, 2), "image_probability": 1.0, **settings}
    terse = Terse(bank, policy, **chosen, model=make_detector("fasterrcnn"), classes={"cat": 2, "dog": 1})
    cutouts = ForegroundLoader(bank, policy, **chosen)
    sampled = [[pickle.loads(pickle.dumps(cutouts())) for _ in range(2)] for _ in range(3)]
    reads.clear()
    pasted = 0
    for step, own in enumerate(sampled):
        _, targets = terse(*make_batch(step), own)
        for pastes, sample, target in zip(terse.pastes, own, targets, strict=True):
            assert {paste.index for paste in pastes} <= set(sample.objects)
            assert len(pastes) <= len(sample.objects) // sample.foreground_candidates
            assert all(paste.label == 3 - int(bank.labels[paste.index]) for paste in pastes)
            assert len(target["boxes"]) >= len(pastes)
            pasted += len(pastes)
    assert pasted
    assert not reads


def test_pastes_are_as_many_with_parcels_as_without(tmp_path: Path) -> None:
    """Each image alike: how many are drawn in the workers, and which, is distributed as here."""
    bank = make_bank(tmp_path, [make_foreground(seed, label=1 + seed % 2) for seed in range(30)])
    own = {"objects": (0, 3), "decoys": (0, 2), "image_probability": 0.6}
    cutouts = ForegroundLoader(bank, "random", **own)  # type: ignore[arg-type]  # settings of several types
    counts: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
    for sampled in counts:
        terse = Terse(bank, "random", seed=1, **own)  # type: ignore[arg-type]  # settings of several types
        for step in range(150):
            batch = make_batch(step, sizes=((64, 64),) * 4, objects=0)
            terse(*batch, [cutouts() for _ in range(4)] if sampled else None)
            counts[sampled].update(len(pastes) for pastes in terse.pastes)
        counts[sampled][100] = round(terse.metrics()["decoys"])
    for count in range(4):
        assert counts[True][count] == pytest.approx(counts[False][count], abs=60)
    assert counts[True][100] == pytest.approx(counts[False][100], rel=0.25)


def test_images_of_a_pool_have_as_many_decoys_with_parcels_as_without(tiny_bank: ForegroundBank) -> None:
    own: dict[str, Any] = {"background_probability": 1.0, "image_probability": 0.2, "decoys": (2, 2), "objects": (0, 1)}
    cutouts = ForegroundLoader(tiny_bank, "random", **own)
    for sampled in (True, False):
        terse = Terse(tiny_bank, "random", backgrounds=BackgroundPool([torch.rand(3, 200, 200)] * 2), **own)
        layouts = [cutouts() for _ in range(40)]
        terse(*make_batch(sizes=((200, 200),) * 40, objects=0), layouts if sampled else None)
        assert terse.metrics()["backgrounds"] == 40
        assert terse.metrics()["decoys"] + terse.metrics()["dropped/decoy_without_background"] == 80


def test_parcels_that_do_not_fit_are_refused(tmp_path: Path, tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, Critic(foreground_candidates=2), paste=PasteConfig(objects=(1, 2), decoys=(0, 1)))
    images, targets = make_batch()
    own = {"objects": (1, 2), "critic_cutouts": 2, "decoys": (0, 1)}
    good = ForegroundLoader(tiny_bank, "critic", **own)()
    with pytest.raises(ValueError, match="expected a parcel for each of 2 images, got 1"):
        terse(images, targets, [good])
    with pytest.raises(ValueError, match="parcel 1: expected what a ForegroundLoader gives, got int"):
        terse(images, targets, [good, 3])  # type: ignore[list-item]  # wrong on purpose
    other = ForegroundLoader(tiny_bank, "random", paste=PasteConfig(objects=(1, 2)))()
    with pytest.raises(ValueError, match=r"parcel 1: expected 2 cut-outs offered for each paste, got 1; give "):
        terse(images, targets, [good, other])
    for bank in (
        tiny_bank.select([0, 1, 2]),
        tiny_bank.select([5, 4, 3, 2, 1, 0]),
        make_bank(tmp_path, [make_foreground(9)]),
    ):
        other = ForegroundLoader(bank, "critic", **own)()
        with pytest.raises(ValueError, match="parcel 0: from another bank; give ForegroundLoader the bank of Terse"):
            terse(images, targets, [other, good])
    other = ForegroundLoader(tiny_bank, "critic", background_probability=0.5, **own)()
    with pytest.raises(ValueError, match=r"parcel 1: made with background_probability 0\.5, but Terse has 0\.0"):
        terse(images, targets, [good, other])
    terse.restrict_labels([1])
    with pytest.raises(ValueError, match=r"only \[1\] may be pasted, but the parcels were drawn from all labels"):
        terse(images, targets, [good, good])
    with pytest.raises(ValueError, match="unknown settings"):
        ForegroundLoader(tiny_bank, paste="much")

"""Composites that are made in the data loader's workers."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import every_image, keypoint_foregrounds, make_bank, make_batch, make_detector, make_foreground
from simulated_accelerator import DEVICE, counted
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from terse_aug import (
    BackgroundPool,
    Composer,
    CompositeRecord,
    Distractors,
    ForegroundBank,
    NumberedSampler,
    PasteConfig,
    Robustness,
    Terse,
)
from terse_aug.data.numbered_sampler import NumberedIndex

SIZES = ((64, 80), (72, 64), (64, 64), (80, 72), (72, 80), (56, 72), (64, 96))
KEYPOINTS = ("nose", "left_eye", "right_eye")
Sample = tuple[Tensor, dict[str, Tensor]]


def collate(samples: list[Any]) -> tuple[Any, ...]:
    return tuple(zip(*samples, strict=True))


class Composed(Dataset[Any]):
    """A user's data set; with a composer each image is composed."""

    def __init__(self, samples: list[Sample], composer: Composer | None = None) -> None:
        self.samples, self.composer = samples, composer

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        image, target = self.samples[index]
        if self.composer is None:
            return image, target
        assert isinstance(index, NumberedIndex)
        return self.composer(image, target, index.number)


def samples(eight_bit: bool, **fields: bool) -> list[Sample]:
    images, targets = make_batch(sizes=SIZES, **fields)
    if eight_bit:
        images = [(image * 255).to(torch.uint8) for image in images]
    return list(zip(images, targets, strict=True))


def loader_of(data: Dataset[Any], workers: int, start: Any, batch: int = 1) -> DataLoader[Any]:
    order = RandomSampler(range(len(SIZES)), generator=torch.Generator().manual_seed(5))
    sampler = NumberedSampler(BatchSampler(order, batch, drop_last=False), start)
    return DataLoader(data, batch_sampler=sampler, num_workers=workers, collate_fn=collate)


def contents(value: Any) -> Any:
    """Comparable by ``==``, with types."""
    if isinstance(value, Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return {name: contents(own) for name, own in value.items()}
    return [contents(own) for own in value] if isinstance(value, list | tuple) else value


def seen(terse: Terse, loader: DataLoader[Any], epochs: int = 2) -> list[Any]:
    """What the detector sees and the user can look at, and all metrics."""
    found = []
    for _ in range(epochs):
        for batch in loader:
            composites, targets = terse(*batch)
            pastes = [
                [(own.index, own.source, own.label, own.unit, own.row, own.number) for own in image]
                for image in terse.pastes
            ]
            found.append(contents([list(composites), list(targets), pastes, terse.replaced]))
            terse.step(torch.tensor(1.0))
    return [*found, terse.metrics()]


def everything(folder: Path, keypoints: bool) -> dict[str, Any]:
    """Arguments of ``Terse`` that use all that can be pasted."""
    names: dict[str, Any] = {"keypoint_names": KEYPOINTS} if keypoints else {}
    classes = [make_foreground(seed, label=1 + seed % 2) for seed in range(6)]
    bank = make_bank(folder, keypoint_foregrounds() if keypoints else classes, **names)
    zebras = make_bank(folder, [make_foreground(9, label=7)]).select(categories=[7])
    return {
        "bank": bank,
        "paste": PasteConfig(
            objects=(1, 3),
            decoys=(0, 2),
            occluded_object_probability=0.0 if keypoints else 0.5,
            paste_probability=0.8,
            min_side=6.0,
        ),
        "backgrounds": BackgroundPool([torch.rand(3, 50, 70, generator=torch.Generator().manual_seed(1))], 0.3),
        "distractors": Distractors(zebras, (0, 2)),
        "seed": 3,
    }


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(("eight_bit", "fields"), [(True, {"masks": True}), (False, {"keypoints": True}), (True, {})])
def test_workers_compose_what_terse_does_whatever_their_number(
    tmp_path: Path, eight_bit: bool, fields: dict[str, bool]
) -> None:
    arguments = everything(tmp_path, "keypoints" in fields)
    data = samples(eight_bit, **fields)
    expected = seen(Terse(**arguments), loader_of(Composed(data), 0, 0))
    for workers in (0, 1, 3):
        terse = Terse(**arguments)
        loader = loader_of(Composed(data, terse.composer()), workers, lambda own=terse: own.image_count)
        assert seen(terse, loader) == expected
    metrics = expected[-1]
    assert all(metrics[name] > 0 for name in ("decoys", "distractors", "backgrounds", "objects_labelled", "diversity"))
    assert metrics["occludees"] > 0 or "keypoints" in fields
    assert [own["boxes"] for (own,) in (batch[1] for batch in expected[:7])] != [
        own["boxes"] for (own,) in (batch[1] for batch in expected[7:-1])
    ]


def test_a_pickled_composer_composes_the_same(tmp_path: Path) -> None:
    terse = Terse(**everything(tmp_path, keypoints=False))
    (image, target), *_ = samples(True, masks=True)
    composer = terse.composer()
    here, there = composer(image, target, 4), pickle.loads(pickle.dumps(composer))(image, target, 4)
    assert contents(there[:2]) == contents(here[:2])
    assert there[2] == here[2]


@pytest.mark.parametrize("start_by", ["function", "number"])
def test_a_resumed_run_draws_on_where_it_was(tiny_bank: ForegroundBank, start_by: str) -> None:
    data = samples(True)

    def run(state: Any, epochs: int) -> tuple[list[Any], Any]:
        terse = Terse(tiny_bank, seed=3)
        if state is not None:
            terse.load_state_dict(state)
        start = (lambda: terse.image_count) if start_by == "function" else terse.image_count
        loader = loader_of(Composed(data, terse.composer()), 2, start, batch=3)
        if state is not None:
            list(RandomSampler(range(len(SIZES)), generator=loader.batch_sampler.sampler.sampler.generator))
        return seen(terse, loader, epochs), terse.state_dict()

    whole, _ = run(None, 2)
    first, state = run(None, 1)
    second, _ = run(state, 1)
    assert [*first[:-1], *second] == whole


def test_an_epoch_that_is_broken_off_changes_nothing_with_a_function(tiny_bank: ForegroundBank) -> None:
    found = []
    for workers in (0, 2):
        terse = Terse(tiny_bank, paste=every_image())
        loader = loader_of(Composed(samples(True), terse.composer()), workers, lambda own=terse: own.image_count)
        terse(*next(iter(loader)))
        found.append(seen(terse, loader, 1))
    assert found[0] == found[1]


def test_a_composed_batch_costs_the_accelerator_nothing(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, model=make_detector("fasterrcnn")).to(DEVICE)
    images, targets, records = next(iter(loader_of(Composed(samples(True), terse.composer()), 0, 0, batch=4)))
    images = [image.to(DEVICE) for image in images]
    targets = [{name: value.to(DEVICE) for name, value in target.items()} for target in targets]
    with counted() as counts:
        composites, corrected = terse(images, targets, records)
    assert (counts.launches, counts.synchronisations, counts.copies) == (0, 0, 0)
    assert all(own is before for own, before in zip(composites, images, strict=True))
    assert all(own is before for own, before in zip(corrected, targets, strict=True))
    assert terse.metrics()["objects_pasted"] > 0
    with counted() as counts:
        terse.step(torch.ones((), device=DEVICE))
    assert counts.synchronisations == 0


def test_texts_are_warned_of_once_in_the_training_process(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, paste=every_image())
    (image, target), *_ = samples(False)
    target["boxes"][0] = torch.tensor([5.0, 5.0, 5.0, 9.0])
    composed = [terse.composer()(image * 200, target, number) for number in (0, 1)]
    for number in range(2):
        with warnings.catch_warnings(record=True, action="always") as given:
            terse(*collate(composed))
        texts = [str(own.message) for own in given]
        assert [any(part in text for text in texts) for part in ("box without area", "pixel_format")] == [
            not number
        ] * 2
    assert terse.metrics()["dropped/box_degenerate"] == 4


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"policy": "critic"}, "policy: CriticPolicy"),
        ({"policy": "matched"}, "policy: MatchedPolicy"),
        ({"sampler": "balanced"}, "sampler: BalancedSampler"),
        ({"robustness": Robustness()}, "robustness"),
    ],
)
def test_what_needs_the_training_process_is_refused(
    tiny_bank: ForegroundBank, arguments: dict[str, Any], reason: str
) -> None:
    terse = Terse(tiny_bank, model=make_detector("fasterrcnn"), **arguments)
    with pytest.raises(ValueError, match=f"{reason}.*compose there"):
        terse.composer()


def test_records_of_other_settings_or_another_batch_are_refused(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank)
    (image, target), *_ = samples(True)
    image, target, record = terse.composer()(image, target, 0)
    assert isinstance(pickle.loads(pickle.dumps(record)), CompositeRecord)
    with pytest.raises(ValueError, match="each of 2 images"):
        terse([image] * 2, [target] * 2, [record])
    with pytest.raises(ValueError, match="image 1: expected what a composer gives"):
        terse([image] * 2, [target] * 2, [record, None])
    other = Terse(tiny_bank, seed=1)
    with pytest.raises(ValueError, match=r"image 0.*after loading a state"):
        other([image], [target], [record])
    terse.restrict_labels([1])
    with pytest.raises(ValueError, match=r"image 0.*after restrict_labels"):
        terse([image], [target], [record])
    restricted = [terse.composer()(*own, number) for number, own in enumerate(samples(True))]
    terse(*collate(restricted))
    assert {own.label for image in terse.pastes for own in image} == {1}
    assert terse.image_count == len(SIZES)


def test_a_numbered_sampler_is_otherwise_the_wrapped_one() -> None:
    sampler = NumberedSampler(RandomSampler(range(4)), 2)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == [0, 1, 2, 3]
    assert [own.number for own in first + second] == list(range(2, 10))
    assert pickle.loads(pickle.dumps(first[1])).number == 3
    assert all(own.number == other.number for own, other in zip(sampler, sampler, strict=True))  # as in Detectron2
    assert (len(sampler), sampler.replacement) == (4, False)

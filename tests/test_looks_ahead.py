"""Photometric parameters and blends are the same wherever composites are made: loop, thread, data loader's workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_bank, make_batch, make_foreground, policy_with
from test_composer import Composed, loader_of, samples, seen
from test_photometric import ALL

from terse_aug import Distractors, ForegroundBank, PasteConfig, Photometric, PixelFormat, Terse
from terse_aug.transforms import BLENDS

NORMALIZED = PixelFormat(255.0, (103.5, 116.3, 123.7), (57.4, 57.1, 58.4), True)


@pytest.fixture
def bank(tmp_path: Path) -> ForegroundBank:
    return make_bank(tmp_path)


def made(bank: ForegroundBank, tmp_path: Path, policy: Any = "random", plain: bool = False, **settings: Any) -> Terse:
    looks: dict[str, Any] = {} if plain else {"photometric": ALL, "blends": BLENDS}
    paste = PasteConfig((2, 3), 1.0, decoys=(1, 2), occluded_object_probability=0.5, **looks)
    distractors = Distractors(make_bank(tmp_path, [make_foreground(9, label=7)]), count=(1, 2))
    return Terse(bank, policy, paste=paste, distractors=distractors, seed=2, **settings)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("eight_bit", [False, True])
def test_the_workers_of_a_data_loader_compose_as_the_training_process(
    bank: ForegroundBank, tmp_path: Path, eight_bit: bool
) -> None:
    found = []
    for workers in (None, 0, 2):  # None: no composer
        terse = made(bank, tmp_path)
        data = Composed(samples(eight_bit, masks=True), None if workers is None else terse.composer())
        found.append(seen(terse, loader_of(data, workers or 0, 0)))
    assert found[1] == found[0]
    assert found[2] == found[0]
    assert found[0][-1]["std_ratio/blend"] > 0.5
    terse = made(bank, tmp_path, plain=True)
    assert seen(terse, loader_of(Composed(samples(eight_bit, masks=True)), 0, 0))[0] != found[0][0]


@pytest.mark.parametrize("kind", ["float", "levels", "normalized"])
def test_a_thread_composes_as_the_loop(bank: ForegroundBank, tmp_path: Path, kind: str) -> None:
    pixel_format = NORMALIZED if kind == "normalized" else PixelFormat()
    batches: list[Any] = []
    for seed in range(4):
        images, targets = make_batch(seed, objects=2, masks=True)
        given = [(image * 255).byte() if kind == "levels" else pixel_format.encode(image) for image in images]
        batches.append((given, targets))
    for policy in ("random", "matched", policy_with("critic", update_interval=50)):
        ahead, in_loop = (made(bank, tmp_path, policy, pixel_format=pixel_format) for _ in range(2))
        for batch, (images, targets) in zip(batches, ahead.ahead(batches), strict=True):
            expected, corrected = in_loop(*batch)
            assert all(map(torch.equal, images, expected))
            assert all(torch.equal(a[name], b[name]) for a, b in zip(targets, corrected, strict=True) for name in b)
            units = [[own.unit.tolist() for pastes in terse.pastes for own in pastes] for terse in (ahead, in_loop)]
            assert units[0] == units[1]
            assert len(units[0][0]) == len(ahead.paste.columns) == 14
            if policy == "matched":  # what it learns is a batch late ahead
                break


def test_a_record_of_other_columns_is_refused(bank: ForegroundBank) -> None:
    """Seven pastes of eight numbers would pass for eight of seven."""
    terse, hued = (
        Terse(bank, paste=PasteConfig(objects=(2, 2), paste_probability=1.0, photometric=photometric))
        for photometric in (Photometric(), Photometric(hue=(-9, 9)))
    )
    image, target, record = hued.composer()(*(own[0] for own in make_batch()), 0)
    with pytest.raises(ValueError, match=r"record of image 0: .* make the composer by terse\.composer"):
        terse([image], [target], [record])

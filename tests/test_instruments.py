"""Instruments: spread by class, and how far apart composites are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from factories import EVERY_IMAGE, every_image, make_bank, make_batch, make_detector, white_disc
from torch import nn

from terse_aug import PARAMETERS, ForegroundBank, PasteConfig, Terse, TransformRanges, probe
from terse_aug.evaluation.diversity import nearest_neighbour_distances, std_ratios_by_class
from terse_aug.models import ClassifierAdapter


def test_one_transform_for_each_class_is_collapsed_by_class_and_not_as_a_whole() -> None:
    labels = torch.arange(400) % 2
    unit = torch.rand(400, len(PARAMETERS), generator=torch.Generator().manual_seed(0))
    unit[:, 0] = labels.float()
    spreads = std_ratios_by_class(unit, labels)
    assert spreads.keys() == {0, 1}
    for own in spreads.values():
        assert own[PARAMETERS[0]] == 0
        assert own[PARAMETERS[1]] == pytest.approx(1, abs=0.1)
    (whole,) = std_ratios_by_class(unit, torch.zeros(400)).values()
    assert whole[PARAMETERS[0]] == pytest.approx(0.5 * 12**0.5)
    with pytest.raises(ValueError, match="labels: expected 400, one for each transform, got 3"):
        std_ratios_by_class(unit, labels[:3])


def test_the_distance_is_that_to_the_image_that_is_most_alike() -> None:
    images = torch.rand(12, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    images[5] = images[2]
    images[7] = images[9] + 0.01
    expected = [
        min(float((one - other).square().mean().sqrt()) for row, other in enumerate(images) if row != number)
        for number, one in enumerate(images)
    ]
    distances = nearest_neighbour_distances(images)
    torch.testing.assert_close(distances, torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-6)
    assert distances[5] == distances[2] == 0
    assert float(distances[7]) == pytest.approx(0.01, abs=1e-6)


def test_a_probe_is_of_the_pastes_that_the_target_tells_of(tiny_bank: ForegroundBank) -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    terse = Terse(tiny_bank, "random", paste=every_image(objects=(2, 2)))
    found = probe(terse, ClassifierAdapter(model, 3), [make_batch(0, sizes=((96, 96),) * 3)])
    assert len(found.scores) == len(found.unit) == len(found.labels) == len(found.composites) == 3
    assert not found.scores.isnan().any()


def test_neighbours_are_looked_for_within_a_class_and_large_images_are_reduced() -> None:
    small = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = small.repeat_interleave(3, 2).repeat_interleave(3, 3)
    images[1] = images[0]
    labels = torch.tensor([0, 1, 1, 7])
    distances = nearest_neighbour_distances(images, labels)
    assert distances.isnan().tolist() == [True, False, False, True]
    assert float(distances[1]) == pytest.approx(float((small[0] - small[2]).square().mean().sqrt()), rel=1e-5)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(1, 3, 4, 4), None, r"expected \[n, C, H, W\] with n of at least 2, got \[1, 3, 4, 4\]"),
        (torch.zeros(3, 4, 4), None, r"got \[3, 4, 4\]"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(3), r"labels: expected \[2\], one for each image, got \[3\]"),
    ],
)
def test_what_cannot_be_compared_is_refused(images: torch.Tensor, labels: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_neighbour_distances(images, labels)


# --- probe ----------------------------------------------------------------------------------------------------------


def test_a_probe_says_how_hard_and_how_alike_the_composites_are(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, "random", paste=every_image(objects=(2, 2)))
    batches = [make_batch(seed, sizes=((64, 64),) * 3) for seed in range(4)]
    found = probe(terse, make_detector("fasterrcnn"), batches)
    count = len(found.scores)
    assert count > 10
    assert len(found.unit) == len(found.labels) == count
    assert found.composites.shape == (12, 3, 32, 32)
    assert set(found.labels.tolist()) == {1, 2} == found.std_ratios_by_class.keys()
    assert sum(found.histogram(4)) == pytest.approx(1)
    hard = int((found.scores < 0.25).sum())
    assert found.histogram(4)[-1] == pytest.approx(hard / count)
    assert found.missed_share == pytest.approx(sum(found.histogram(4)[2:]))


def test_composites_that_are_all_alike_have_no_distance(tmp_path: Path) -> None:
    ranges = TransformRanges(
        rotation=(0, 0),
        shear=(0, 0),
        scale=(1, 1),
        translate_x=(0.5, 0.5),
        translate_y=(0.5, 0.5),
        scale_x=(1, 1),
        scale_y=(1, 1),
    )
    bank, detector = make_bank(tmp_path, [white_disc()]), make_detector("fasterrcnn")
    batches = [make_batch(0, sizes=((64, 64),), objects=0)] * 3
    settings = EVERY_IMAGE | {"objects": (1, 1), "decoys": (0, 0)}
    alike = probe(
        Terse(bank, "random", paste=PasteConfig(ranges=ranges, flip_probability=0.0), **settings), detector, batches
    )
    spread = probe(Terse(bank, "random", paste=PasteConfig(flip_probability=0.0), **settings), detector, batches)
    assert alike.neighbour_distance == 0 < spread.neighbour_distance
    alone = probe(Terse(bank, "random", **settings), detector, batches[:1])
    assert alone.neighbour_distance != alone.neighbour_distance
    nothing = probe(Terse(bank, "random", **(settings | {"objects": (0, 0)})), detector, batches)
    assert len(nothing.scores) == len(nothing.composites) == sum(nothing.histogram()) == 0

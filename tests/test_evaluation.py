"""Diversity of transforms and composites, and the probe of both with hardness."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import every_image, make_bank, make_batch, make_detector, white_disc
from torch import nn

from terse_aug import PARAMETERS, ForegroundBank, Terse, TransformRanges, probe
from terse_aug.evaluation.diversity import nearest_neighbour_distances, std_ratios_by_class
from terse_aug.models import ClassifierAdapter, TorchvisionAdapter


def test_one_transform_for_each_class_is_collapsed_by_class_and_not_as_a_whole() -> None:
    labels = torch.arange(400) % 2
    unit = torch.rand(400, len(PARAMETERS), generator=torch.Generator().manual_seed(0))
    unit[:, 0] = labels.float()
    by_class = std_ratios_by_class(unit, labels)
    assert by_class.keys() == {0, 1}
    for own in by_class.values():
        assert own[PARAMETERS[0]] == 0
        assert own[PARAMETERS[1]] == pytest.approx(1, abs=0.1)
    (whole,) = std_ratios_by_class(unit, torch.zeros(400)).values()
    assert whole[PARAMETERS[0]] == pytest.approx(0.5 * 12**0.5)
    with pytest.raises(ValueError, match="labels: expected 400, one for each transform, got 3"):
        std_ratios_by_class(unit, labels[:3])


def test_neighbour_distances_equal_those_of_all_pairs() -> None:
    images = torch.rand(12, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    images[5] = images[2]
    images[7] = images[9] + 0.01
    pairs = (images[:, None] - images).square().mean((2, 3, 4)).sqrt()
    distances = nearest_neighbour_distances(images)
    expected = pairs.fill_diagonal_(torch.inf).amin(1).double()
    torch.testing.assert_close(distances, expected, rtol=1e-4, atol=1e-6)
    assert distances[5] == distances[2] == 0


def test_neighbours_are_of_the_same_class_and_large_images_are_reduced() -> None:
    small = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = small.repeat_interleave(3, 2).repeat_interleave(3, 3)
    images[1] = images[0]
    distances = nearest_neighbour_distances(images, torch.tensor([0, 1, 1, 7]))
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
def test_wrong_shapes_are_refused(images: torch.Tensor, labels: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_neighbour_distances(images, labels)


def test_a_probe_measures_hardness_and_diversity(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, "random", paste=every_image(objects=(2, 2)))
    batches = [make_batch(seed, sizes=((64, 64),) * 3) for seed in range(4)]
    found = probe(terse, make_detector("fasterrcnn"), batches)
    count = len(found.scores)
    assert count > 10
    assert len(found.unit) == len(found.labels) == count
    assert found.composites.shape == (12, 3, 32, 32)
    assert set(found.labels.tolist()) == {1, 2} == found.std_ratios_by_class.keys()
    assert found.std_ratios.keys() == set(PARAMETERS)
    assert sum(found.histogram(4)) == pytest.approx(1)
    hard = int((found.scores < 0.25).sum())
    assert found.histogram(4)[-1] == pytest.approx(hard / count)
    assert found.missed_fraction == pytest.approx(sum(found.histogram(4)[2:]))


def test_a_probe_skips_pastes_without_a_score(tiny_bank: ForegroundBank) -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    terse = Terse(tiny_bank, "random", paste=every_image(objects=(2, 2)))
    found = probe(terse, ClassifierAdapter(model, 3), [make_batch(0, sizes=((96, 96),) * 3)])
    assert len(found.scores) == len(found.unit) == len(found.labels) == len(found.composites) == 3
    assert not found.scores.isnan().any()


def test_neighbour_distance_is_zero_for_equal_composites_and_nan_for_one(tmp_path: Path) -> None:
    one, middle = (1.0, 1.0), (0.5, 0.5)
    fixed = TransformRanges((0.0, 0.0), (0.0, 0.0), one, one, one, middle, middle)
    bank, detector = make_bank(tmp_path, [white_disc()]), make_detector("fasterrcnn")
    batches = [make_batch(0, sizes=((64, 64),), objects=0)] * 3

    def pasting(**settings: object) -> Terse:
        return Terse(bank, paste=every_image(**({"objects": (1, 1), "flip_probability": 0.0} | settings)))

    equal, different = probe(pasting(ranges=fixed), detector, batches), probe(pasting(), detector, batches)
    assert equal.neighbour_distance == 0 < different.neighbour_distance
    assert math.isnan(probe(pasting(), detector, batches[:1]).neighbour_distance)
    nothing = probe(pasting(objects=(0, 0)), detector, batches)
    assert len(nothing.scores) == len(nothing.composites) == sum(nothing.histogram()) == 0


class _Loose(nn.Module):
    """Detects ``targets``, in boxes that are too narrow by three tenths."""

    targets: Any

    def forward(self, images: Any) -> Any:
        found = []
        for target in self.targets:
            boxes = target["boxes"].clone()
            boxes[:, 2] -= 0.3 * (boxes[:, 2] - boxes[:, 0])
            found.append({"boxes": boxes, "labels": target["labels"], "scores": torch.full((len(boxes),), 0.9)})
        return found


def test_a_box_that_fits_badly_is_not_missed(tiny_bank: ForegroundBank) -> None:
    detector, terse = _Loose(), Terse(tiny_bank, "random", paste=every_image(objects=(2, 2)))
    images, targets = make_batch(0, sizes=((96, 96),) * 3)
    detector.targets = terse.compose(images, targets, seed=0).targets
    found = probe(terse, detector, [(images, targets)])
    assert len(found.scores) > 0
    assert found.missed_fraction == 0
    by_ap = probe(terse, TorchvisionAdapter(detector), [(images, targets)])
    assert by_ap.missed_fraction == 1

"""What the segmentation branch holds in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from toy_generator import ToyGenerator, annotated_samples

from terse_aug.generators import BranchSettings, BranchShape, SegmentationBranch, learn_branch
from terse_aug.generators.branch import FeatureSize, feature_moments
from terse_aug.generators.training import _SampleStore

SIZES = [FeatureSize(12, 8, 8), FeatureSize(10, 16, 16), FeatureSize(9, 16, 16), FeatureSize(8, 32, 32)]
WIDTH = 4


def branch_of(sizes: Sequence[FeatureSize], variant: str) -> SegmentationBranch:
    torch.manual_seed(0)
    return SegmentationBranch(sizes, 2, BranchShape(variant, width=WIDTH, groups=2)).eval()


@pytest.mark.parametrize("variant", ["supplement", "release"])
def test_features_are_reduced_before_they_are_resized(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = [3 + torch.randn(2, *size) for size in SIZES]
    moments = feature_moments([[own[:1] for own in features]])
    resized = [functional.interpolate(features[0], (16, 16), mode="bilinear", align_corners=False), *features[1:]]
    other = branch_of([FeatureSize(*own.shape[1:]) for own in resized], variant)
    other.standardize(moments)
    labels = torch.tensor([0, 1])
    given: list[Tensor] = []
    if variant == "release":
        other.levels.mixes[0].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    expected = other(resized, labels, (32, 32))
    if variant == "release":  # parts of a convolution add up to that of all
        scaled = [
            (own - mean[:, None, None]) / by[:, None, None] for own, (mean, by) in zip(resized, moments, strict=True)
        ]
        whole = other.levels.reductions[0](torch.cat(scaled[:3], 1).float())
        assert torch.allclose(given[0], whole, atol=1e-5)
    branch = branch_of(SIZES, variant)
    branch.standardize(moments)
    interpolate, channels = functional.interpolate, set()

    def recorded(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
        channels.add(tensor.shape[1])
        return interpolate(tensor, *arguments, **options)

    monkeypatch.setattr(functional, "interpolate", recorded)
    found = branch(features, labels, (32, 32))
    assert channels == {WIDTH}
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.std() > 0.01


def test_features_beyond_the_limit_are_rendered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, settings = ToyGenerator(), BranchSettings(width=8, heads=1, steps=4, batch_size=3)
    samples = annotated_samples(generator)
    whole = learn_branch(generator, samples, settings)
    one = sum(feature.nbytes for feature in _SampleStore(generator, samples).features(0))
    monkeypatch.setattr("terse_aug.generators.training._FEATURE_BYTES", int(2.5 * one))
    store = _SampleStore(generator, samples)
    for _ in range(2):
        store.batch(range(5))
    assert store.held_bytes == 2 * one == sum(own.nbytes for held in store._held.values() for own in held)
    assert learn_branch(generator, samples, settings).fingerprint == whole.fingerprint

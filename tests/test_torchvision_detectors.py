"""Torchvision's detectors: trained with every policy, and extra forwards that leave them unchanged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from factories import (
    DETECTORS,
    KEYPOINTS,
    TinyBackbone,
    all_equal,
    backward,
    every_image,
    keypoint_foregrounds,
    make_bank,
    make_batch,
    make_detector,
    parameters_of,
    policy_with,
)
from torch import Tensor, nn
from torchvision.models import detection

from terse_aug import ForegroundBank, Terse
from terse_aug.config import POLICY_SETTINGS
from terse_aug.models import ModelAdapter, TorchvisionAdapter
from terse_aug.policies import Adversarial
from terse_aug.utils.random import isolated_global_rng

STEPS = 3


@pytest.fixture(scope="module")
def keypoint_bank(tmp_path_factory: pytest.TempPathFactory) -> ForegroundBank:
    return make_bank(tmp_path_factory.mktemp("keypoints"), keypoint_foregrounds(), keypoint_names=KEYPOINTS)


@pytest.fixture
def bank_for(tiny_bank: ForegroundBank, keypoint_bank: ForegroundBank) -> dict[str, ForegroundBank]:
    return {name: keypoint_bank if name == "keypointrcnn" else tiny_bank for name in DETECTORS}


def batch_for(name: str, seed: int = 0, **more: Any) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    return make_batch(seed, masks=name == "maskrcnn", keypoints=name == "keypointrcnn", **more)


@pytest.mark.parametrize("policy", sorted(POLICY_SETTINGS))
@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_trains_and_a_policy_that_learns_is_updated(
    name: str, policy: str, bank_for: dict[str, ForegroundBank]
) -> None:
    detector = make_detector(name)
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    settings = policy_with(policy, update_interval=1, candidates=2, replay_updates=1)
    terse = Terse(bank_for[name], settings, paste=every_image(), model=detector)
    before, detector_before = parameters_of(terse), parameters_of(detector)
    for seed in range(STEPS):
        images, targets = terse(*batch_for(name, seed))
        leaves = [leaf for pending in terse.trainer.feedback.batches for leaf in pending.proposal.leaves]
        losses = backward(detector(images, targets))
        assert all(leaf.grad is not None and bool((leaf.grad.abs().amax(1) > 0).all()) for leaf in leaves)
        assert len(leaves) == {"adversarial": 2, "paper": 1}.get(policy, 0)
        optimizer.step()
        optimizer.zero_grad()
        terse.step(losses)
    assert not all_equal(detector_before, parameters_of(detector))
    assert all(bool(parameter.isfinite().all()) for parameter in detector.parameters())
    assert all_equal(before, parameters_of(terse)) is not terse.policy.learns
    assert terse.metrics()["updates"] == (STEPS if terse.policy.learns else 0)
    # For two candidates of each of two images in a step; hardness is recorded.
    assert terse.metrics()["extra_forwards"] == (4 * STEPS if policy == "best-of-n" else 0)


@pytest.mark.parametrize(("name", "images"), [("ssd300_vgg16", 1), ("ssdlite320_mobilenet_v3_large", 2)])
def test_gradients_of_torchvisions_own_large_models_reach_the_policy(
    name: str, images: int, tiny_bank: ForegroundBank
) -> None:
    with isolated_global_rng(0):
        detector = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=3)
    detector.train()
    terse = Terse(tiny_bank, Adversarial(update_interval=1), paste=every_image(), model=detector)
    before = parameters_of(terse)
    terse.step(backward(detector(*terse(*make_batch(sizes=((64, 80),) * images)))))
    assert terse.metrics()["updates"] == 1
    assert not all_equal(before, parameters_of(terse))


@pytest.mark.parametrize("name", DETECTORS)
def test_the_loss_of_an_image_depends_on_no_other_image_and_is_reproducible(name: str) -> None:
    adapter = TorchvisionAdapter(make_detector(name))
    images, targets = batch_for(name, sizes=((64, 64), (64, 80), (80, 64)))
    losses = adapter.image_losses(images, targets)
    torch.manual_seed(5)
    again = adapter.image_losses(images[::-1], targets[::-1]).flip(0)
    assert torch.equal(losses, again)
    assert len(set(losses.tolist())) == 3


def test_image_losses_equal_the_detectors_own_loss_with_frozen_statistics() -> None:
    detector = make_detector("retinanet")
    images, targets = make_batch(sizes=((64, 64),))
    losses = TorchvisionAdapter(detector).image_losses(images, targets)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        own = detector(images, targets)
    assert float(losses[0]) == pytest.approx(float(sum(own.values())), rel=1e-6)


@pytest.mark.parametrize("name", DETECTORS)
def test_images_without_objects_have_a_loss_and_no_scores(name: str) -> None:
    adapter = TorchvisionAdapter(make_detector(name))
    images, targets = batch_for(name, objects=0)
    if name == "keypointrcnn":
        targets = [{**target, "keypoints": torch.zeros(0, len(KEYPOINTS), 3)} for target in targets]
    assert adapter.image_losses(images, targets).isfinite().all()
    assert [len(scores) for scores in adapter.object_scores(images, targets)] == [0, 0]


class Predicting(nn.Module):
    """Predicts constants."""

    def __init__(self, **prediction: Any) -> None:
        super().__init__()
        self.prediction = {name: torch.tensor(value) for name, value in prediction.items()}

    def forward(self, images: list[Tensor], targets: Any = None) -> list[dict[str, Tensor]]:
        return [self.prediction for _ in images]


def test_the_score_of_an_object_is_the_mean_over_overlaps_of_the_best_detection_of_its_class() -> None:
    model = Predicting(
        boxes=[[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [40, 40, 50, 50]],
        labels=[1, 1, 2, 1],
        scores=[0.3, 0.6, 0.9, 0.8],
    )
    targets = [{"boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]]), "labels": torch.tensor([1, 1])}]
    (scores,) = TorchvisionAdapter(model).object_scores([torch.zeros(3, 64, 64)], targets)
    # The likelier box overlaps by 0.82: it counts for seven of ten thresholds, the exact one for three.
    assert scores.tolist() == pytest.approx([(7 * 0.6 + 3 * 0.3) / 10, 0.0])
    (scores,) = TorchvisionAdapter(model, (0.5,)).object_scores([torch.zeros(3, 64, 64)], targets)
    assert scores.tolist() == pytest.approx([0.6, 0.0])


@pytest.mark.parametrize("thresholds", [0.5, (), (0.5, 0.5), (0.6, 0.5), (-0.1,), (0.5, 1.1)])
def test_wrong_thresholds_are_refused(thresholds: Any) -> None:
    with pytest.raises(ValueError, match="iou_thresholds"):
        TorchvisionAdapter(make_detector("fcos"), thresholds)


@pytest.mark.parametrize("name", DETECTORS)
def test_the_range_of_labels_is_read_from_the_head(name: str) -> None:
    adapter = TorchvisionAdapter(make_detector(name, classes=5))
    assert adapter.label_limit == 5
    assert adapter.first_label == (0 if name in ("retinanet", "fcos") else 1)
    assert isinstance(adapter, ModelAdapter)


def test_the_range_of_labels_is_read_from_torchvisions_own_models() -> None:
    adapter = TorchvisionAdapter(
        detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    )
    assert (adapter.first_label, adapter.label_limit) == (1, 4)
    assert TorchvisionAdapter(TinyBackbone()).label_limit is None

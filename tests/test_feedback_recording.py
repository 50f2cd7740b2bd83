"""Hardness recorded from the training forward of torchvision's one-stage detectors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from factories import every_image, make_batch, make_detector
from feedback_reference import (
    assert_same_training,
    best_scores,
    counted_reads,
    decoded_deltas,
    decoded_distances,
    trained,
)
from torch import Tensor

from terse_aug import ForegroundBank, Terse
from terse_aug.models import PredictionRecorder, Predictions, TorchvisionAdapter, levels_of
from terse_aug.models.predictions import best_predictions
from terse_aug.policies import Critic

NAMES = ("retinanet", "fcos", "ssd")
SIZES = ((64, 80), (150, 120))
"""The models take the first as it is, or stretch it, and shrink the second."""
IOU = (0.2, 0.3, 0.5)


def detector_of(name: str) -> Any:
    """A detector whose random predictions differ from each other."""
    detector: Any = make_detector(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in detector.head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return detector


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images, targets = make_batch(3, sizes=SIZES, objects=3)
    for target in targets:
        target["labels"] = torch.tensor([1, 2, 1])
    return images, targets


def raw_outputs(detector: Any, images: Any, targets: Any) -> dict[str, Any]:
    """The outputs of the detector's parts in a training forward."""
    kept: dict[str, Any] = {}
    parts = {"head": detector.head, "anchors": detector.anchor_generator, "transform": detector.transform}
    handles = [
        part.register_forward_hook(lambda module, inputs, output, name=name: kept.update({name: output}))
        for name, part in parts.items()
    ]
    detector(images, targets)
    for handle in handles:
        handle.remove()
    return kept


def reference(detector: Any, name: str, kept: dict[str, Any], images: Any, targets: Any) -> list[float]:
    """The scores by definition, object by object, from the raw outputs."""
    found = []
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        head = {key: value[number].detach().double() for key, value in kept["head"].items()}
        logits, regression = head["cls_logits"], head["bbox_regression"]
        anchors = kept["anchors"][number].double()
        scores = logits.softmax(1) if name == "ssd" else logits.sigmoid()
        if name == "fcos":
            scores = (scores * head["bbox_ctrness"].sigmoid()).sqrt()
            boxes = decoded_distances(anchors, regression)
        else:
            boxes = decoded_deltas(anchors, regression, detector.box_coder.weights)
        height, width = kept["transform"][0].image_sizes[number]
        limits = torch.tensor([width, height, width, height])
        shown = torch.tensor([image.shape[2], image.shape[1]] * 2)
        boxes = torch.minimum(boxes.clamp(min=0), limits) / limits * shown
        found += best_scores(boxes, scores, target["boxes"], target["labels"], IOU)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_score_is_the_best_of_the_boxes_that_overlap_an_object(name: str) -> None:
    detector = detector_of(name)
    images, targets = batch()
    recorder = TorchvisionAdapter(detector, IOU).record_forward()
    assert isinstance(recorder, PredictionRecorder)
    kept = raw_outputs(detector, images, targets)
    with counted_reads() as reads:
        recorded = recorder.scores(images, targets)
    assert reads == []
    assert recorded is not None
    expected = reference(detector, name, kept, images, targets)
    assert torch.cat(recorded).tolist() == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 4) for value in expected}) > 3
    # Only the objects that are wanted; the same tensors of other images are another batch.
    (first, second) = recorder.scores(images, targets, [[2], []]) or []
    assert float(first[2]) == float(recorded[0][2])
    assert first[:2].isnan().all()
    assert second.isnan().all()
    copies = [{**target, "boxes": target["boxes"].clone()} for target in targets]
    with counted_reads() as reads:
        assert torch.equal(torch.cat(recorder.scores(images, copies) or []), torch.cat(recorded))
    assert [name for name in reads if name != "equal"] == ["_local_scalar_dense"]  # to compare the boxes
    copies[1]["boxes"][0, 0] += 3
    assert recorder.scores(images, copies) is None
    assert recorder.scores(images[:1], targets[:1]) is None
    recorder.close()
    assert recorder.scores(images, targets) is None


@pytest.mark.parametrize("name", NAMES)
def test_recording_changes_neither_losses_nor_gradients_nor_the_random_state(name: str) -> None:
    images, targets = batch()
    found = []
    for record in (False, True):
        detector = detector_of(name)
        adapter = TorchvisionAdapter(detector, IOU)
        losses = lambda detector=detector: list(detector(images, targets).values())  # noqa: E731
        found.append(trained(detector, losses, adapter.record_forward if record else None))
    assert_same_training(*found)
    scores = found[1]["recorder"].scores(images, targets)
    assert scores is not None
    assert not any(own.requires_grad for own in scores)


@pytest.mark.parametrize("name", NAMES)
def test_a_forward_in_lower_precision_is_recorded(name: str) -> None:
    detector = detector_of(name)
    images, targets = batch()
    found = []
    for enabled in (False, True):
        recorder = TorchvisionAdapter(detector, IOU).record_forward()
        assert recorder is not None
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            detector(images, targets)
        found.append(torch.cat(recorder.scores(images, targets) or []))
        recorder.close()
    assert found[1].dtype == torch.float32
    assert found[1].tolist() == pytest.approx(found[0].tolist(), abs=0.05)


def test_objects_of_unknown_classes_and_images_without_objects_or_boxes() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]]).expand(2, -1, -1)
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 9, 9]]).expand(2, -1, -1)
    images = [torch.zeros(3, 20, 20)] * 2
    objects = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 4, 4]])
    targets = [
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()},
        {"boxes": objects, "labels": torch.tensor([0, -1, 2, 0])},
    ]
    none, found = best_predictions(Predictions(boxes, levels_of(logits)), images, targets, (0.5,))
    assert none.shape == (0,)
    assert found.tolist() == pytest.approx([torch.tensor(2.0).sigmoid().item(), 0.0, 0.0, 0.0])
    nothing = Predictions(boxes[:, :0], levels_of(logits[:, :0]))
    assert best_predictions(nothing, images, targets, (0.5,))[1].tolist() == [0.0] * 4


def test_a_roi_head_is_recorded_without_reading_from_the_device() -> None:
    detector = make_detector("fasterrcnn")
    images, targets = batch()
    recorder = TorchvisionAdapter(detector, IOU).record_forward()
    assert recorder is not None
    detector(images, targets)
    with counted_reads() as reads:
        assert recorder.scores(images, targets) is not None
    assert reads == []


@pytest.mark.parametrize("name", NAMES)
def test_a_critic_learns_in_every_iteration_without_extra_forward(name: str, tiny_bank: ForegroundBank) -> None:
    detector = detector_of(name)
    terse = Terse(tiny_bank, Critic(candidates=2, update_interval=2), paste=every_image(), model=detector)
    for seed in range(4):
        images, targets = terse(*make_batch(seed, sizes=SIZES))
        detector(images, targets)
        terse.step(1.0)
    metrics = terse.metrics()
    assert (metrics["updates"], metrics["extra_forwards"], metrics["feedback_failed"]) == (2, 0, 0)
    assert 0 < metrics["hardness"] <= 1
    assert int(terse.policy.state_dict()["replay_count"]) == metrics["objects_labelled"]

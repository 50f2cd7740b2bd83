"""Scores of objects, recorded from the training forward of a model with an RoI head."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from factories import make_detector
from feedback_reference import refined_scores
from roi_head_samples import (
    CONSTANT,
    ROI_HEADS,
    batch,
    constant_detector,
    hooks_of,
    propose,
    train_forward,
)
from torch import Tensor, nn
from torchvision.ops import box_iou

from terse_aug.models import RoIHeadRecorder, TorchvisionAdapter

THRESHOLDS = (0.2, 0.3, 0.4)


def recorder_of(detector: nn.Module, iou_thresholds: tuple[float, ...] = (0.5,)) -> RoIHeadRecorder:
    recorder = TorchvisionAdapter(detector, iou_thresholds).record_forward()
    assert recorder is not None
    return recorder


def recorded(recorder: RoIHeadRecorder, images: list[Tensor], targets: list[dict[str, Tensor]]) -> list[Tensor]:
    scores = recorder.scores(images, targets)
    assert scores is not None
    return scores


@pytest.mark.parametrize("name", ROI_HEADS)
def test_scores_are_the_best_of_the_refined_proposals_on_an_object(name: str) -> None:
    """Compared with a loop over the proposals and thresholds."""
    detector: Any = make_detector(name)
    images, targets = batch(name)
    with torch.no_grad():  # random weights predict much the same for all
        detector.roi_heads.box_predictor.cls_score.weight.mul_(30)
        detector.roi_heads.box_predictor.bbox_pred.weight.mul_(30)
    recorder = recorder_of(detector, THRESHOLDS)
    seen: dict[str, Any] = {}
    heads = detector.roi_heads
    heads.box_head.register_forward_hook(lambda module, inputs, output: seen.update(features=output))
    heads.box_roi_pool.register_forward_hook(lambda module, inputs, output: seen.update(boxes=inputs[1]))
    heads.register_forward_pre_hook(lambda module, inputs: seen.update(proposed=[own.clone() for own in inputs[1]]))
    train_forward(detector, images, targets)
    scores = recorded(recorder, images, targets)
    counts = [len(own) for own in seen["boxes"]]
    logits, regression = (own.detach() for own in heads.box_predictor(seen["features"]))
    probabilities, regressions = logits.softmax(1).split(counts), regression.split(counts)
    resized, _ = detector.transform(images, targets)
    kinds = set()
    for number, (target, own) in enumerate(zip(targets, scores, strict=True)):
        size, proposals = resized.image_sizes[number], seen["boxes"][number]
        boxes = target["boxes"] * size[0] / images[number].shape[-2]
        near = (box_iou(boxes, proposals)[:, box_iou(proposals, boxes).amax(1) < 0.99] >= THRESHOLDS[0]).any(1)
        proposed = box_iou(boxes, seen["proposed"][number]).amax(1) >= THRESHOLDS[0]
        predicted = (probabilities[number], regressions[number])
        expected = refined_scores(proposals, *predicted, boxes, target["labels"], size, THRESHOLDS)
        for row in range(len(boxes)):
            kinds.add("near" if near[row] else "unknown" if proposed[row] else "missed")
            found = float("nan") if proposed[row] and not near[row] else expected[row]
            assert float(own[row]) == pytest.approx(found, abs=1e-4, nan_ok=True)
    assert {"near", "missed"} <= kinds


@pytest.mark.parametrize("near", [False, True])
def test_an_object_is_missed_without_proposals_and_unknown_if_none_was_sampled(near: bool) -> None:
    detector: Any = make_detector("fasterrcnn")
    images, targets = batch()
    propose(detector, [target["boxes"] + (2 if near else 1000) for target in targets])
    detector.roi_heads.fg_bg_sampler.positive_fraction = 0.0
    recorder = recorder_of(detector)
    train_forward(detector, images, targets)
    assert all(bool((own.isnan() if near else own == 0).all()) for own in recorded(recorder, images, targets))


@pytest.mark.parametrize(
    ("dtype", "shift", "expected"),
    [(torch.bfloat16, 1000, 0.0), (torch.float16, 1000, 0.0), (torch.bfloat16, 0.7, 0.7)],
)
def test_annotated_boxes_are_distinguished_from_proposals_of_low_precision(
    dtype: torch.dtype, shift: float, expected: float
) -> None:
    """Under autocast: far proposals have missed the object, good ones (half a step to two steps away) have not."""
    detector = constant_detector()
    images = [torch.rand(3, 160, 160)] * 2
    targets = [{"boxes": torch.tensor([[100.3, 100.3, 140.3, 150.3]]), "labels": torch.ones(1, dtype=torch.long)}] * 2
    propose(detector, [(target["boxes"] + shift).to(dtype) for target in targets])
    recorder = recorder_of(detector)
    with torch.autocast("cpu", dtype=dtype):
        train_forward(detector, images, targets)
    assert recorder.records[0].sampled is not None
    assert recorder.records[0].sampled.boxes.dtype == dtype
    assert torch.cat(recorded(recorder, images, targets)).tolist() == pytest.approx([expected] * 2, abs=0.01)


def test_only_the_training_forward_of_the_same_targets_counts() -> None:
    detector = constant_detector()
    images, targets = batch()
    recorder = recorder_of(detector, (1e-6,))
    assert recorder.scores(images, targets) is None
    detector.eval()(images)
    assert recorder.scores(images, targets) is None
    detector.train()
    train_forward(detector, *batch(seed=5))
    assert recorder.scores(images, targets) is None
    train_forward(detector, images, targets)
    scores = recorded(recorder, images, targets)
    for own, target in zip(scores, targets, strict=True):
        assert own.tolist() == pytest.approx([CONSTANT[label] for label in target["labels"]], abs=1e-5)
    recorder.close()
    assert hooks_of(detector) == 0
    assert recorder.scores(images, targets) is None


class _Outputs(NamedTuple):
    scores: Tensor
    boxes: Tensor


def test_a_predictor_may_return_a_named_tuple() -> None:
    detector = constant_detector()
    images, targets = batch()
    detector.roi_heads.box_predictor.register_forward_hook(lambda module, inputs, output: _Outputs(*output))
    recorder = recorder_of(detector, (1e-6,))
    train_forward(detector, images, targets)
    assert torch.cat(recorded(recorder, images, targets)).max() > 0
    assert recorder.error is None

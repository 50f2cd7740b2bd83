"""Hardness recorded from the detector's own training forward, for models with an RoI head."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import (
    DETECTORS,
    KEYPOINTS,
    every_image,
    keypoint_foregrounds,
    make_bank,
    make_batch,
    make_detector,
    unrecorded,
)
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from terse_aug import ForegroundBank, Terse, TerseWarning
from terse_aug.compositing.compose import Composites
from terse_aug.models import RecordsTrainingForward, RoIHeadRecorder, TorchvisionAdapter
from terse_aug.policies import Critic
from terse_aug.utils.random import isolated_global_rng

ROI_HEADS = ("fasterrcnn", "maskrcnn", "keypointrcnn")
SIZES = ((64, 80), (72, 64), (150, 120))
"""The models take the first two as they are and shrink the last."""
CONSTANT = [0.2, 0.7, 0.1]
"""Predicted class probabilities."""


def batch(name: str = "fasterrcnn", seed: int = 0) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    fields = {"masks": name == "maskrcnn", "keypoints": name == "keypointrcnn"}
    return make_batch(seed, sizes=SIZES, objects=2, **fields)


def train_forward(detector: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
    with isolated_global_rng(0):
        detector(images, targets)


def constant_detector(probabilities: list[float] = CONSTANT) -> Any:
    """A Faster R-CNN that predicts the same class probabilities for every proposal."""
    detector: Any = make_detector("fasterrcnn")
    predict_constant(detector, probabilities)
    return detector


def predict_constant(detector: Any, probabilities: list[float]) -> None:
    layer = detector.roi_heads.box_predictor.cls_score
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor(probabilities).log())


def propose(detector: Any, boxes: list[Tensor]) -> None:
    """Make a detector propose these boxes, in unresized images."""
    detector.rpn.forward = lambda *inputs: (boxes, {})
    detector.transform = NotResized()


class NotResized(nn.Module):
    """A transform that puts images as they are on one canvas."""

    def forward(self, images: list[Tensor], targets: Any) -> tuple[ImageList, Any]:
        canvas = torch.zeros(len(images), 3, 160, 160)
        for own, image in zip(canvas, images, strict=True):
            own[:, : image.shape[1], : image.shape[2]] = image
        return ImageList(canvas, [(image.shape[1], image.shape[2]) for image in images]), targets

    def postprocess(self, result: Any, *sizes: Any) -> Any:
        return result


def recorder_of(detector: nn.Module, iou_threshold: float = 0.5) -> RoIHeadRecorder:
    recorder = TorchvisionAdapter(detector, iou_threshold).record_forward()
    assert recorder is not None
    return recorder


def hooks_of(detector: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in detector.modules())


# --- scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROI_HEADS)
def test_scores_are_the_best_of_the_proposals_on_an_object(name: str) -> None:
    """Compared with a loop over the proposals."""
    detector: Any = make_detector(name)
    images, targets = batch(name)
    with torch.no_grad():  # random weights predict much the same for all
        detector.roi_heads.box_predictor.cls_score.weight.mul_(30)
    recorder = recorder_of(detector, iou_threshold=0.3)
    seen: dict[str, Any] = {}
    heads = detector.roi_heads
    heads.box_head.register_forward_hook(lambda module, inputs, output: seen.update(features=output))
    heads.box_roi_pool.register_forward_hook(lambda module, inputs, output: seen.update(boxes=inputs[1]))
    heads.register_forward_pre_hook(lambda module, inputs: seen.update(proposed=[own.clone() for own in inputs[1]]))
    train_forward(detector, images, targets)
    scores = recorder.scores(images, targets)
    assert scores is not None
    probabilities = heads.box_predictor(seen["features"])[0].detach().softmax(1).split([len(b) for b in seen["boxes"]])
    resized, _ = detector.transform(images, targets)
    kinds = set()
    for number, (target, own) in enumerate(zip(targets, scores, strict=True)):
        boxes = target["boxes"] * resized.image_sizes[number][0] / images[number].shape[-2]
        overlaps = box_iou(boxes, seen["boxes"][number])
        proposed = box_iou(boxes, seen["proposed"][number]).amax(1) >= 0.3
        for row, label in enumerate(target["labels"]):
            best = -1.0
            for column, probability in enumerate(probabilities[number]):
                if overlaps[:, column].max() <= 0.99 and overlaps[row, column] >= 0.3:
                    best = max(best, float(probability[label]))
            kinds.add("near" if best >= 0 else "unknown" if proposed[row] else "missed")
            expected = best if best >= 0 else float("nan") if proposed[row] else 0.0
            assert float(own[row]) == pytest.approx(expected, abs=1e-4, nan_ok=True)
    assert {"near", "missed"} <= kinds


def test_only_the_training_forward_of_the_same_targets_counts() -> None:
    detector = constant_detector()
    images, targets = batch()
    recorder = recorder_of(detector, 1e-6)
    assert recorder.scores(images, targets) is None
    detector.eval()(images)
    assert recorder.scores(images, targets) is None
    detector.train()
    train_forward(detector, *batch(seed=5))
    assert recorder.scores(images, targets) is None
    train_forward(detector, images, targets)
    scores = recorder.scores(images, targets)
    assert scores is not None
    for own, target in zip(scores, targets, strict=True):
        assert own.tolist() == pytest.approx([CONSTANT[label] for label in target["labels"]], abs=1e-5)
    recorder.close()
    assert hooks_of(detector) == 0
    assert recorder.scores(images, targets) is None


@pytest.mark.parametrize("near", [False, True])
def test_an_object_is_missed_without_proposals_and_unknown_if_none_was_sampled(near: bool) -> None:
    detector: Any = make_detector("fasterrcnn")
    images, targets = batch()
    propose(detector, [target["boxes"] + (2 if near else 1000) for target in targets])
    detector.roi_heads.fg_bg_sampler.positive_fraction = 0.0
    recorder = recorder_of(detector)
    train_forward(detector, images, targets)
    scores = recorder.scores(images, targets)
    assert scores is not None
    assert all(bool((own.isnan() if near else own == 0).all()) for own in scores)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_model_that_predicts_in_another_way_is_not_recorded(name: str) -> None:
    adapter = TorchvisionAdapter(make_detector(name))
    assert isinstance(adapter, RecordsTrainingForward)
    assert adapter.record_forward() is not None
    assert TorchvisionAdapter(unrecorded(make_detector(name))).record_forward() is None


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
    scores = recorder.scores(images, targets)
    assert scores is not None
    assert torch.cat(scores).tolist() == pytest.approx([expected] * 2, abs=0.01)


# --- in training ----------------------------------------------------------------------------------------------------


def critic(bank: ForegroundBank, detector: Any, update_interval: int = 2) -> Terse:
    settings = Critic(candidates=2, replay_updates=1, update_interval=update_interval)
    return Terse(bank, settings, paste=every_image(objects=(1, 1)), model=detector)


def replay_hardness(terse: Terse) -> list[float]:
    state = terse.policy.state_dict()
    values: list[float] = state["replay_hardness"][: int(state["replay_count"])].tolist()
    return values


@pytest.mark.parametrize("name", ROI_HEADS)
def test_every_iteration_is_learned_from_without_extra_forward(
    name: str, tiny_bank: ForegroundBank, tmp_path: Path
) -> None:
    detector = make_detector(name)
    bank = (
        make_bank(tmp_path, keypoint_foregrounds(), keypoint_names=KEYPOINTS) if name == "keypointrcnn" else tiny_bank
    )
    terse = critic(bank, detector)
    counts = []
    for seed in range(4):
        images, targets = terse(*batch(name, seed))
        assert hooks_of(detector) == 4
        train_forward(detector, images, targets)
        terse.step(1.0)
        assert hooks_of(detector) == 0
        counts.append(len(replay_hardness(terse)))
    assert counts == sorted(set(counts))
    metrics = terse.metrics()
    assert (metrics["updates"], metrics["extra_forwards"]) == (2, 0)
    assert 0 <= metrics["hardness"] <= 1


def test_accumulated_batches_are_each_recorded(tiny_bank: ForegroundBank) -> None:
    detector = constant_detector()
    terse = critic(tiny_bank, TorchvisionAdapter(detector, 1e-6))
    expected = []
    for seed, probabilities in enumerate((CONSTANT, [0.5, 0.1, 0.4])):
        predict_constant(detector, probabilities)
        images, targets = terse(*batch(seed=seed))
        train_forward(detector, images, targets)
        expected += [1 - probabilities[paste.label] for pastes in terse.pastes for paste in pastes]
    terse.step(1.0)
    assert replay_hardness(terse) == pytest.approx(expected, abs=1e-5)


def test_supplied_hardness_takes_precedence(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    images, targets = terse(*batch())
    train_forward(detector, images, targets)
    terse.observe([torch.full((len(target["boxes"]),), 0.25) for target in targets])
    terse.step(1.0)
    assert set(replay_hardness(terse)) == {0.25}


def no_forward(detector: Any, images: Any, targets: Any) -> None:
    """As where another model is trained."""


def forward_of_copies(detector: Any, images: Any, targets: Any) -> None:
    """Hooks of copies record nothing."""
    for other in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        train_forward(other, images, targets)


def nothing_sampled(detector: Any, images: Any, targets: Any) -> None:
    """All objects are unknown."""
    transform, fraction = detector.transform, detector.roi_heads.fg_bg_sampler.positive_fraction
    propose(detector, [target["boxes"] + 2 for target in targets])
    detector.roi_heads.fg_bg_sampler.positive_fraction = 0.0
    train_forward(detector, images, targets)
    del detector.rpn.forward
    detector.transform, detector.roi_heads.fg_bg_sampler.positive_fraction = transform, fraction


@pytest.mark.parametrize("forward", [no_forward, forward_of_copies, nothing_sampled])
def test_an_extra_forward_is_made_where_nothing_was_recorded(
    tiny_bank: ForegroundBank, forward: Callable[..., None]
) -> None:
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    for seed in range(2):
        forward(detector, *terse(*batch(seed=seed)))
        terse.step(1.0)
    assert terse.metrics()["extra_forwards"] == len(SIZES)  # in the first of two iterations


def test_a_loss_that_is_not_finite_is_not_learned_from(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    train_forward(detector, *terse(*batch()))
    with pytest.warns(TerseWarning, match="the loss is inf"):
        terse.step(float("inf"))
    # The next batch is pasted at random and has no prediction to learn from.
    train_forward(detector, *terse(*batch(seed=1)))
    terse.step(1.0)
    assert replay_hardness(terse) == []
    assert hooks_of(detector) == 0


def test_hooks_are_removed_in_evaluation_mode_by_load_state_dict_and_with_terse(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    state = copy.deepcopy(terse.state_dict())
    terse(*batch())
    assert hooks_of(detector) == 4
    terse.eval()(*batch())
    assert hooks_of(detector) == 0
    terse.train()(*batch())
    terse.load_state_dict(state)
    assert hooks_of(detector) == 0
    for _ in range(2):
        terse.step(1.0)
        terse(*batch())
    assert hooks_of(detector) == 4
    del terse
    gc.collect()
    assert hooks_of(detector) == 0


def test_composites_are_released_once_their_hardness_is_known_or_not_needed(tiny_bank: ForegroundBank) -> None:
    def kept() -> int:
        gc.collect()
        return sum(type(value) is Composites for value in gc.get_objects())

    before = kept()
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    for seed in range(2):
        train_forward(detector, *terse(*batch(seed=seed)))
    assert kept() - before == 1
    del terse
    # No extra forward is made in an iteration without update.
    other = critic(tiny_bank, unrecorded(make_detector("retinanet")))
    other(*batch())
    other.step(1.0)
    for seed in range(2):
        other(*batch(seed=seed))
    assert kept() - before == 1


# --- models that cannot be recorded ---------------------------------------------------------------------------------


def test_failed_hooks_are_removed_and_a_resumed_run_makes_extra_forwards_too(tiny_bank: ForegroundBank) -> None:
    def train(terse: Terse, detector: Any, first: int, last: int) -> None:
        for seed in range(first, last):
            images, targets = terse(*make_batch(seed, sizes=SIZES))
            assert hooks_of(detector) == 0
            train_forward(detector, images, targets)
            terse.step(1.0)

    detector: Any = make_detector("fasterrcnn")
    whole = critic(tiny_bank, detector)
    pooler = detector.roi_heads.box_roi_pool
    del detector.roi_heads.box_roi_pool
    detector.roi_heads.box_roi_pool = lambda *inputs: pooler(*inputs)  # not a module
    with pytest.warns(TerseWarning, match="training forward"):
        train(whole, detector, 0, 1)
    assert whole.metrics()["hooks_failed"] == 1
    detector.roi_heads.box_roi_pool = pooler
    same = copy.deepcopy(detector)
    resumed = critic(tiny_bank, same)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    train(whole, detector, 1, 3)
    with pytest.warns(TerseWarning, match="in the run that this one resumes"):
        train(resumed, same, 1, 3)
    assert whole.metrics() == resumed.metrics()
    assert whole.metrics()["extra_forwards"] == 2 * len(SIZES)


def call_head_by_keywords(detector: Any) -> Callable[..., Any]:
    def forward(images: Any, targets: Any) -> Any:
        resized, targets = detector.transform(images, targets)
        features = {"0": detector.backbone(resized.tensors)}
        proposals, losses = detector.rpn(resized, features, targets)
        found = detector.roi_heads(
            features=features, proposals=proposals, image_shapes=resized.image_sizes, targets=targets
        )
        return losses | found[1]

    detector.forward = forward
    return lambda images, targets: detector(images, targets)


def move_targets(detector: Any) -> Callable[..., Any]:
    forward = detector.forward
    detector.forward = lambda images, extra, targets: forward(images, targets)
    return lambda images, targets: detector(images, None, targets)


@pytest.mark.parametrize("spoil", [call_head_by_keywords, move_targets])
def test_a_model_with_another_call_signature_gets_extra_forwards_and_one_warning(
    tiny_bank: ForegroundBank, spoil: Callable[[Any], Callable[..., Any]]
) -> None:
    detector: Any = make_detector("fasterrcnn")
    train = spoil(detector)
    spoiled = detector.forward
    terse = critic(tiny_bank, detector, update_interval=1)
    for seed in range(3):
        detector.forward = spoiled
        images, targets = terse(*batch(seed=seed))
        with isolated_global_rng(0):
            losses = train(images, targets)
        del detector.forward  # in evaluation it has its own
        with pytest.warns(TerseWarning, match="training forward") if seed == 0 else nullcontext():
            terse.step(sum(loss.detach() for loss in losses.values()))
        assert hooks_of(detector) == 0
    assert len(replay_hardness(terse)) > 0

"""How hard pastes are is heard in the detector's own training forward, where it has a second stage."""

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
    EVERY_IMAGE,
    KEYPOINTS,
    every_image,
    keypoint_foregrounds,
    make_bank,
    make_batch,
    make_detector,
)
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from terse_aug import ForegroundBank, Terse, TerseWarning
from terse_aug.models import RecordsTrainingForward, TorchvisionAdapter
from terse_aug.policies import Critic
from terse_aug.utils.random import isolated_global_rng

TWO_STAGES = ("fasterrcnn", "maskrcnn", "keypointrcnn")
SIZES = ((64, 80), (72, 64), (150, 120))
"""The first two enter the models as they are, the last is made smaller."""


def batch(name: str = "fasterrcnn", seed: int = 0, **more: Any) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    fields = {"masks": name == "maskrcnn", "keypoints": name == "keypointrcnn"}
    return make_batch(seed, **({"sizes": SIZES, "objects": 2} | fields | more))


def train_forward(detector: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
    with isolated_global_rng(0):
        detector(images, targets)


def take_for(detector: Any, chances: list[float]) -> None:
    """Let a detector take every proposal for the same thing."""
    layer = detector.roi_heads.box_predictor.cls_score
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor(chances).log())


def hooks_of(detector: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in detector.modules())


class NotResized(nn.Module):
    """In place of a detector's own transform: images as they are, on one canvas."""

    def forward(self, images: list[Tensor], targets: Any) -> tuple[ImageList, Any]:
        canvas = torch.zeros(len(images), 3, 160, 160)
        for own, image in zip(canvas, images, strict=True):
            own[:, : image.shape[1], : image.shape[2]] = image
        return ImageList(canvas, [(image.shape[1], image.shape[2]) for image in images]), targets

    def postprocess(self, result: Any, *sizes: Any) -> Any:
        return result


@pytest.mark.parametrize("name", TWO_STAGES)
def test_what_is_heard_is_the_best_of_the_proposals_on_an_object(name: str) -> None:
    """Against the model's own functions, proposal by proposal."""
    detector: Any = make_detector(name)
    images, targets = batch(name)
    with torch.no_grad():  # its random weights take everything for much the same
        detector.roi_heads.box_predictor.cls_score.weight.mul_(30)
    target = TorchvisionAdapter(detector, iou_threshold=0.3)
    listener = target.listen()
    assert listener is not None
    seen: dict[str, Any] = {}
    heads = detector.roi_heads
    heads.box_head.register_forward_hook(lambda module, inputs, output: seen.update(features=output))
    heads.box_roi_pool.register_forward_hook(lambda module, inputs, output: seen.update(boxes=inputs[1]))
    heads.register_forward_pre_hook(lambda module, inputs: seen.update(offered=[own.clone() for own in inputs[1]]))
    train_forward(detector, images, targets)
    heard = listener.scores(images, targets)
    assert heard is not None
    chances = heads.box_predictor(seen["features"])[0].detach().softmax(1).split([len(own) for own in seen["boxes"]])
    shown, _ = detector.transform(images, targets)
    kinds = set()
    for number, (target_of_image, own) in enumerate(zip(targets, heard, strict=True)):
        scale = shown.image_sizes[number][0] / images[number].shape[-2]
        for row, box in enumerate(target_of_image["boxes"]):
            best = -1.0
            for proposal, chance in zip(seen["boxes"][number], chances[number], strict=True):
                overlaps = [float(box_iou(other[None] * scale, proposal[None])) for other in target_of_image["boxes"]]
                if max(overlaps) <= 0.99 and overlaps[row] >= 0.3:
                    best = max(best, float(chance[target_of_image["labels"][row]]))
            offered = any(float(box_iou(box[None] * scale, other[None])) >= 0.3 for other in seen["offered"][number])
            kinds.add("near" if best >= 0 else "unknown" if offered else "missed")
            expected = best if best >= 0 else float("nan") if offered else 0.0
            assert float(own[row]) == pytest.approx(expected, abs=1e-4, nan_ok=True)
    assert {"near", "missed"} <= kinds


def test_it_is_the_probability_of_the_object_s_own_class() -> None:
    detector = make_detector("fasterrcnn")
    take_for(detector, [0.2, 0.7, 0.1])
    listener = TorchvisionAdapter(detector, iou_threshold=1e-6).listen()
    assert listener is not None
    images, targets = batch()
    train_forward(detector, images, targets)
    heard = listener.scores(images, targets)
    assert heard is not None
    for own, target in zip(heard, targets, strict=True):
        assert own.tolist() == pytest.approx([0.7 if label == 1 else 0.1 for label in target["labels"]], abs=1e-5)


def test_only_the_training_forward_of_these_very_targets_is_heard() -> None:
    detector = make_detector("fasterrcnn")
    take_for(detector, [0.2, 0.7, 0.1])
    images, targets = batch()
    others = batch(seed=5)
    listener = TorchvisionAdapter(detector).listen()
    assert listener is not None
    assert listener.scores(images, targets) is None
    detector.eval()(images)
    assert listener.scores(images, targets) is None
    detector.train()
    train_forward(detector, *others)
    assert listener.scores(images, targets) is None
    # What comes first does not keep it from hearing what comes next.
    train_forward(detector, images, targets)
    assert listener.scores(images, targets) is not None
    listener.close()
    assert hooks_of(detector) == 0
    assert listener.scores(images, targets) is None


@pytest.mark.parametrize("near", [False, True])
def test_an_object_is_missed_if_nothing_is_proposed_and_unknown_if_that_is_not_sampled(near: bool) -> None:
    detector: Any = make_detector("fasterrcnn")
    images, targets = batch()
    boxes = [target["boxes"] + (2 if near else 1000) for target in targets]
    detector.rpn.forward = lambda *inputs: (boxes, {})
    detector.transform = NotResized()
    detector.roi_heads.fg_bg_sampler.positive_fraction = 0.0
    listener = TorchvisionAdapter(detector).listen()
    assert listener is not None
    train_forward(detector, images, targets)
    heard = listener.scores(images, targets)
    assert heard is not None
    assert all(bool((own.isnan() if near else own == 0).all()) for own in heard)


@pytest.mark.parametrize("name", DETECTORS)
def test_where_there_is_no_second_stage_nothing_is_heard(name: str) -> None:
    target = TorchvisionAdapter(make_detector(name))
    assert isinstance(target, RecordsTrainingForward)
    assert (target.listen() is None) is (name not in TWO_STAGES)


# --- in training ----------------------------------------------------------------------------------------------------


def critic(bank: ForegroundBank, detector: nn.Module, **settings: Any) -> Terse:
    return Terse(bank, "critic", **(EVERY_IMAGE | {"objects": (1, 1), "move_every": 2} | settings), model=detector)


def remembered(terse: Terse) -> list[float]:
    state = terse.policy.state_dict()
    values: list[float] = state["_hardness"][: int(state["_written"])].tolist()
    return values


@pytest.mark.parametrize("name", TWO_STAGES)
def test_every_iteration_is_learned_from_and_nothing_is_asked(
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
        counts.append(len(remembered(terse)))
    assert counts == sorted(set(counts))
    metrics = terse.metrics()
    assert (metrics["updates"], metrics["extra_forwards"]) == (2, 0)
    assert 0 <= metrics["hardness"] <= 1


def test_accumulated_batches_are_each_heard(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    terse = Terse(
        tiny_bank,
        Critic(update_interval=2),
        paste=every_image(objects=(1, 1)),
        model=TorchvisionAdapter(detector, 1e-6),
    )
    expected = []
    for seed, chances in enumerate(([0.2, 0.7, 0.1], [0.5, 0.1, 0.4])):
        take_for(detector, chances)
        images, targets = terse(*batch(seed=seed))
        train_forward(detector, images, targets)
        expected += [1 - chances[paste.label] for pastes in terse.pastes for paste in pastes]
    terse.step(1.0)
    assert remembered(terse) == pytest.approx(expected, abs=1e-5)


def test_what_is_told_comes_before_what_is_heard(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    images, targets = terse(*batch())
    train_forward(detector, images, targets)
    terse.observe([torch.full((len(target["boxes"]),), 0.25) for target in targets])
    terse.step(1.0)
    assert set(remembered(terse)) == {0.25}


def test_a_detector_that_was_not_trained_on_the_batch_is_asked(tiny_bank: ForegroundBank) -> None:
    """As where the target is another model than the one in training."""
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    for seed in range(2):
        terse(*batch(seed=seed))
        terse.step(1.0)
    assert terse.metrics()["extra_forwards"] == len(SIZES)  # in the first of two iterations


def test_a_loss_that_is_not_finite_is_not_learned_from(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    train_forward(detector, *terse(*batch()))
    with pytest.warns(UserWarning, match="the loss is inf"):
        terse.step(float("inf"))
    assert remembered(terse) == []
    assert hooks_of(detector) == 0
    # In this iteration it does not move: pasted at random, there is nothing to foretell.
    train_forward(detector, *terse(*batch(seed=1)))
    terse.step(1.0)
    assert remembered(terse) == []


def test_in_evaluation_mode_the_model_is_let_go(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    terse(*batch())
    assert hooks_of(detector) == 4
    terse.eval()(*batch())
    assert hooks_of(detector) == 0


def test_a_model_that_is_listened_to_can_be_copied_and_pickled(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    images, targets = terse(*batch())
    for other in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        train_forward(other, images, targets)
        listeners = [hook.__self__ for hook in other._forward_pre_hooks.values()]
        assert [listener.forwards for listener in listeners if hasattr(listener, "forwards")] == []
    terse.step(1.0)
    assert terse.metrics()["extra_forwards"] == len(SIZES)  # the copies were not heard


def test_a_terse_that_is_given_up_lets_the_model_go(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    terse(*batch())
    assert hooks_of(detector) == 4
    del terse
    gc.collect()
    assert hooks_of(detector) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_annotated_boxes_are_told_from_proposals_of_low_precision(dtype: torch.dtype) -> None:
    """A detector without a proposal of its own near anything has missed all, under autocast too."""
    detector: Any = make_detector("fasterrcnn")
    images, targets = batch()
    targets = [target | {"boxes": target["boxes"] + 0.3} for target in targets]  # no number of low precision
    far = [target["boxes"] + 1000 for target in targets]
    detector.rpn.forward = lambda *inputs: ([boxes.to(dtype) for boxes in far], {})
    detector.transform = NotResized()
    listener = TorchvisionAdapter(detector, iou_threshold=0.3).listen()
    assert listener is not None
    with torch.autocast("cpu", dtype=dtype):
        train_forward(detector, images, targets)
    assert listener.forwards[0].proposals.boxes.dtype == dtype
    heard = listener.scores(images, targets)
    assert heard is not None
    assert [own.tolist() for own in heard] == [[0.0, 0.0]] * len(SIZES)


def test_good_proposals_of_low_precision_are_not_taken_for_annotated_boxes() -> None:
    detector: Any = make_detector("fasterrcnn")
    take_for(detector, [0.2, 0.7, 0.1])
    images = [torch.rand(3, 160, 160)] * 2
    targets = [{"boxes": torch.tensor([[100.3, 100.3, 140.3, 150.3]]), "labels": torch.ones(1, dtype=torch.long)}] * 2
    good = [target["boxes"] + 0.7 for target in targets]  # half a step to two steps away
    detector.rpn.forward = lambda *inputs: ([boxes.bfloat16() for boxes in good], {})
    detector.transform = NotResized()
    listener = TorchvisionAdapter(detector).listen()
    assert listener is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train_forward(detector, images, targets)
    heard = listener.scores(images, targets)
    assert heard is not None
    assert torch.cat(heard).tolist() == pytest.approx([0.7] * 2, abs=0.01)


def test_a_listener_that_cannot_be_made_leaves_nothing_behind(tiny_bank: ForegroundBank) -> None:
    detector: Any = make_detector("fasterrcnn")
    pooler = detector.roi_heads.box_roi_pool
    del detector.roi_heads.box_roi_pool
    detector.roi_heads.box_roi_pool = lambda *inputs: pooler(*inputs)  # no module
    terse = critic(tiny_bank, detector)
    with pytest.warns(UserWarning, match="could not be heard"):
        images, targets = terse(*batch())
    assert hooks_of(detector) == 0
    train_forward(detector, images, targets)
    terse.step(1.0)
    assert terse.metrics()["extra_forwards"] == len(SIZES)


def test_a_run_that_could_not_hear_is_resumed_as_one_that_asks(tiny_bank: ForegroundBank) -> None:
    def train(terse: Terse, detector: Any, first: int, last: int) -> None:
        for seed in range(first, last):
            train_forward(detector, *terse(*make_batch(seed, sizes=SIZES)))
            terse.step(1.0)

    detector: Any = make_detector("fasterrcnn")
    whole = critic(tiny_bank, detector)
    pooler = detector.roi_heads.box_roi_pool
    del detector.roi_heads.box_roi_pool
    detector.roi_heads.box_roi_pool = lambda *inputs: pooler(*inputs)  # no module
    with pytest.warns(UserWarning, match="could not be heard"):
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


def test_a_state_may_be_loaded_in_the_middle_of_an_iteration(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    train_forward(detector, *terse(*batch()))
    terse.step(1.0)
    state = copy.deepcopy(terse.state_dict())
    terse(*batch())
    terse.load_state_dict(state)
    assert hooks_of(detector) == 0
    terse.step(1.0)
    terse(*batch())
    terse.step(1.0)


def spoil_call(detector: Any) -> None:
    """Its head is called by names."""

    def forward(images: Any, targets: Any) -> Any:
        shown, targets = detector.transform(images, targets)
        features = {"0": detector.backbone(shown.tensors)}
        proposals, losses = detector.rpn(shown, features, targets)
        found = detector.roi_heads(
            features=features, proposals=proposals, image_shapes=shown.image_sizes, targets=targets
        )
        return losses | found[1]

    detector.forward = forward


def spoil_targets(detector: Any) -> None:
    """Its targets are another argument than usual."""
    forward = detector.forward
    detector.forward = lambda images, extra, targets: forward(images, targets)


@pytest.mark.parametrize("spoil", [spoil_call, spoil_targets])
def test_a_model_that_is_called_in_a_way_of_its_own_is_asked_and_that_is_said(
    tiny_bank: ForegroundBank, spoil: Callable[[Any], None]
) -> None:
    detector: Any = make_detector("fasterrcnn")
    spoil(detector)
    terse = critic(tiny_bank, detector, move_every=1)
    for seed in range(3):
        images, targets = terse(*batch(seed=seed))
        with isolated_global_rng(0):
            losses = detector(images, targets) if spoil is spoil_call else detector(images, None, targets)
        context = pytest.warns(UserWarning, match="could not be heard") if seed == 0 else nullcontext()
        with context:
            ask_by_own_way(terse, detector, losses)
        assert hooks_of(detector) == 0
    assert len(remembered(terse)) > 0


def ask_by_own_way(terse: Terse, detector: Any, losses: Any) -> None:
    """In evaluation the model is called as it was made."""
    mine, detector.forward = detector.forward, type(detector).forward.__get__(detector)
    try:
        terse.step(sum(loss.detach() for loss in losses.values()))
    finally:
        detector.forward = mine


def test_what_is_heard_to_be_unknown_throughout_is_asked(tiny_bank: ForegroundBank) -> None:
    detector: Any = make_detector("fasterrcnn")
    detector.roi_heads.fg_bg_sampler.positive_fraction = 0.0
    terse = critic(tiny_bank, detector)
    images, targets = terse(*batch())
    detector.rpn.forward = lambda *inputs: ([target["boxes"] + 2 for target in targets], {})
    detector.transform = NotResized()
    train_forward(detector, images, targets)
    del detector.rpn.forward
    terse.step(1.0)
    assert terse.metrics()["extra_forwards"] == len(SIZES)


def test_batches_are_let_go_once_their_hardness_is_known(tiny_bank: ForegroundBank) -> None:
    detector = make_detector("fasterrcnn")
    terse = critic(tiny_bank, detector)
    for seed in range(2):
        train_forward(detector, *terse(*batch(seed=seed)))
    assert [turn.composites is None for turn in terse.trainer.feedback] == [True, False]
    # Nobody asks in an iteration in which it does not move.
    deaf = Terse(tiny_bank, Critic(update_interval=2), paste=every_image(), model=make_detector("retinanet"))
    deaf(*batch())
    deaf.step(1.0)
    for seed in range(2):
        deaf(*batch(seed=seed))
    assert len(deaf._turns) == 1

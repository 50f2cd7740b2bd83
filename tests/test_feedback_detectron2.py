"""Hardness recorded from the training forward of Detectron2's one-stage detectors, and models that give none."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import counts_of
from feedback_reference import (
    assert_same_training,
    best_scores,
    counted_reads,
    decoded_deltas,
    decoded_distances,
    refined_scores,
    trained,
)
from frameworks import QUIET_DETECTRON2, need_detectron2

need_detectron2()
from detectron2.engine import DefaultTrainer
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import BitMasks
from detectron2.utils.events import EventStorage
from detectron2_factories import bank, dataset, item, tiny_cfg, trainer_with_hook  # noqa: F401 - fixtures
from test_detectron2_models import lazy_fcos
from torch import Tensor, nn

from terse_aug import ForegroundBank, TerseWarning
from terse_aug_detectron2 import Detectron2Adapter
from terse_aug_detectron2.batch import Needs, from_samples, to_samples

pytestmark = QUIET_DETECTRON2

NAMES = ("retinanet", "fcos")
IOU = (0.1, 0.2, 0.4)
MANY = tuple(0.01 * step for step in range(1, 100))


def detector_of(name: str, dataset: str, folder: Path) -> Any:
    """A detector whose random predictions differ from each other."""
    torch.manual_seed(0)
    model: Any = lazy_fcos() if name == "fcos" else DefaultTrainer.build_model(tiny_cfg("retinanet", dataset, folder))
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.train()


def batch() -> tuple[list[dict[str, Any]], list[Tensor], list[Any]]:
    items = [item(3), item(2, (64, 48))]
    images, targets = to_samples(items, torch.device("cpu"), Needs())
    return items, images, targets


def by_place(outputs: list[Tensor], number: int, channels: int) -> Tensor:
    """Outputs of convolutions of an image as rows, in the order level, row, column, anchor."""
    levels = [one[number].detach().double() for one in outputs]
    return torch.cat([one.unflatten(0, (-1, channels)).permute(2, 3, 0, 1).reshape(-1, channels) for one in levels])


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_score_is_the_best_of_the_boxes_that_overlap_an_object(
    name: str, dataset: str, tmp_path: Path
) -> None:
    model = detector_of(name, dataset, tmp_path)
    items, images, targets = batch()
    kept: dict[str, Any] = {}
    for part in ("head", "anchor_generator"):
        getattr(model, part).register_forward_hook(lambda module, inputs, out, part=part: kept.update({part: out}))
    recorder = Detectron2Adapter(model, IOU).record_forward()
    assert recorder is not None
    with EventStorage(0):
        model(from_samples(items, images, targets))
    with counted_reads() as reads:
        recorded = recorder.scores(images, targets)
    assert reads == []
    assert recorded is not None
    expected = []
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        logits, deltas = (by_place(kept["head"][part], number, size) for part, size in ((0, 2), (1, 4)))
        anchors = torch.cat([boxes.tensor for boxes in kept["anchor_generator"]]).double()
        scores = logits.sigmoid()
        if name == "fcos":
            scores = (scores * by_place(kept["head"][2], number, 1).sigmoid()).sqrt()
        boxes = decoded_distances(anchors, deltas) if name == "fcos" else decoded_deltas(anchors, deltas)
        limits = torch.tensor([image.shape[2], image.shape[1]] * 2)
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        expected += best_scores(boxes, scores, target["boxes"], target["labels"], IOU)
    assert torch.cat(recorded).tolist() == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 4) for value in expected}) > 2


@pytest.mark.parametrize("name", NAMES)
def test_recording_changes_neither_losses_nor_gradients_nor_the_random_state(
    name: str, dataset: str, tmp_path: Path
) -> None:
    items, images, targets = batch()
    found = []
    for record in (False, True):
        model = detector_of(name, dataset, tmp_path)
        adapter = Detectron2Adapter(model, IOU)
        with EventStorage(0):
            losses = lambda model=model: list(model(from_samples(items, images, targets)).values())  # noqa: E731
            found.append(trained(model, losses, adapter.record_forward if record else None))
    assert_same_training(*found)


@pytest.mark.parametrize("name", ["mask_fpn", "cascade_fpn"])
def test_proposals_are_compared_as_the_head_refines_them(name: str, dataset: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = DefaultTrainer.build_model(tiny_cfg(name, dataset, tmp_path)).train()
    predictor = model.roi_heads.box_predictor
    predictor = predictor[0] if isinstance(predictor, nn.ModuleList) else predictor
    with torch.no_grad():
        for part in (predictor.cls_score, predictor.bbox_pred):
            part.weight.zero_()
            part.bias.copy_(torch.tensor([4.0, -3, 2, -1, -2, 3, -1, 2])[: len(part.bias)])
    batch = [item(count, gt_masks=BitMasks(torch.ones(count, 40, 50).bool())) for count in (2, 1)]
    images, targets = to_samples(batch, torch.device("cpu"), Needs(masks=True))
    kept: dict[str, list[Any]] = {"boxes": [], "output": []}
    pooler = model.roi_heads.box_pooler
    pooler.register_forward_pre_hook(lambda module, inputs: kept["boxes"].append([own.tensor for own in inputs[1]]))
    predictor.register_forward_hook(lambda module, inputs, output: kept["output"].append(output))
    recorder = Detectron2Adapter(model, MANY).record_forward()
    assert recorder is not None
    with EventStorage(0):
        model(from_samples(batch, images, targets))
    boxes = kept["boxes"][0]
    logits, regression = (own.detach().split([len(own) for own in boxes]) for own in kept["output"][0])
    expected = []
    for number, target in enumerate(targets):
        predicted = (boxes[number], logits[number].softmax(1), regression[number])
        expected += refined_scores(*predicted, target["boxes"], target["labels"], (40, 50), MANY)
    recorded = torch.cat(recorder.scores(images, targets) or [])
    known = ~recorded.isnan()
    assert recorded[known].tolist() == pytest.approx(torch.tensor(expected)[known].tolist(), abs=1e-4)
    assert float(recorded[known].max()) > 0


class OtherInference(GeneralizedRCNN):
    """Its inference fails."""

    def inference(self, batched_inputs: Any) -> Any:
        raise KeyError("proposals")


class OtherLosses(GeneralizedRCNN):
    """Its losses are a list."""

    def forward(self, batched_inputs: Any) -> Any:
        found = super().forward(batched_inputs)
        return [(name, loss) for name, loss in found.items()] if self.training else found


class AddsUpLosses(DefaultTrainer):
    def run_step(self) -> None:
        inner = self._trainer
        losses = self.model(next(inner._data_loader_iter))
        sum(loss for _, loss in (losses.items() if isinstance(losses, dict) else losses)).backward()
        inner.optimizer.step()
        inner.optimizer.zero_grad()


@pytest.mark.parametrize("policy", ["random", "critic", "best-of-n"])
@pytest.mark.parametrize("kind", [OtherInference, OtherLosses])
def test_a_model_with_another_inference_or_form_of_loss_trains(
    kind: type[nn.Module],
    policy: str,
    dataset: str,
    bank: ForegroundBank,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank, policy=policy)
    cfg.SOLVER.MAX_ITER = 2
    trainer, hook = trainer_with_hook(cfg, AddsUpLosses)
    model: Any = trainer.model
    model.__class__ = kind
    if kind is OtherInference:  # not recorded
        model.roi_heads.box_predictor.__class__ = type("Other", (type(model.roi_heads.box_predictor),), {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    source = "from an extra forward" if kind is OtherInference else "recorded from the training forward"
    logged = [text for text in caplog.messages if text.startswith("hardness: ")]
    assert [text.startswith(f"hardness: {source}") for text in logged] == [True] * (policy == "critic")
    failed = (kind, policy) in ((OtherInference, "critic"), (OtherLosses, "best-of-n"))
    texts = sorted(str(one.message) for one in caught if one.category is TerseWarning)
    expected = [
        r"an extra forward .* failed \((KeyError: 'proposals'|AttributeError: .*)\).* pastes are random"
    ] * failed
    expected += ["the detector's loss cannot be read"] * (kind is OtherLosses)
    assert len(texts) == len(expected)
    assert all(re.match(pattern, text) for pattern, text in zip(expected, texts, strict=True))
    counts = counts_of(hook.terse, "iterations", "feedback_failed", "hooks_failed", "updates")
    assert counts == [2, int(failed), 0, 2 * int((kind, policy) == (OtherLosses, "critic"))]
    assert ("loss" in hook.terse.metrics()) is (kind is OtherInference)

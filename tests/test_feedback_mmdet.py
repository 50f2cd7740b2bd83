"""Hardness recorded from the training forward of MMDetection's models, beside that of their own predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import counts_of
from feedback_reference import assert_same_training, best_scores, counted_reads, refined_scores, trained
from frameworks import QUIET_MMDET, need_mmdet

need_mmdet()
from mmdet.registry import MODELS as MODELS_OF_MMDET
from mmdet_factories import (  # noqa: F401 - fixtures
    CLASSES,
    bank,
    data,
    made,
    narrowed,
    pipeline,
    settings,
    shipped,
)
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from torch import Tensor

from terse_aug import ForegroundBank, TerseWarning
from terse_aug.models import PredictionRecorder, RoIHeadRecorder, isolated_forward
from terse_aug_mmdet import MMDetAdapter
from terse_aug_mmdet.model import _batch

pytestmark = QUIET_MMDET

ONE_STAGE = {
    "AutoAssign": "autoassign/autoassign_r50-caffe_fpn_1x_coco.py",
    "BoxInst": "boxinst/boxinst_r50_fpn_ms-90k_coco.py",
    "CenterNet": "centernet/centernet_r18_8xb16-crop512-140e_coco.py",
    "CenterNet, update": "centernet/centernet-update_r50-caffe_fpn_ms-1x_coco.py",
    "CondInst": "condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py",
    "FCOS, normalized": "fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py",
    "FoveaBox": "foveabox/fovea_r50_fpn_4xb4-1x_coco.py",
    "FSAF": "fsaf/fsaf_r50_fpn_1x_coco.py",
    "Guided Anchoring": "guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py",
    "Libra RetinaNet": "libra_rcnn/libra-retinanet_r50_fpn_1x_coco.py",
    "PAA": "paa/paa_r50_fpn_1x_coco.py",
    "RepPoints": "reppoints/reppoints-moment_r50_fpn_1x_coco.py",
    "SABL": "sabl/sabl-retinanet_r50_fpn_1x_coco.py",
    "VFNet": "vfnet/vfnet_r50_fpn_1x_coco.py",
    "YOLACT": "yolact/yolact_r50_1xb8-55e_coco.py",
    "YOLOF": "yolof/yolof_r50-c5_8xb8-1x_coco.py",
}
WITH_QUERIES = {
    "Conditional DETR": "conditional_detr/conditional-detr_r50_8xb2-50e_coco.py",
    "DAB-DETR": "dab_detr/dab-detr_r50_8xb2-50e_coco.py",
    "DDQ": "ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py",
    "Deformable DETR": "deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py",
    "DETR": "detr/detr_r50_8xb2-150e_coco.py",
    "DINO": "dino/dino-4scale_r50_8xb2-12e_coco.py",
    "QueryInst": "queryinst/queryinst_r50_fpn_1x_coco.py",
    "Sparse R-CNN": "sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py",
}
TWO_STAGES = {
    "Double-Head": "double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py",
    "Grid R-CNN": "grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco.py",
    "HTC": "htc/htc-without-semantic_r50_fpn_1x_coco.py",
    "Libra R-CNN": "libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py",
}
QUERIES = 20
SIDE = 96
IOU = dict.fromkeys(("RepPoints", "CenterNet, update", "CondInst", "BoxInst"), (1e-3, 0.01))
"""Random boxes hardly overlap an object by half."""


def model_of(config: str) -> Any:
    """A model of one of MMDetection's configs, whose random predictions differ from each other."""
    cfg = narrowed(shipped(config))
    _set(cfg, num_queries=QUERIES, num_proposals=QUERIES, dropout=0.0, attn_drop=0.0)
    if cfg.type in ("CondInst", "BoxInst"):
        cfg.mask_head.num_layers = 3
    if cfg.type == "HybridTaskCascade":
        for head in cfg.roi_head.mask_head:
            head.conv_out_channels = 256
    if cfg.type in ("SparseRCNN", "QueryInst"):
        head = cfg.roi_head
        head.update(num_stages=2, stage_loss_weights=[1, 1], bbox_head=head.bbox_head[:2])
        if "mask_head" in head:
            head.mask_head = head.mask_head[:2]
        cfg.train_cfg.rcnn = cfg.train_cfg.rcnn[:2]
    cfg.data_preprocessor.pop("batch_augments", None)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model: Any = MODELS_OF_MMDET.build(cfg).train()
    model.init_weights()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in (model.roi_head if hasattr(model, "roi_head") else model.bbox_head).named_parameters():
            parameter.add_(torch.randn_like(parameter) * _noise(cfg.type, name))
        if hasattr(getattr(model, "bbox_head", None), "wh_head"):
            model.bbox_head.wh_head[-1].bias.fill_(4.0)
        if cfg.type == "RetinaNet" and hasattr(model.bbox_head, "conv_loc"):  # some anchors are left out
            model.bbox_head.conv_loc.weight.mul_(100)
            model.bbox_head.conv_loc.bias.zero_()
            model.bbox_head.loc_filter_thr = 0.54
    MessageHub.get_current_instance().update_info("iter", 0)
    return model


def _noise(kind: str, name: str) -> float:
    """What is added to a parameter, so that scores differ from each other but not all are 0 or 1."""
    if "cls" in name or "heatmap" in name:
        return {"YOLACT": 1e-4, "RetinaNet": 0.01, "YOLOF": 0.005}.get(kind, 0.05)
    return 0.05 if "reppoints" in name else 0.002


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(2)
    images, targets = [], []
    for _ in range(2):
        corner = torch.rand(3, 2, generator=generator) * SIDE / 2
        boxes = torch.cat([corner, corner + 15 + torch.rand(3, 2, generator=generator) * SIDE / 3], 1)
        places = torch.arange(SIDE)
        rows, columns = ((places >= boxes[:, low, None]) & (places < boxes[:, low + 2, None]) for low in (1, 0))
        masks = rows[:, :, None] & columns[:, None]
        targets.append({"boxes": boxes, "labels": torch.tensor([0, 1, 0]), "masks": masks})
        images.append(torch.rand(3, SIDE, SIDE, generator=generator) * 255)
    return images, targets


def losses_of(model: Any, images: Any, targets: Any) -> list[Tensor]:
    found = model(**model.data_preprocessor(_batch(images, targets), True), mode="loss")
    return [one for own in found.values() for one in (own if isinstance(own, list) else [own])]


def recorded_scores(model: Any, images: Any, targets: Any, iou: tuple[float, ...], kind: type) -> list[float]:
    recorder = MMDetAdapter(model, len(CLASSES), iou_thresholds=iou).record_forward()
    assert isinstance(recorder, kind)
    with isolated_forward(model, True):
        losses_of(model, images, targets)
    with counted_reads() as reads:
        scores = recorder.scores(images, targets)
    recorder.close()
    assert scores is not None
    if kind is PredictionRecorder:  # the boxes are compared, which MMDetection has copied
        assert reads == ["_local_scalar_dense"]
    return torch.cat(scores).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ONE_STAGE)
def test_the_recorded_score_is_that_of_the_models_own_prediction_without_suppression(name: str) -> None:
    model = model_of(ONE_STAGE[name])
    images, targets = batch()
    recorded = recorded_scores(model, images, targets, IOU.get(name, (0.05, 0.1)), PredictionRecorder)
    assert len({f"{score:.4g}" for score in recorded} - {"0"}) > 1
    nothing = {"type": "nms", "iou_threshold": 1.0}
    model.bbox_head.test_cfg.update(score_thr=-1.0, nms_pre=100_000, max_per_img=100_000, nms=nothing)
    model.bbox_head.test_cfg.update(topk=100, top_k=100_000, iou_thr=1.0)
    model.bbox_head.with_score_voting = False
    if name == "Guided Anchoring":  # its masked convolution needs a GPU in evaluation mode
        model.bbox_head.forward = _outputs_in_training(model.bbox_head)
    adapter = MMDetAdapter(model, len(CLASSES), IOU.get(name, (0.05, 0.1)))
    predicted = adapter.object_scores(images, targets)
    assert recorded == pytest.approx(torch.cat(predicted).tolist(), abs=1e-4)


@pytest.mark.parametrize("name", WITH_QUERIES)
def test_the_recorded_score_is_that_of_the_best_query(name: str) -> None:
    model = model_of(WITH_QUERIES[name])
    images, targets = batch()
    recorded = recorded_scores(model, images, targets, (0.02, 0.04), PredictionRecorder)
    assert len({f"{score:.4g}" for score in recorded} - {"0"}) > 1
    # In evaluation mode there are neither denoising nor dense queries.
    head = model.roi_head.bbox_head[-1] if hasattr(model, "roi_head") else model.bbox_head
    kept: dict[str, Any] = {}
    with isolated_forward(model, False):
        data = model.data_preprocessor(_batch(images, targets), False)
        head.register_forward_hook(lambda module, inputs, output: kept.update(head=output))
        if hasattr(model, "roi_head"):
            refine = head.refine_bboxes
            head.refine_bboxes = lambda *own, **more: kept.setdefault("refined", refine(*own, **more))
            model.roi_head.mask_head = None
        model.predict(data["inputs"], data["data_samples"], rescale=False)
    logits, boxes = kept["head"][:2]
    expected = []
    for number, target in enumerate(targets):
        if hasattr(model, "roi_head"):
            own_logits, own_boxes = logits[number], kept["refined"][number].bboxes
        else:
            own_logits, (x, y, width, height) = logits[-1, number], boxes[-1, number].unbind(1)
            own_boxes = SIDE * torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
            own_boxes = own_boxes.clamp(0, SIDE)
        assert len(own_boxes) == QUERIES
        scores = own_logits.sigmoid() if head.loss_cls.use_sigmoid else own_logits.softmax(1)
        expected += best_scores(own_boxes, scores, target["boxes"], target["labels"], (0.02, 0.04))
    assert recorded == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", TWO_STAGES)
def test_the_recorded_score_is_the_probability_of_the_object_s_class(name: str) -> None:
    model = model_of(TWO_STAGES[name])
    heads = model.roi_head.bbox_head
    layer = (heads[0] if isinstance(heads, torch.nn.ModuleList) else heads).fc_cls
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([0.7, 0.1, 0.2]).log())
    recorded = recorded_scores(model, *batch(), (1e-6,), RoIHeadRecorder)
    assert recorded == pytest.approx([0.7, 0.1, 0.7] * 2, abs=1e-5)


@pytest.mark.parametrize("name", ["Libra R-CNN", "HTC"])
def test_proposals_are_compared_as_the_head_refines_them(name: str) -> None:
    model = model_of(TWO_STAGES[name])
    images, targets = batch()
    pooler, head = model.roi_head.bbox_roi_extractor, model.roi_head.bbox_head
    if isinstance(head, torch.nn.ModuleList):
        pooler, head = pooler[0], head[0]
    with torch.no_grad():
        head.fc_reg.weight.mul_(100)
        head.fc_cls.weight.mul_(3)
    kept: dict[str, list[Any]] = {"rois": [], "output": []}
    pooler.register_forward_pre_hook(lambda module, inputs: kept["rois"].append(inputs[1].detach()))
    head.register_forward_hook(lambda module, inputs, output: kept["output"].append(output))
    thresholds = (0.1, 0.2, 0.4)
    recorded = recorded_scores(model, images, targets, thresholds, RoIHeadRecorder)
    expected = []
    for number, target in enumerate(targets):
        own = kept["rois"][0][:, 0] == number
        logits, regression = (output.detach()[own] for output in kept["output"][0])
        predicted = (kept["rois"][0][own, 1:], logits.softmax(1), regression)
        expected += refined_scores(*predicted, target["boxes"], target["labels"], (SIDE, SIDE), thresholds)
    known = [place for place, score in enumerate(recorded) if score == score]
    assert [recorded[place] for place in known] == pytest.approx([expected[place] for place in known], abs=1e-4)
    assert max(recorded[place] for place in known) > 0


@pytest.mark.parametrize(
    "config", [ONE_STAGE["VFNet"], ONE_STAGE["CenterNet"], WITH_QUERIES["DDQ"], WITH_QUERIES["Sparse R-CNN"]]
)
def test_recording_changes_neither_losses_nor_gradients_nor_the_random_state(config: str) -> None:
    images, targets = batch()
    found = []
    for record in (False, True):
        model = model_of(config)
        adapter = MMDetAdapter(model, len(CLASSES))
        losses = lambda model=model: losses_of(model, images, targets)  # noqa: E731
        found.append(trained(model, losses, adapter.record_forward if record else None))
    assert_same_training(*found)


@pytest.mark.parametrize("recorded", [True, False])
def test_centernet_trains_with_a_critic_also_if_its_predictions_fail(
    recorded: bool, data: Path, bank: ForegroundBank, tmp_path: Path
) -> None:
    terse = settings(bank)
    steps = pipeline({"type": "TersePaste", **terse}, masks=False)
    model = narrowed(shipped(ONE_STAGE["CenterNet"]))
    runner, hook = made(data, tmp_path, 2, terse, model=model, pipeline=steps)
    head: Any = runner.model.bbox_head
    predict_by_feat = {"predict_by_feat": lambda *own, **more: {}["border"]}
    head.__class__ = type("OtherHead", (type(head),), {} if recorded else predict_by_feat)
    if recorded:
        runner.train()
    else:
        with pytest.warns(TerseWarning, match=r"extra forward .*KeyError: 'border'.* pastes are random"):
            runner.train()
    names = ("iterations", "updates", "extra_forwards", "feedback_failed", "hooks_failed")
    assert counts_of(hook.terse, *names) == ([2, 2, 0, 0, 0] if recorded else [2, 0, 0, 1, 0])


def test_a_subclass_that_predicts_in_another_way_is_not_recorded() -> None:
    model = model_of(ONE_STAGE["FoveaBox"])
    kind = type(model.bbox_head)
    model.bbox_head.__class__ = type("SameHead", (kind,), {"loss_by_feat": lambda *own: {}})
    assert MMDetAdapter(model, len(CLASSES)).record_forward() is not None
    model.bbox_head.__class__ = type("OtherHead", (kind,), {"predict_by_feat": lambda *own: []})
    assert MMDetAdapter(model, len(CLASSES)).record_forward() is None


def _outputs_in_training(head: Any) -> Any:
    forward = type(head).forward

    def outputs(features: Any) -> Any:
        head.train()
        found = forward(head, features)
        head.eval()
        return found

    return outputs


def _set(node: Any, **values: Any) -> None:
    """Set values wherever they are named."""
    for key, value in list(node.items()) if isinstance(node, dict) else []:
        if key in values and not isinstance(value, dict):
            node[key] = values[key]
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else []:
        _set(part, **values)

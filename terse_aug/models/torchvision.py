"""Torchvision's detectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.ssd import SSD

from terse_aug.models.base import IOU_THRESHOLDS, Detections, DetectorAdapter
from terse_aug.models.forward_hooks import Arguments
from terse_aug.models.predictions import PredictionRecorder, Predictions, PredictionSource, levels_of
from terse_aug.models.roi_head import Proposals, RoIHead, RoIHeadRecorder
from terse_aug.structures.annotations import Target
from terse_aug.utils.transfer import constant

_MODEL_FIELDS = ("boxes", "labels", "masks", "keypoints")


class TorchvisionAdapter(DetectorAdapter):
    """A model with torchvision's detection interface: a dictionary of losses in training, predictions otherwise.

    Args:
        model: for example ``torchvision.models.detection.fasterrcnn_resnet50_fpn()``; DistributedDataParallel is
            unwrapped.
        iou_thresholds: see :class:`DetectorAdapter`.
    """

    def __init__(self, model: nn.Module, iou_thresholds: Sequence[float] = IOU_THRESHOLDS) -> None:
        super().__init__(model, iou_thresholds)
        self.first_label, self.label_limit = _label_range(self.model)

    def losses(self, images: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        """See :class:`BaseAdapter`."""
        fields = [{name: target[name] for name in _MODEL_FIELDS if name in target} for target in targets]
        losses: Mapping[str, Tensor] = self.model(list(images), fields)
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    def detections(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Detections]:
        """See :class:`DetectorAdapter`."""
        return [Detections(found["boxes"], found["labels"], found["scores"]) for found in self.model(list(images))]

    def record_forward(self) -> RoIHeadRecorder | PredictionRecorder | None:
        """See :class:`RecordsTrainingForward`; for torchvision's ``roi_heads`` (Faster, Mask, Keypoint R-CNN),
        RetinaNet, FCOS and SSD."""
        for kind, decode in _DENSE.items():
            # A subclass that predicts in another way is not recorded.
            if getattr(type(self.model), "postprocess_detections", None) is kind.postprocess_detections:
                return PredictionRecorder(_source(self.model, decode), self.iou_thresholds)
        heads: Any = getattr(self.model, "roi_heads", None)
        if type(heads) is not RoIHeads:
            return None
        roi_head = RoIHead(
            model=self.model,
            annotated_boxes=_annotated_boxes,
            pooler=heads.box_roi_pool,
            sampled_proposals=_proposals,
            predictor=heads.box_predictor,
            probabilities=lambda output: output[0].detach().float().softmax(-1),
            refined=lambda output, boxes: _refined(heads.box_coder, output[1].float(), boxes.float()),
            head=heads,
            all_proposals=_proposals,
        )
        return RoIHeadRecorder(roi_head, self.iou_thresholds)


def _annotated_boxes(inputs: Arguments, keywords: Mapping[str, Any]) -> list[Tensor]:
    targets = keywords["targets"] if "targets" in keywords else inputs[1]
    return [target["boxes"] for target in targets]


def _proposals(inputs: Arguments) -> Proposals:
    """From the arguments of the pooler or of the head: features, boxes, sizes."""
    return Proposals.by_image(inputs[1], inputs[2])


def _refined(coder: Any, regression: Tensor, proposals: Tensor) -> Tensor:
    """As ``BoxCoder.decode_single``, which waits for the device, since it copies constants to it.

    Args:
        coder: with the weights.
        regression: ``[R, K * 4]``.
        proposals: ``[R, 4]``.
    """
    by_class = regression.view(len(regression), regression.shape[1] // 4, 4)
    shift, growth = torch.split(by_class / constant(tuple(coder.weights), regression.device), 2, 2)
    size = (proposals[:, 2:] - proposals[:, :2])[:, None]
    center = torch.addcmul(proposals[:, None, :2] + size / 2, shift, size)
    half = growth.clamp(max=coder.bbox_xform_clip).exp() * (size / 2)
    return torch.cat([center - half, center + half], 2).flatten(1)


def _source(model: Any, decode: Callable[[Mapping[str, Any]], Predictions]) -> PredictionSource:
    outputs = {
        "sizes": (model.transform, lambda output: output[0].image_sizes),
        "head": (model.head, lambda output: output),
        "anchors": (model.anchor_generator, torch.stack),
    }
    return PredictionSource(model, _annotated_boxes, outputs, lambda kept: decode({**kept, "coder": model.box_coder}))


def _retinanet(kept: Mapping[str, Any]) -> Predictions:
    boxes = _decoded(kept["coder"].decode_single, kept)
    return Predictions(boxes, levels_of(kept["head"]["cls_logits"]), sizes=kept["sizes"])


def _fcos(kept: Mapping[str, Any]) -> Predictions:
    head = kept["head"]
    quality = head["bbox_ctrness"].float().sigmoid()[..., 0]
    boxes = _decoded(kept["coder"].decode, kept)
    return Predictions(boxes, levels_of(head["cls_logits"]), quality=quality, exponent=0.5, sizes=kept["sizes"])


def _ssd(kept: Mapping[str, Any]) -> Predictions:
    boxes = _decoded(kept["coder"].decode_single, kept)
    return Predictions(boxes, levels_of(kept["head"]["cls_logits"]), "softmax", sizes=kept["sizes"])


def _decoded(decode: Callable[[Tensor, Tensor], Tensor], kept: Mapping[str, Any]) -> Tensor:
    """Boxes ``[B, Q, 4]`` of the head's regression."""
    regression, anchors = kept["head"]["bbox_regression"].float(), kept["anchors"].float()
    return decode(regression.flatten(0, 1), anchors.flatten(0, 1)).view_as(regression)


_DENSE: Mapping[Any, Callable[[Mapping[str, Any]], Predictions]] = {RetinaNet: _retinanet, FCOS: _fcos, SSD: _ssd}


def _label_range(model: nn.Module) -> tuple[int, int | None]:
    """First label of an object and limit of the labels, from the model's head."""
    heads = getattr(model, "roi_heads", None)
    score = getattr(getattr(heads, "box_predictor", None), "cls_score", None)
    if isinstance(score, nn.Linear):
        return 1, score.out_features
    classification = getattr(getattr(model, "head", None), "classification_head", None)
    if isinstance(columns := getattr(classification, "num_columns", None), int):  # SSD: softmax with background at 0
        return 1, columns
    if isinstance(classes := getattr(classification, "num_classes", None), int):  # RetinaNet, FCOS: sigmoids
        return 0, classes
    return 0, None

"""Detectron2's detectors."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling import FCOS, GeneralizedRCNN, PanopticFPN, ProposalNetwork, RetinaNet, SemanticSegmentor
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    ROIHeads,
    StandardROIHeads,
)
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from terse_aug.models import (
    IOU_THRESHOLDS,
    Detections,
    DetectorAdapter,
    PredictionRecorder,
    Predictions,
    PredictionSource,
    Proposals,
    RoIHead,
    RoIHeadRecorder,
    conv_levels,
    flat_levels,
)
from terse_aug_detectron2.batch import Needs, from_samples

_LOGGER = logging.getLogger("detectron2.terse_aug")
_NO_INSTANCES = {"instances": Instances((0, 0))}


class Detectron2Adapter(DetectorAdapter):
    """A model with Detectron2's interface: dictionaries in, a dictionary of losses or predictions out.

    The extra forwards have an event storage of their own: they log nothing.

    Args:
        model: as a trainer has it; DistributedDataParallel is unwrapped.
        iou_thresholds: see :class:`terse_aug.models.DetectorAdapter`.

    Raises:
        ValueError: a panoptic or semantic segmentation model, or one that only proposes boxes.
    """

    first_label = 0

    def __init__(self, model: nn.Module, iou_thresholds: Sequence[float] = IOU_THRESHOLDS) -> None:
        super().__init__(model, iou_thresholds)
        if isinstance(self.model, ProposalNetwork):
            raise ValueError("ProposalNetwork proposes boxes without classes, which have no hardness; not supported")
        if isinstance(self.model, PanopticFPN | SemanticSegmentor) or "Panoptic" in type(self.model).__name__:
            raise ValueError(
                f"{type(self.model).__name__} learns from semantic maps, which pasting does not correct: panoptic and "
                "semantic segmentation are not supported"
            )
        self.label_limit = _classes(self.model)
        self.needs = _needs(self.model)

    def forward_context(self) -> EventStorage:
        """An event storage of its own."""
        return EventStorage(1)

    def losses(self, images: Sequence[Tensor], targets: Sequence[Any]) -> Tensor:
        """See :class:`terse_aug.models.BaseAdapter`."""
        with _loss_normalizer_restored(self.model):
            return total(self.model(from_samples([_NO_INSTANCES] * len(images), images, targets)))

    def detections(self, images: Sequence[Tensor], targets: Sequence[Any]) -> list[Detections]:
        """See :class:`terse_aug.models.DetectorAdapter`."""
        batch = [{"image": image, "height": image.shape[-2], "width": image.shape[-1]} for image in images]
        if getattr(type(self.model), "inference", None) is GeneralizedRCNN.inference:  # no masks of the image's size
            found = self.model.inference(batch, do_postprocess=False)
        else:
            found = [result["instances"] for result in self.model(batch)]
        return [Detections(own.pred_boxes.tensor, own.pred_classes, own.scores) for own in found]

    def record_forward(self) -> RoIHeadRecorder | PredictionRecorder | None:
        """See :class:`terse_aug.models.RecordsTrainingForward`; for Fast R-CNN heads and a cascade's first stage,
        RetinaNet and FCOS."""
        # A subclass that predicts in another way is not recorded.
        inference = getattr(type(self.model), "forward_inference", None)
        if inference in (RetinaNet.forward_inference, FCOS.forward_inference):
            return PredictionRecorder(_dense_source(self.model), self.iou_thresholds)
        heads: Any = getattr(self.model, "roi_heads", None)
        pooler = getattr(heads, "box_pooler", getattr(heads, "pooler", None))
        predictor: Any = getattr(heads, "box_predictor", None)
        if isinstance(predictor, nn.ModuleList):
            predictor = predictor[0]
        if not _pools_once(heads) or pooler is None or type(predictor) is not FastRCNNOutputLayers:
            return None
        roi_head = RoIHead(
            model=self.model,
            annotated_boxes=_annotated_boxes,
            pooler=pooler,
            sampled_proposals=_sampled_proposals,
            predictor=predictor,
            probabilities=_sigmoid if predictor.use_sigmoid_ce else _softmax,
            refined=lambda output, boxes: predictor.box2box_transform.apply_deltas(output[1].float(), boxes.float()),
            head=heads,
            all_proposals=_all_proposals,
        )
        return RoIHeadRecorder(roi_head, self.iou_thresholds)


def _pools_once(heads: Any) -> bool:
    """Whether RoI heads pool their sampled proposals, and nothing else before, by Detectron2's own methods."""
    for kind, methods in _ROI_HEADS.items():
        if isinstance(heads, kind):
            return all(getattr(type(heads), name) is getattr(kind, name) for name in methods)
    return False


_ROI_HEADS: dict[type[ROIHeads], tuple[str, ...]] = {
    CascadeROIHeads: ("forward", "_forward_box", "_run_stage"),
    StandardROIHeads: ("forward", "_forward_box"),
    Res5ROIHeads: ("forward", "_shared_roi_transform"),
}
"""Detectron2's RoI heads, and the methods in which they pool and classify proposals."""


def _annotated_boxes(inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> list[Tensor]:
    batch = keywords["batched_inputs"] if "batched_inputs" in keywords else inputs[0]
    return [item["instances"].gt_boxes.tensor for item in batch]


def _sampled_proposals(inputs: tuple[Any, ...]) -> Proposals:
    return Proposals.by_image([boxes.tensor for boxes in inputs[1]])


def _all_proposals(inputs: tuple[Any, ...]) -> Proposals:
    return Proposals.by_image([instances.proposal_boxes.tensor for instances in inputs[2]])


def _softmax(output: tuple[Tensor, Tensor]) -> Tensor:
    return output[0].detach().float().softmax(-1)


def _sigmoid(output: tuple[Tensor, Tensor]) -> Tensor:
    return output[0].detach().float().sigmoid()


def _dense_source(model: Any) -> PredictionSource:
    outputs = {
        "head": (model.head, lambda output: output),
        "anchors": (model.anchor_generator, lambda output: [boxes.tensor for boxes in output]),
    }

    def decode(kept: Mapping[str, Any]) -> Predictions:
        logits, deltas, *centerness = kept["head"]
        anchors = torch.cat(kept["anchors"]).float()
        flat = flat_levels(deltas, 4).float()
        boxes = model.box2box_transform.apply_deltas(flat.flatten(0, 1), anchors.repeat(len(flat), 1))
        quality = flat_levels(centerness[0], 1)[..., 0].float().sigmoid() if centerness else None
        levels = conv_levels(logits, model.num_classes)
        return Predictions(boxes.view_as(flat), levels, quality=quality, exponent=0.5 if centerness else 1.0)

    return PredictionSource(model, _annotated_boxes, outputs, decode)


@contextlib.contextmanager
def _loss_normalizer_restored(model: nn.Module) -> Iterator[None]:
    """RetinaNet and FCOS divide their loss by a running mean that every training forward updates."""
    before = vars(model).get("loss_normalizer")
    try:
        yield
    finally:
        vars(model).pop("loss_normalizer", None)
        if before is not None:
            model.loss_normalizer = before


def total(losses: Mapping[str, Tensor] | Tensor) -> Tensor:
    """The sum of the losses of a model, as the trainers compute it."""
    parts = [losses] if isinstance(losses, Tensor) else list(losses.values())
    return torch.stack([part.float().reshape(()) for part in parts]).sum()


def known_total(losses: Any) -> Tensor | None:
    """As :func:`total`; ``None`` for a model whose trainer adds up its losses in another way."""
    try:
        return total(losses)
    except Exception as error:
        _LOGGER.debug("the loss cannot be read", exc_info=error)
        return None


def _needs(model: nn.Module) -> Needs:
    heads = getattr(model, "roi_heads", None)
    keypoints = getattr(heads, "keypoint_head", None) if getattr(heads, "keypoint_on", False) else None
    return Needs(bool(getattr(heads, "mask_on", False)), int(getattr(keypoints, "num_keypoints", 0)))


def _classes(model: nn.Module) -> int | None:
    for part in (getattr(model, "roi_heads", None), model, getattr(model, "head", None)):
        count = getattr(part, "num_classes", None)
        if isinstance(count, int):
            return count
    return None

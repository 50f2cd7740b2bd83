"""Detectron2's detectors as targets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN, PanopticFPN, ProposalNetwork, SemanticSegmentor
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, ROIHeads
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from terse_aug.models import Proposals, RoIHead, RoIHeadRecorder, input_gradients, isolated_forward
from terse_aug.utils.random import isolated_global_rng
from terse_aug_detectron2.batch import Needs, from_samples

_PLAIN = {"instances": Instances((0, 0))}


class Detectron2Adapter:
    """A model with Detectron2's interface: dictionaries in, a dictionary of losses or predictions out.

    Nothing is logged by the passes made here: they have an event storage of their own.

    Args:
        model: as a trainer has it; a DistributedDataParallel wrapper is looked through.
        iou_threshold: a detection belongs to an object if they overlap at least this much.

    Raises:
        ValueError: a panoptic or semantic segmentation model, or one that only proposes boxes.
    """

    first_label = 0

    def __init__(self, model: nn.Module, iou_threshold: float = 0.5) -> None:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        if isinstance(model, ProposalNetwork):
            raise ValueError(
                "ProposalNetwork proposes boxes without classes, whose hardness cannot be told; not supported"
            )
        if isinstance(model, PanopticFPN | SemanticSegmentor) or "Panoptic" in type(model).__name__:
            raise ValueError(
                f"{type(model).__name__} learns from semantic maps, which pasting does not correct: panoptic and "
                "semantic segmentation are not supported"
            )
        self.model: nn.Module = model
        self.iou_threshold = iou_threshold
        self.label_limit = _classes(model)
        self.needs = _needs(model)

    def image_losses(self, images: Sequence[Tensor], targets: Sequence[Any], differentiable: bool = False) -> Tensor:
        """See :class:`terse_aug.models.ModelAdapter`; one forward per image, each with the same draw of proposals."""
        losses = []
        with isolated_forward(self.model, True, differentiable, images[0].device), EventStorage(1):
            for image, target in zip(images, targets, strict=True):
                with isolated_global_rng(0, [image.device]):
                    losses.append(self._loss([image], [target]))
        return torch.stack(losses)

    def input_gradients(
        self, images: Sequence[Tensor], targets: Sequence[Any], loss_scale: float = 1.0
    ) -> tuple[Tensor, list[Tensor]]:
        """See :class:`terse_aug.models.GivesInputGradients`."""
        with EventStorage(1):
            return input_gradients(self.model, images, lambda given: self._loss(given, targets), loss_scale)

    def _loss(self, images: Sequence[Tensor], targets: Sequence[Any]) -> Tensor:
        with _same_normalizer(self.model):
            return total(self.model(from_samples([_PLAIN] * len(images), images, targets)))

    def object_scores(self, images: Sequence[Tensor], targets: Sequence[Any]) -> list[Tensor]:
        """See :class:`terse_aug.models.ModelAdapter`; the highest score of a detection of the object's class that
        overlaps it, 0 where there is none above the model's own threshold."""
        batch = [{"image": image, "height": image.shape[-2], "width": image.shape[-1]} for image in images]
        with isolated_forward(self.model, False, device=images[0].device), EventStorage(1):
            if isinstance(self.model, GeneralizedRCNN):  # no masks of the image's size
                predictions = self.model.inference(batch, do_postprocess=False)
            else:
                predictions = [result["instances"] for result in self.model(batch)]
        return [
            _scores(prediction, target, self.iou_threshold)
            for prediction, target in zip(predictions, targets, strict=True)
        ]

    def listen(self) -> RoIHeadRecorder | None:
        """See :class:`terse_aug.models.RecordsTrainingForward`; for Fast R-CNN's heads, of a cascade the first stage."""
        heads = getattr(self.model, "roi_heads", None)
        pooler = getattr(heads, "box_pooler", getattr(heads, "pooler", None))
        predictor: Any = getattr(heads, "box_predictor", None)
        if isinstance(predictor, nn.ModuleList):
            predictor = predictor[0]
        if not isinstance(heads, ROIHeads) or pooler is None or type(predictor) is not FastRCNNOutputLayers:
            return None
        anatomy = RoIHead(
            model=self.model,
            annotated=_annotated,
            pooler=pooler,
            proposals=_sampled,
            predictor=predictor,
            probabilities=_sigmoid if predictor.use_sigmoid_ce else _softmax,
            head=heads,
            offered=_offered,
        )
        return RoIHeadRecorder(anatomy, self.iou_threshold)


def _annotated(inputs: tuple[Any, ...], named: Mapping[str, Any]) -> list[Tensor]:
    batch = named["batched_inputs"] if "batched_inputs" in named else inputs[0]
    return [item["instances"].gt_boxes.tensor for item in batch]


def _sampled(inputs: tuple[Any, ...]) -> Proposals:
    return Proposals.by_image([boxes.tensor for boxes in inputs[1]])


def _offered(inputs: tuple[Any, ...]) -> Proposals:
    return Proposals.by_image([instances.proposal_boxes.tensor for instances in inputs[2]])


def _softmax(output: tuple[Tensor, Tensor]) -> Tensor:
    return output[0].detach().float().softmax(-1)


def _sigmoid(output: tuple[Tensor, Tensor]) -> Tensor:
    return output[0].detach().float().sigmoid()


@contextlib.contextmanager
def _same_normalizer(model: nn.Module) -> Iterator[None]:
    """RetinaNet and FCOS divide their loss by a running mean that every training forward moves."""
    before = vars(model).get("loss_normalizer")
    try:
        yield
    finally:
        vars(model).pop("loss_normalizer", None)
        if before is not None:
            model.loss_normalizer = before


def total(losses: Mapping[str, Tensor] | Tensor) -> Tensor:
    """The sum of what a model returns in training, as the trainers add it up."""
    parts = [losses] if isinstance(losses, Tensor) else list(losses.values())
    return torch.stack([part.float().reshape(()) for part in parts]).sum()


def _scores(prediction: Instances, target: Mapping[str, Any], iou_threshold: float) -> Tensor:
    agree = target["labels"][:, None] == prediction.pred_classes[None]
    near = pairwise_iou(Boxes(target["boxes"].float()), Boxes(prediction.pred_boxes.tensor.float())) >= iou_threshold
    candidates = (agree & near) * prediction.scores.float()
    none = candidates.new_zeros(len(candidates), 1)
    return torch.cat([candidates, none], 1).amax(1)


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

"""Torchvision's detectors as targets. Imports torch and torchvision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import box_iou

from terse_aug.models.base import isolated_forward
from terse_aug.models.forward_hooks import Arguments
from terse_aug.models.input_gradients import input_gradients
from terse_aug.models.roi_head import Proposals, RoIHead, RoIHeadRecorder
from terse_aug.structures.annotations import Target
from terse_aug.utils.random import isolated_global_rng

_MODEL_FIELDS = ("boxes", "labels", "masks", "keypoints")


class TorchvisionAdapter:
    """A model with torchvision's detection interface: a dictionary of losses in training, predictions otherwise.

    Args:
        model: for example ``torchvision.models.detection.fasterrcnn_resnet50_fpn()``; a
            DistributedDataParallel wrapper is looked through.
        iou_threshold: a detection belongs to an object if they overlap at least this much.
    """

    def __init__(self, model: nn.Module, iou_threshold: float = 0.5) -> None:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        self.model: nn.Module = model
        self.iou_threshold = iou_threshold
        self.first_label, self.label_limit = _label_range(model)

    def image_losses(self, images: Sequence[Tensor], targets: Sequence[Target], differentiable: bool = False) -> Tensor:
        """See :class:`ModelAdapter`; one forward per image, each with the same draw of proposals."""
        losses = []
        with isolated_forward(self.model, True, differentiable, images[0].device):
            for image, target in zip(images, targets, strict=True):
                with isolated_global_rng(0, [image.device]):
                    losses.append(self._loss([image], [target]))
        return torch.stack(losses)

    def input_gradients(
        self, images: Sequence[Tensor], targets: Sequence[Target], loss_scale: float = 1.0
    ) -> tuple[Tensor, list[Tensor]]:
        """See :class:`GivesInputGradients`."""
        return input_gradients(self.model, images, lambda given: self._loss(given, targets), loss_scale)

    def _loss(self, images: list[Tensor], targets: Sequence[Target]) -> Tensor:
        fields = [{name: target[name] for name in _MODEL_FIELDS if name in target} for target in targets]
        result: Mapping[str, Tensor] = self.model(images, fields)
        return torch.stack([loss.float() for loss in result.values()]).sum()

    def object_scores(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        """See :class:`ModelAdapter`; the highest score of a detection of the object's class that overlaps it."""
        with isolated_forward(self.model, False, device=images[0].device):
            predictions: list[dict[str, Any]] = self.model(list(images))
        scores = []
        for prediction, target in zip(predictions, targets, strict=True):
            agree = target["labels"][:, None] == prediction["labels"][None]
            near = box_iou(target["boxes"].float(), prediction["boxes"].float()) >= self.iou_threshold
            candidates = (agree & near) * prediction["scores"].float()
            none = candidates.new_zeros(len(candidates), 1)
            scores.append(torch.cat([candidates, none], 1).amax(1))
        return scores

    def listen(self) -> RoIHeadRecorder | None:
        """See :class:`RecordsTrainingForward`; for models with torchvision's ``roi_heads`` (Faster, Mask, Keypoint R-CNN)."""
        heads: Any = getattr(self.model, "roi_heads", None)
        if type(heads) is not RoIHeads:
            return None
        anatomy = RoIHead(
            model=self.model,
            annotated=_annotated,
            pooler=heads.box_roi_pool,
            proposals=_proposals,
            predictor=heads.box_predictor,
            probabilities=_probabilities,
            head=heads,
            offered=_proposals,
        )
        return RoIHeadRecorder(anatomy, self.iou_threshold)


def _annotated(inputs: Arguments, named: Mapping[str, Any]) -> list[Tensor]:
    targets = named["targets"] if "targets" in named else inputs[1]
    return [target["boxes"] for target in targets]


def _proposals(inputs: Arguments) -> Proposals:
    """Of the pooler and of the head, which are both given features, boxes and sizes."""
    return Proposals.by_image(inputs[1], inputs[2])


def _probabilities(output: tuple[Tensor, Tensor]) -> Tensor:
    return output[0].detach().float().softmax(-1)


def _label_range(model: nn.Module) -> tuple[int, int | None]:
    """The class indices that the model's loss takes for objects, first and limit, read from its head."""
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

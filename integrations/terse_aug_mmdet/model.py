"""MMDetection's detectors as targets."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmdet.models.detectors import RPN
from mmdet.models.roi_heads import (
    CascadeRoIHead,
    DynamicRoIHead,
    MaskScoringRoIHead,
    PointRendRoIHead,
    StandardRoIHead,
)
from mmdet.models.task_modules.assigners import BaseAssigner
from mmdet.models.task_modules.samplers import BaseSampler, RandomSampler
from mmdet.structures import DetDataSample
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from terse_aug.models import Proposals, RoIHead, RoIHeadRecorder, input_gradients, isolated_forward
from terse_aug.utils.random import isolated_global_rng
from terse_aug_mmdet.batch import with_instances
from terse_aug_mmdet.dense_head import DenseHead, can_be_heard, mended_heads
from terse_aug_mmdet.scores import as_tensor, scores_of


class MMDetAdapter:
    """A model with MMDetection's interface: ``loss`` and ``predict`` behind a data preprocessor.

    Args:
        model: as a runner has it; a distributed wrapper is looked through.
        classes: number of classes; labels are 0 to ``classes - 1``.
        iou_threshold: a detection belongs to an object if they overlap at least this much.

    Raises:
        ValueError: a model that only proposes boxes; and when it is asked, one that takes a text with every image.
    """

    first_label = 0

    def __init__(self, model: nn.Module, classes: int | None = None, iou_threshold: float = 0.5) -> None:
        self.model: Any = model.module if is_model_wrapper(model) else model
        if isinstance(self.model, RPN):
            raise ValueError("RPN proposes boxes without classes, whose hardness cannot be told; not supported")
        self.label_limit = classes
        self.iou_threshold = iou_threshold

    def image_losses(self, images: Sequence[Tensor], targets: Sequence[Any], differentiable: bool = False) -> Tensor:
        """See :class:`terse_aug.models.ModelAdapter`; one forward per image, each with the same draw of proposals."""
        losses = []
        with isolated_forward(self.model, True, differentiable, images[0].device):
            for image, target in zip(images, targets, strict=True):
                with isolated_global_rng(0, [image.device]):
                    losses.append(self._loss([image], [target]))
        return torch.stack(losses)

    def input_gradients(
        self, images: Sequence[Tensor], targets: Sequence[Any], loss_scale: float = 1.0
    ) -> tuple[Tensor, list[Tensor]]:
        """See :class:`terse_aug.models.GivesInputGradients`; with several processes every one has to ask, since many
        heads average over all of them."""
        return input_gradients(self.model, images, lambda given: self._loss(given, targets), loss_scale)

    def _loss(self, images: Sequence[Tensor], targets: Sequence[Any]) -> Tensor:
        self.check_asking()
        with _plain_state_kept(self.model):
            data = self.model.data_preprocessor(_batch(images, targets), True)
            loss: Tensor = self.model.parse_losses(self.model(**data, mode="loss"))[0].float()
        return loss

    def object_scores(self, images: Sequence[Tensor], targets: Sequence[Any]) -> list[Tensor]:
        """See :class:`terse_aug.models.ModelAdapter`; the highest score of a detection of the object's class that
        overlaps it, 0 where there is none above the model's own threshold."""
        self.check_asking()
        with isolated_forward(self.model, False, device=images[0].device), mended_heads(self.model):
            data = self.model.data_preprocessor(_batch(images, targets), False)
            found = self.model.predict(data["inputs"], data["data_samples"], rescale=False)
        return [
            scores_of(sample.pred_instances, target, self.iou_threshold)
            for sample, target in zip(found, targets, strict=True)
        ]

    def check_asking(self) -> None:
        """Raise ``ValueError`` where the model needs more than images to be asked."""
        if hasattr(self.model, "language_model"):
            raise ValueError(
                f"{type(self.model).__name__} takes a text with every image, which composites cannot be asked about "
                "without: expected policy 'random', 'learned' or 'deterministic', and no robustness by 'pgd'"
            )

    def listen(self) -> RoIHeadRecorder | DenseHead | None:
        """See :class:`terse_aug.models.RecordsTrainingForward`; for one-stage detectors with a head of
        :mod:`terse_aug_mmdet.dense_head` and two-stage ones with ``_HEARD_HEADS``, of a cascade the first stage."""
        if can_be_heard(self.model):
            return DenseHead(self.model, self.iou_threshold)
        heads: Any = getattr(self.model, "roi_head", None)
        if type(heads) not in _HEARD_HEADS:
            return None
        pooler, predictor = heads.bbox_roi_extractor, heads.bbox_head
        if isinstance(predictor, nn.ModuleList):
            pooler, predictor = pooler[0], predictor[0]
        sampler = heads.bbox_sampler[0] if isinstance(heads.bbox_sampler, list) else heads.bbox_sampler
        # OHEM's, for one, classifies candidates of its own before.
        if predictor.custom_activation or not predictor.with_cls or type(sampler) is not RandomSampler:
            return None
        anatomy = RoIHead(
            model=self.model,
            annotated=_annotated,
            pooler=pooler,
            proposals=_proposals,
            predictor=predictor,
            probabilities=_softmax,
        )
        return RoIHeadRecorder(anatomy, self.iou_threshold)


_HEARD_HEADS = (StandardRoIHead, MaskScoringRoIHead, PointRendRoIHead, DynamicRoIHead, CascadeRoIHead)
"""Whose proposals are pooled and classified once in a training forward; what is derived from them may do otherwise."""


def _annotated(inputs: tuple[Any, ...], named: Mapping[str, Any]) -> list[Tensor]:
    samples = named["data_samples"] if "data_samples" in named else inputs[1]
    return [as_tensor(sample.gt_instances.bboxes) for sample in samples]


def _proposals(inputs: tuple[Any, ...]) -> Proposals:
    rois: Tensor = inputs[1].detach()
    return Proposals(rois[:, 1:], rois[:, 0])


def _softmax(output: tuple[Tensor, ...]) -> Tensor:
    """What the head predicts by, whatever its loss."""
    return output[0].detach().float().softmax(-1)


@contextlib.contextmanager
def _plain_state_kept(model: nn.Module) -> Iterator[None]:
    """What modules and their assigners and samplers note of a training forward in plain attributes, as Dynamic R-CNN
    its IoU, is put back.

    Batch augmentations are left out meanwhile: they resize by a draw that all ranks share, and remember it.
    """
    noted = [
        (part, {name: copy.copy(value) for name, value in vars(part).items() if _is_plain(name, value)})
        for module in model.modules()
        for part in (module, *_helpers(module))
    ]
    preprocessor: Any = model.data_preprocessor
    augments = getattr(preprocessor, "batch_augments", None)
    try:
        if augments is not None:
            preprocessor.batch_augments = None
        yield
    finally:
        if augments is not None:
            preprocessor.batch_augments = augments
        for part, before in noted:
            for name in [name for name, value in vars(part).items() if _is_plain(name, value)]:
                if name not in before:
                    delattr(part, name)
            vars(part).update(before)


def _helpers(module: nn.Module) -> Iterator[BaseAssigner | BaseSampler]:
    for value in vars(module).values():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, BaseAssigner | BaseSampler):
                yield one


def _is_plain(name: str, value: Any) -> bool:
    return not name.startswith("_") and name != "training" and isinstance(value, int | float | str | list | dict)


def _batch(images: Sequence[Tensor], targets: Sequence[Any]) -> dict[str, Any]:
    samples = []
    for image, target in zip(images, targets, strict=True):
        shape = (image.shape[-2], image.shape[-1])
        meta = {"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0), "img_id": 0, "img_path": ""}
        samples.append(with_instances(DetDataSample(metainfo=meta), target, image))
    return {"inputs": list(images), "data_samples": samples}

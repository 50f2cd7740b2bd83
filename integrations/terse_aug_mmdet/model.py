"""MMDetection's detectors."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmdet.models.dense_heads import SSDHead
from mmdet.models.detectors import RPN, SemiBaseDetector
from mmdet.models.roi_heads import (
    CascadeRoIHead,
    DoubleHeadRoIHead,
    DynamicRoIHead,
    GridRoIHead,
    HybridTaskCascadeRoIHead,
    MaskScoringRoIHead,
    PointRendRoIHead,
    StandardRoIHead,
)
from mmdet.models.task_modules.assigners import BaseAssigner
from mmdet.models.task_modules.coders import BucketingBBoxCoder
from mmdet.models.task_modules.samplers import (
    BaseSampler,
    CombinedSampler,
    InstanceBalancedPosSampler,
    IoUBalancedNegSampler,
    RandomSampler,
)
from mmdet.structures import DetDataSample
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from terse_aug.models import (
    IOU_THRESHOLDS,
    Detections,
    DetectorAdapter,
    PredictionRecorder,
    Proposals,
    RoIHead,
    RoIHeadRecorder,
)
from terse_aug_mmdet.batch import with_instances
from terse_aug_mmdet.boxes import as_tensor, boxes_of
from terse_aug_mmdet.recording import annotated_boxes, prediction_source


class MMDetAdapter(DetectorAdapter):
    """A model with MMDetection's interface: ``loss`` and ``predict`` behind a data preprocessor.

    Args:
        model: as a runner has it; a distributed wrapper is unwrapped.
        classes: number of classes; labels are 0 to ``classes - 1``.
        iou_thresholds: see :class:`terse_aug.models.DetectorAdapter`.

    Raises:
        ValueError: a model that only proposes boxes, or a semi-supervised one; in every forward, one that needs a text
            with every image.
    """

    first_label = 0

    def __init__(
        self, model: nn.Module, classes: int | None = None, iou_thresholds: Sequence[float] = IOU_THRESHOLDS
    ) -> None:
        inner: Any = model.module if is_model_wrapper(model) else model
        super().__init__(inner, iou_thresholds)
        if isinstance(self.model, RPN):
            raise ValueError("RPN proposes boxes without classes, which have no hardness; not supported")
        if isinstance(self.model, SemiBaseDetector):
            raise ValueError(
                f"{type(self.model).__name__} learns from batches in branches, some of them without annotations: "
                "semi-supervised training is not supported"
            )
        self.label_limit = classes

    def losses(self, images: Sequence[Tensor], targets: Sequence[Any]) -> Tensor:
        """See :class:`terse_aug.models.BaseAdapter`."""
        self.check_input()
        with _plain_attributes_restored(self.model):
            data = self.model.data_preprocessor(_batch(images, targets), True)
            loss: Tensor = self.model.parse_losses(self.model(**data, mode="loss"))[0].float()
        return loss

    def detections(self, images: Sequence[Tensor], targets: Sequence[Any]) -> list[Detections]:
        """See :class:`terse_aug.models.DetectorAdapter`."""
        self.check_input()
        with _patched_ssd_heads(self.model):
            data = self.model.data_preprocessor(_batch(images, targets), False)
            samples = self.model.predict(data["inputs"], data["data_samples"], rescale=False)
        found = [sample.pred_instances for sample in samples]
        return [Detections(boxes_of(own), own.labels, own.scores) for own in found]

    def check_input(self) -> None:
        """Check that the model needs images only.

        Raises:
            ValueError: it needs a text with every image.
        """
        if hasattr(self.model, "language_model"):
            raise ValueError(
                f"{type(self.model).__name__} takes a text with every image, which composites do not have: expected "
                "policy 'random', 'adversarial' or 'paper', and no robustness training"
            )

    def record_forward(self) -> RoIHeadRecorder | PredictionRecorder | None:
        """See :class:`terse_aug.models.RecordsTrainingForward`; for one-stage detectors with a head of
        :mod:`terse_aug_mmdet.dense_head`, those with queries of :mod:`terse_aug_mmdet.query_head`, and two-stage ones
        of ``_ROI_HEADS``, of a cascade the first stage."""
        if (source := prediction_source(self.model)) is not None:
            return PredictionRecorder(source, self.iou_thresholds)
        heads: Any = getattr(self.model, "roi_head", None)
        if type(heads) not in _ROI_HEADS:
            return None
        pooler, predictor = heads.bbox_roi_extractor, heads.bbox_head
        if isinstance(predictor, nn.ModuleList):
            pooler, predictor = pooler[0], predictor[0]
        sampler = heads.bbox_sampler[0] if isinstance(heads.bbox_sampler, list) else heads.bbox_sampler
        # OHEM's, for one, classifies candidates of its own before.
        other_scores = getattr(predictor, "custom_activation", False) or not getattr(predictor, "with_cls", True)
        if other_scores or type(sampler) not in _SAMPLERS:
            return None
        roi_head = RoIHead(
            model=self.model,
            annotated_boxes=annotated_boxes,
            pooler=pooler,
            sampled_proposals=_sampled_proposals,
            predictor=predictor,
            probabilities=_softmax,
            refined=_refinement(predictor),
        )
        return RoIHeadRecorder(roi_head, self.iou_thresholds)


_ROI_HEADS = (
    *(StandardRoIHead, MaskScoringRoIHead, PointRendRoIHead, DynamicRoIHead, GridRoIHead, DoubleHeadRoIHead),
    *(CascadeRoIHead, HybridTaskCascadeRoIHead),
)
"""Their proposals are pooled and classified once in a training forward; subclasses may do otherwise."""
_SAMPLERS = (RandomSampler, CombinedSampler, InstanceBalancedPosSampler, IoUBalancedNegSampler)


def _sampled_proposals(inputs: tuple[Any, ...]) -> Proposals:
    rois: Tensor = inputs[1].detach()
    return Proposals(rois[:, 1:], rois[:, 0])


def _softmax(output: tuple[Tensor, ...]) -> Tensor:
    """As the head predicts, whatever its loss."""
    return output[0].detach().float().softmax(-1)


def _refinement(head: Any) -> Callable[[Any, Tensor], Tensor] | None:
    """How a head refines its proposals; ``None`` if it does not, such as that of Grid R-CNN."""
    if not getattr(head, "with_reg", False):
        return None

    def refined(output: Sequence[Any], boxes: Tensor) -> Tensor:
        regression = output[1]
        if isinstance(head.bbox_coder, BucketingBBoxCoder):
            return as_tensor(head.bbox_coder.decode(boxes.float(), [part.float() for part in regression])[0])
        return as_tensor(head.bbox_coder.decode(boxes.float(), regression.float()))

    return refined


@contextlib.contextmanager
def _patched_ssd_heads(model: nn.Module) -> Iterator[None]:
    """Give every SSDHead the ``loss_cls`` that mmdet 3.3.0 reads from all anchor heads in prediction; it has none."""
    lacking = [part for part in model.modules() if isinstance(part, SSDHead) and not hasattr(part, "loss_cls")]
    for head in lacking:
        head.loss_cls = None
    try:
        yield
    finally:
        for head in lacking:
            del head.loss_cls


@contextlib.contextmanager
def _plain_attributes_restored(model: nn.Module) -> Iterator[None]:
    """Restore plain attributes of modules, their assigners and samplers, such as the IoU threshold of Dynamic R-CNN.

    Batch augmentations are disabled meanwhile: they resize by a draw that all ranks share, and keep it.
    """
    saved = [
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
        for part, before in saved:
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
        meta["border"] = (0, 0, 0, 0)  # CenterNet's and CornerNet's own pipelines pad images
        samples.append(with_instances(DetDataSample(metainfo=meta), target, image))
    return {"inputs": list(images), "data_samples": samples}

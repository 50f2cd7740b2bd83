"""Records object scores in the training forward of a one-stage detector."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.dense_heads import (
    ATSSHead,
    FCOSHead,
    GFLHead,
    RetinaHead,
    RTMDetHead,
    SSDHead,
    TOODHead,
    YOLOV3Head,
    YOLOXHead,
)
from mmdet.models.dense_heads.rtmdet_head import RTMDetSepBNHead
from torch import Tensor, nn

from terse_aug.models import ForwardHooks
from terse_aug_mmdet.scores import as_tensor, scores_of

_HEADS = (
    ATSSHead,
    FCOSHead,
    GFLHead,
    RetinaHead,
    RTMDetHead,
    RTMDetSepBNHead,
    SSDHead,
    TOODHead,
    YOLOV3Head,
    YOLOXHead,
)
"""Their outputs are the same in training and in prediction; those of subclasses may differ."""
_ROUNDING = 0.02
"""Boxes may differ by this fraction of an image's side if the model resizes its batches."""


@dataclass
class _Forward:
    """The record of one training forward."""

    boxes: list[Tensor]
    metas: list[dict[str, Any]]
    outputs: Any = None


class DenseHead(ForwardHooks[_Forward]):
    """Records a one-stage detector; a :class:`terse_aug.models.Recorder`.

    The head's outputs are decoded as for a prediction, but without non-maximum suppression: of the boxes of the
    object's class that overlap it the best counts, which another box hardly ever suppresses.

    Args:
        model: with a supported ``bbox_head``, see :func:`has_supported_head`.
        iou_threshold: a box belongs to an object from this overlap on.
        least_score: lower scores count as 0. Some heads predict all above 0.001, and sorting these would take most of
            the time.
    """

    def __init__(self, model: Any, iou_threshold: float, least_score: float = 0.05) -> None:
        super().__init__(model)
        self._head, self._iou_threshold, self._least_score = model.bbox_head, iou_threshold, least_score
        self.on_output(model.bbox_head, self._record)

    def start_record(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> _Forward:
        """The boxes that the forward is trained on, and its images' sizes."""
        samples = named["data_samples"] if "data_samples" in named else inputs[1]
        boxes = [as_tensor(sample.gt_instances.bboxes).detach() for sample in samples]
        return _Forward(boxes, [sample.metainfo for sample in samples])

    def scores(self, images: Sequence[Tensor], targets: Sequence[Any]) -> list[Tensor] | None:
        """See :class:`terse_aug.models.Recorder`."""
        for forward in self.records:
            if forward.outputs is None or len(forward.boxes) != len(targets):
                continue
            factors = [_factors(image, meta) for image, meta in zip(images, forward.metas, strict=True)]
            if all(map(_agree, forward.boxes, factors, targets, images)):
                return self._scores(forward, factors, targets)
        return None

    def _record(self, forward: _Forward, output: Any) -> None:
        if forward.outputs is None:
            forward.outputs = _detached(output)

    def _scores(self, forward: _Forward, factors: Sequence[Tensor], targets: Sequence[Any]) -> list[Tensor]:
        cfg = copy.copy(self._head.test_cfg)
        cfg.score_thr = max(cfg.get("score_thr", 0.0), self._least_score)
        with torch.no_grad(), patched_ssd_heads(self._head):
            found = self._head.predict_by_feat(
                *_as_float(forward.outputs), batch_img_metas=forward.metas, cfg=cfg, rescale=False, with_nms=False
            )
        scores = []
        for one, factor, target in zip(found, factors, targets, strict=True):
            one.bboxes = as_tensor(one.bboxes) * factor.to(as_tensor(one.bboxes))
            scores.append(scores_of(one, target, self._iou_threshold))
        return scores


def has_supported_head(model: Any) -> bool:
    """Whether :class:`DenseHead` supports the head of a model."""
    head = getattr(model, "bbox_head", None)
    return type(head) in _HEADS and not getattr(head, "norm_on_bbox", False) and not hasattr(model, "mask_head")


def _factors(image: Tensor, meta: Mapping[str, Any]) -> Tensor:
    """Factors from boxes in the model's image to boxes in the composite, ``[4]``."""
    height, width = meta["img_shape"][:2]
    return torch.tensor([image.shape[-1] / width, image.shape[-2] / height]).repeat(2)


def _agree(boxes: Tensor, factor: Tensor, target: Any, image: Tensor) -> bool:
    """Whether boxes that the model was trained on are those of a composite."""
    expected = target["boxes"]
    if boxes.shape != expected.shape:
        return False
    resized = bool((factor != 1).any())
    tolerance = _ROUNDING * max(image.shape[-2:]) if resized else 1e-3
    return bool(((boxes.to(expected) * factor.to(expected) - expected).abs() <= tolerance).all())


def _detached(output: Any) -> Any:
    return _mapped(output, Tensor.detach)


def _as_float(output: Any) -> Any:
    return _mapped(output, Tensor.float)


def _mapped(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The output of a head, nested lists or tuples of tensors, with all tensors changed."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, list | tuple):
        return type(output)(_mapped(part, change) for part in output)
    return output


@contextlib.contextmanager
def patched_ssd_heads(model: nn.Module) -> Iterator[None]:
    """Give every SSDHead the ``loss_cls`` that mmdet 3.3.0 reads from all anchor heads in prediction; it has none."""
    lacking = [part for part in model.modules() if isinstance(part, SSDHead) and not hasattr(part, "loss_cls")]
    for head in lacking:
        head.loss_cls = None
    try:
        yield
    finally:
        for head in lacking:
            del head.loss_cls

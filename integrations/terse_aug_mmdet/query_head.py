"""Predictions of MMDetection's detectors with queries: DETR and its successors, Sparse R-CNN, QueryInst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.dense_heads import (
    ConditionalDETRHead,
    DABDETRHead,
    DDQDETRHead,
    DeformableDETRHead,
    DETRHead,
    DINOHead,
)
from mmdet.models.roi_heads import SparseRoIHead
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor

from terse_aug.models import Predictions, levels_of
from terse_aug_mmdet.boxes import as_tensor

_DETR_HEADS = (DETRHead, DeformableDETRHead, DINOHead, DDQDETRHead, ConditionalDETRHead, DABDETRHead)
_METHODS = ("forward", "predict", "predict_by_feat", "_predict_by_feat_single")


def has_detr_head(model: Any) -> bool:
    """Whether a model has one of DETR's heads, or a subclass that predicts as it does."""
    head, queries = getattr(model, "bbox_head", None), getattr(model, "num_queries", None)
    return isinstance(queries, int) and any(
        isinstance(head, kind) and all(getattr(type(head), name) is getattr(kind, name) for name in _METHODS)
        for kind in _DETR_HEADS
    )


def detr_predictions(model: Any, outputs: Sequence[Tensor]) -> Predictions:
    """Of the queries of the last layer that are predictions: those for denoising and DDQ's dense ones are left out.

    Args:
        model: see :func:`has_detr_head`.
        outputs: of the head in training, logits and boxes of all layers; boxes are relative to the image.
    """
    logits, boxes = (own[-1].float() for own in outputs)
    dense = getattr(model.bbox_head, "cache_dict", {}).get("num_dense_queries", 0)
    last = logits.shape[1] - dense
    own = slice(last - model.num_queries, last)
    activation: Any = "sigmoid" if model.bbox_head.loss_cls.use_sigmoid else "softmax"
    relative = [(1.0, 1.0)] * len(boxes)
    return Predictions(bbox_cxcywh_to_xyxy(boxes[:, own]), levels_of(logits[:, own]), activation, sizes=relative)


def has_sparse_head(model: Any) -> bool:
    """Whether a model has the RoI head of Sparse R-CNN and QueryInst."""
    return type(getattr(model, "roi_head", None)) is SparseRoIHead


def sparse_predictions(head: Any, rois: Tensor, outputs: Sequence[Tensor]) -> Predictions:
    """Of the last stage.

    Args:
        head: of a bounding box, of the last stage.
        rois: ``[B * Q, 5]``, that it refines.
        outputs: of the head, logits and regressions ``[B, Q, ...]`` first.
    """
    logits, regressions = outputs[:2]
    boxes = as_tensor(head.bbox_coder.decode(rois[:, 1:].float(), regressions.float().flatten(0, 1)))
    activation: Any = "sigmoid" if head.loss_cls.use_sigmoid else "softmax"
    clip = head.bbox_coder.clip_border
    return Predictions(boxes.view_as(regressions), levels_of(logits), activation, clip=clip)

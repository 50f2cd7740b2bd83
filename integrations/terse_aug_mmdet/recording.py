"""Where the predictions of MMDetection's detectors are in their training forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmdet.models.dense_heads import CenterNetHead
from torch import Tensor, nn

from terse_aug.models import Predictions, PredictionSource
from terse_aug_mmdet.boxes import as_tensor
from terse_aug_mmdet.dense_head import decoder_of
from terse_aug_mmdet.query_head import detr_predictions, has_detr_head, has_sparse_head, sparse_predictions


def prediction_source(model: Any) -> PredictionSource | None:
    """The source of a model's predictions; ``None`` for a two-stage detector and an unknown one."""
    head: Any = getattr(model, "bbox_head", None)
    roi_head: Any = getattr(model, "roi_head", None)
    if has_sparse_head(model):
        last = roi_head.bbox_head[-1]
        inputs = {"rois": (roi_head.bbox_roi_extractor[-1], lambda arguments: arguments[1])}

        def sparse(kept: Mapping[str, Any]) -> Predictions:
            return replace(sparse_predictions(last, kept["rois"], kept["head"]), sizes=kept["annotation_sizes"])

        return PredictionSource(model, annotated_boxes, {"head": (last, _whole)}, sparse, _context, inputs)
    if not isinstance(head, nn.Module):
        return None
    outputs = {"head": (head, _whole)}
    if has_detr_head(model):
        return PredictionSource(
            model, annotated_boxes, outputs, lambda kept: detr_predictions(model, kept["head"]), _context
        )
    decoder = decoder_of(head)
    if decoder is None:
        return None
    sizes = "sizes_in_input" if isinstance(head, CenterNetHead) else "annotation_sizes"

    def dense(kept: Mapping[str, Any]) -> Predictions:
        return replace(decoder(head, kept["head"]), sizes=kept[sizes])

    return PredictionSource(model, annotated_boxes, outputs, dense, _context)


def annotated_boxes(inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> list[Tensor]:
    """The boxes that a forward is trained on, ``[n, 4]`` for each image."""
    return [as_tensor(sample.gt_instances.bboxes) for sample in _samples(inputs, keywords)]


def _context(inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the images, which the data preprocessor may have resized, in pixels and relative to the padded input."""
    metas = [sample.metainfo for sample in _samples(inputs, keywords)]
    sizes = [tuple(meta["img_shape"][:2]) for meta in metas]
    padded = [meta["batch_input_shape"] for meta in metas]
    relative = [(own[0] / input_[0], own[1] / input_[1]) for own, input_ in zip(sizes, padded, strict=True)]
    return {"annotation_sizes": sizes, "sizes_in_input": relative}


def _samples(inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    return keywords["data_samples"] if "data_samples" in keywords else inputs[1]


def _whole(output: Any) -> Any:
    return output

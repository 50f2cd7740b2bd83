"""Predictions of MMDetection's one-stage detectors, decoded from the outputs of their head in training.

Each head is decoded as its ``predict_by_feat`` does, but for a whole batch at once and without suppression.
Shape letters: B images, Q boxes, K classes, S positions of a level, A boxes of a position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mmdet.models import dense_heads
from mmdet.models.dense_heads.rtmdet_head import RTMDetSepBNHead
from mmdet.models.dense_heads.rtmdet_ins_head import RTMDetInsSepBNHead
from mmdet.models.utils import get_local_maximum
from torch import Tensor

from terse_aug.models import Predictions, conv_levels, flat_levels
from terse_aug_mmdet.boxes import as_tensor

Decode = Callable[[Any, Sequence[Any]], Predictions]
"""From a head and the outputs of its forward in training to its predictions."""

_METHODS = ("forward", "forward_single", "predict", "predict_by_feat", "_predict_by_feat_single", "_bbox_decode")
"""What a subclass must not change to be decoded as its base class is."""


def decoder_of(head: Any) -> Decode | None:
    """How the outputs of a head are decoded; ``None`` for an unknown one, or a subclass that predicts otherwise."""
    if getattr(getattr(head, "loss_cls", None), "custom_cls_channels", False):
        return None
    for kind, decode in _DECODERS.items():
        if isinstance(head, kind) and all(
            getattr(type(head), name, None) is getattr(kind, name, None) for name in _METHODS
        ):
            return decode
    return None


def _standard(head: Any, outputs: Sequence[Any]) -> Predictions:
    """Class scores and box regressions, and centernesses or IoUs as factors of the scores."""
    scores, regressions, *qualities = outputs[:3]
    boxes = _decoded(head, _priors(head, scores), flat_levels(regressions, head.bbox_coder.encode_size))
    quality = flat_levels(qualities[0], 1)[..., 0].float().sigmoid() if qualities else None
    return Predictions(
        boxes,
        conv_levels(scores, head.cls_out_channels),
        "sigmoid" if head.use_sigmoid_cls else "softmax",
        quality=quality,
        clip=getattr(head.bbox_coder, "clip_border", True),
    )


def _first_two(head: Any, outputs: Sequence[Any]) -> Predictions:
    """The rest is for masks."""
    return _standard(head, outputs[:2])


def _fcos(head: Any, outputs: Sequence[Any]) -> Predictions:
    """In training normalized regressions are in units of the stride."""
    scores, regressions, *qualities = outputs[:3]
    if getattr(head, "norm_on_bbox", True):
        regressions = [own * stride for own, stride in zip(regressions, head.strides, strict=True)]
    return _standard(head, (scores, regressions, *qualities))


def _paa(head: Any, outputs: Sequence[Any]) -> Predictions:
    found = _standard(head, outputs)
    return replace(found, exponent=0.5)


def _vfnet(head: Any, outputs: Sequence[Any]) -> Predictions:
    """In training the regressions before refinement, which are not predicted, are the second output."""
    return _standard(head, (outputs[0], outputs[2]))


def _gfl(head: Any, outputs: Sequence[Any]) -> Predictions:
    """The regressions are distributions."""
    scores, regressions = outputs
    bins = 4 * (head.reg_max + 1)
    distances = [
        head.integral(flat_levels([own], bins).float()).view(len(own), -1, 4) * stride[0]
        for own, stride in zip(regressions, head.prior_generator.strides, strict=True)
    ]
    centers = head.anchor_center(_priors(head, scores))
    return _sigmoid(head, scores, _decoded(head, centers, torch.cat(distances, 1)))


def _tood(head: Any, outputs: Sequence[Any]) -> Predictions:
    """Scores are probabilities, and regressions boxes."""
    scores, boxes = outputs
    scaled = [own * stride[0] for own, stride in zip(boxes, head.prior_generator.strides, strict=True)]
    return Predictions(flat_levels(scaled, 4), conv_levels(scores, head.cls_out_channels), "none", clip=False)


def _yolox(head: Any, outputs: Sequence[Any]) -> Predictions:
    """A place predicts its likeliest class only."""
    scores, regressions, objectness = outputs
    scores = [own.masked_fill(own < own.amax(1, keepdim=True), -torch.inf) for own in scores]
    boxes = head._bbox_decode(_priors(head, scores, with_stride=True), flat_levels(regressions, 4).float())
    quality = flat_levels(objectness, 1)[..., 0].float().sigmoid()
    return replace(_sigmoid(head, scores, boxes), quality=quality, clip=False)


def _yolov3(head: Any, outputs: Sequence[Any]) -> Predictions:
    """One output of each level: box, objectness, classes."""
    (levels,) = outputs
    flat = flat_levels(levels, head.num_attrib).float()
    strides = [
        flat.new_full((head.num_base_priors * own.shape[-2] * own.shape[-1], 1), float(stride))
        for own, stride in zip(levels, head.featmap_strides, strict=True)
    ]
    encoded = torch.cat([flat[..., :2].sigmoid(), flat[..., 2:4]], 2)
    boxes = as_tensor(head.bbox_coder.decode(_priors(head, levels), encoded, torch.cat(strides)))
    logits = [level[:, :, 5:] for level in conv_levels(levels, head.num_attrib)]
    return Predictions(boxes, logits, quality=flat[..., 4].sigmoid(), clip=False)


def _fovea(head: Any, outputs: Sequence[Any]) -> Predictions:
    scores, regressions = outputs
    lengths = [own.float().exp() * length for own, length in zip(regressions, head.base_edge_list, strict=True)]
    return _sigmoid(head, scores, _around(_priors(head, scores), flat_levels(lengths, 4)))


def _reppoints(head: Any, outputs: Sequence[Any]) -> Predictions:
    """In training the points before and after refinement, instead of boxes."""
    scores, _, points = outputs
    boxes = [head.points2bbox(own.float()) * stride for own, stride in zip(points, head.point_strides, strict=True)]
    centers = _priors(head, scores)[:, :2]
    found = flat_levels(boxes, 4) + torch.cat([centers, centers], 1)
    return Predictions(
        found, conv_levels(scores, head.cls_out_channels), "sigmoid" if head.use_sigmoid_cls else "softmax"
    )


def _sabl(head: Any, outputs: Sequence[Any]) -> Predictions:
    """Buckets of each side and offsets in these."""
    scores, pairs = outputs
    sides = head.side_num * 4
    flat = [flat_levels([pair[number] for pair in pairs], sides).float() for number in (0, 1)]
    anchors = torch.cat(head.square_anchor_generator.grid_priors(_map_sizes(scores), device=scores[0].device))
    images, places = flat[0].shape[:2]
    boxes, quality = head.bbox_coder.decode(anchors.repeat(images, 1), [own.flatten(0, 1) for own in flat])
    found = _sigmoid(head, scores, as_tensor(boxes).view(images, places, 4))
    return replace(found, quality=quality.view(images, places))


def _guided_anchoring(head: Any, outputs: Sequence[Any]) -> Predictions:
    """The shapes of anchors are predicted too; in prediction those at unlikely positions are left out."""
    scores, regressions, shapes, positions = outputs
    squares = torch.cat(head.square_anchor_generator.grid_priors(_map_sizes(scores), device=scores[0].device))
    sizes = flat_levels(shapes, 2).float()
    images, places = sizes.shape[:2]
    deltas = torch.cat([torch.zeros_like(sizes), sizes], 2).flatten(0, 1)
    anchors = as_tensor(head.anchor_coder.decode(squares.repeat(images, 1), deltas, wh_ratio_clip=1e-6))
    flat = flat_levels(regressions, 4).float()
    boxes = as_tensor(head.bbox_coder.decode(anchors, flat.flatten(0, 1))).view(images, places, 4)
    likely = flat_levels(positions, 1).float().sigmoid() >= head.loc_filter_thr
    return replace(_sigmoid(head, scores, boxes), quality=likely[..., 0].float())


def _centernet(head: Any, outputs: Sequence[Any]) -> Predictions:
    """Scores are probabilities; only local maxima count. Boxes are relative to the input, which may be padded."""
    (heatmap,), (sizes,), (offsets,) = outputs
    height, width = heatmap.shape[-2:]
    flat, shifts = flat_levels([sizes], 2).float(), flat_levels([offsets], 2).float()
    rows, columns = torch.meshgrid(
        torch.arange(height, device=heatmap.device), torch.arange(width, device=heatmap.device), indexing="ij"
    )
    centers = torch.stack([columns.flatten(), rows.flatten()], 1) + shifts
    boxes = torch.cat([centers - flat / 2, centers + flat / 2], 2) / flat.new_tensor([width, height] * 2)
    peaks = get_local_maximum(heatmap.float(), kernel=head.test_cfg.local_maximum_kernel)
    return Predictions(boxes, conv_levels([peaks], head.num_classes), "none", clip=False)


def _sigmoid(head: Any, scores: Sequence[Tensor], boxes: Tensor) -> Predictions:
    return Predictions(boxes, conv_levels(scores, head.cls_out_channels))


def _priors(head: Any, scores: Sequence[Tensor], **more: Any) -> Tensor:
    """Anchors ``[Q, 4]`` or points ``[Q, 2]`` of all levels."""
    priors = head.prior_generator.grid_priors(_map_sizes(scores), device=scores[0].device, **more)
    return torch.cat([as_tensor(own) for own in priors])


def _map_sizes(scores: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(own.shape[-2], own.shape[-1]) for own in scores]


def _decoded(head: Any, priors: Tensor, regressions: Tensor) -> Tensor:
    """Boxes ``[B, Q, 4]`` of regressions."""
    images, places = regressions.shape[:2]
    boxes = head.bbox_coder.decode(priors.repeat(images, 1), regressions.float().flatten(0, 1))
    return as_tensor(boxes).view(images, places, 4)


def _around(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes ``[B, Q, 4]`` around points ``[Q, 2]``, from the distances of their sides ``[B, Q, 4]``."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], 2)


_DECODERS: Mapping[type, Decode] = {
    dense_heads.PAAHead: _paa,
    dense_heads.VFNetHead: _vfnet,
    dense_heads.TOODHead: _tood,
    dense_heads.RTMDetHead: _standard,
    RTMDetSepBNHead: _standard,
    dense_heads.RTMDetInsHead: _first_two,
    RTMDetInsSepBNHead: _first_two,
    dense_heads.ATSSHead: _standard,
    dense_heads.GFLHead: _gfl,
    dense_heads.AutoAssignHead: _standard,
    dense_heads.CondInstBboxHead: _fcos,
    dense_heads.FCOSHead: _fcos,
    dense_heads.CenterNetUpdateHead: _fcos,
    dense_heads.FoveaHead: _fovea,
    dense_heads.RepPointsHead: _reppoints,
    dense_heads.YOLACTHead: _first_two,
    dense_heads.GARetinaHead: _guided_anchoring,
    dense_heads.FSAFHead: _standard,
    dense_heads.RetinaHead: _standard,
    dense_heads.RetinaSepBNHead: _standard,
    dense_heads.SSDHead: _standard,
    dense_heads.YOLOFHead: _standard,
    dense_heads.DDODHead: _standard,
    dense_heads.SABLRetinaHead: _sabl,
    dense_heads.YOLOV3Head: _yolov3,
    dense_heads.YOLOXHead: _yolox,
    dense_heads.CenterNetHead: _centernet,
}

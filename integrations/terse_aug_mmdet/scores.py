"""How well MMDetection's detections agree with annotated objects."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.structures.bbox import BaseBoxes
from mmengine.structures import InstanceData
from torch import Tensor
from torchvision.ops import box_iou, masks_to_boxes


def scores_of(found: InstanceData, target: Any, iou_threshold: float) -> Tensor:
    """For each object float ``[N]`` the highest score of a detection of its class that overlaps it; 0 for none."""
    boxes = boxes_of(found).to(target["boxes"])
    agree = target["labels"][:, None] == found.labels[None]
    near = box_iou(target["boxes"].float(), boxes.float()) >= iou_threshold
    candidates = (agree & near) * found.scores.float()
    none = candidates.new_zeros(len(candidates), 1)
    return torch.cat([candidates, none], 1).amax(1)


def boxes_of(found: InstanceData) -> Tensor:
    """Boxes of the detections; of their masks where a model gives masks alone (SOLO)."""
    boxes = as_tensor(found.bboxes)
    if "masks" in found and len(boxes) and not bool((boxes[:, 2:] > boxes[:, :2]).any()):
        masks = torch.as_tensor(found.masks).bool()
        shown = masks.flatten(1).any(1)
        boxes = boxes.clone().float()
        boxes[shown] = masks_to_boxes(masks[shown]).to(boxes) + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    return boxes


def as_tensor(boxes: BaseBoxes | Tensor) -> Tensor:
    """Boxes of either kind as a tensor ``[n, 4]``."""
    return boxes.tensor if isinstance(boxes, BaseBoxes) else boxes

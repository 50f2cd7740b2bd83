"""Boxes of MMDetection as tensors."""

from __future__ import annotations

import torch
from mmdet.structures.bbox import BaseBoxes
from mmengine.structures import InstanceData
from torch import Tensor
from torchvision.ops import masks_to_boxes


def boxes_of(found: InstanceData) -> Tensor:
    """Boxes of detections, ``[n, 4]``; of their masks where a model predicts masks only (SOLO)."""
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

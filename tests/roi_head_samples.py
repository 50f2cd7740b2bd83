"""Detectors with an RoI head that propose and predict what a test wants."""

from __future__ import annotations

from typing import Any

import torch
from factories import make_batch, make_detector
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from terse_aug.utils.random import isolated_global_rng

ROI_HEADS = ("fasterrcnn", "maskrcnn", "keypointrcnn")
SIZES = ((64, 80), (72, 64), (150, 120))
"""The models take the first two as they are and shrink the last."""
CONSTANT = [0.2, 0.7, 0.1]
"""Predicted class probabilities."""


def batch(name: str = "fasterrcnn", seed: int = 0) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    fields = {"masks": name == "maskrcnn", "keypoints": name == "keypointrcnn"}
    return make_batch(seed, sizes=SIZES, objects=2, **fields)


def train_forward(detector: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
    with isolated_global_rng(0):
        detector(images, targets)


def constant_detector() -> Any:
    """A Faster R-CNN that predicts the same class probabilities for every proposal."""
    return predict_constant(make_detector("fasterrcnn"), CONSTANT)


def predict_constant(detector: Any, probabilities: list[float]) -> Any:
    layer = detector.roi_heads.box_predictor.cls_score
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor(probabilities).log())
    return detector


def propose(detector: Any, boxes: list[Tensor]) -> None:
    """Make a detector propose these boxes, in unresized images."""
    detector.rpn.forward = lambda *inputs: (boxes, {})
    detector.transform = NotResized()


class NotResized(nn.Module):
    """A transform that puts images as they are on one canvas."""

    def forward(self, images: list[Tensor], targets: Any) -> tuple[ImageList, Any]:
        canvas = torch.zeros(len(images), 3, 160, 160)
        for own, image in zip(canvas, images, strict=True):
            own[:, : image.shape[1], : image.shape[2]] = image
        return ImageList(canvas, [(image.shape[1], image.shape[2]) for image in images]), targets

    def postprocess(self, result: Any, *sizes: Any) -> Any:
        return result


def hooks_of(detector: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in detector.modules())

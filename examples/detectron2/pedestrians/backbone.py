"""MobileNetV2 with a feature pyramid, for machines without a GPU.

``MODEL.BACKBONE.NAME build_mobilenetv2_fpn_backbone``. Its weights are torchvision's, a classifier's state dict on
disk, named by the environment variable MOBILENET_V2.
"""

from __future__ import annotations

import os

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

_STAGES = {"res2": (4, 24, 4), "res3": (7, 32, 8), "res4": (14, 96, 16), "res5": (18, 320, 32)}
"""For each stage its end (a block), channels and stride."""


class MobileNetV2(Backbone):
    """Features of torchvision's MobileNetV2 at four strides; BatchNorm and the first stage are frozen."""

    def __init__(self, weights: str | None) -> None:
        super().__init__()
        network = mobilenet_v2(weights=None)
        if weights:
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        features = FrozenBatchNorm2d.convert_frozen_batchnorm(network.features)
        ends = [end for end, _, _ in _STAGES.values()]
        self.stages = nn.ModuleList(features[start:end] for start, end in zip([0, *ends], ends, strict=False))
        if weights:
            self.stages[0].requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps by name."""
        found = {}
        for name, stage in zip(_STAGES, self.stages, strict=True):
            images = stage(images)
            found[name] = images
        return found

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides by name."""
        return {name: ShapeSpec(channels=channels, stride=stride) for name, (_, channels, stride) in _STAGES.items()}


@BACKBONE_REGISTRY.register()
def build_mobilenetv2_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """For ``MODEL.BACKBONE.NAME``."""
    weights = os.environ.get("MOBILENET_V2")
    if weights is None:
        raise ValueError(
            "set the environment variable MOBILENET_V2 to torchvision's weights of it, or to nothing: with random "
            "weights and frozen BatchNorm it learns little"
        )
    return FPN(
        MobileNetV2(weights),
        list(_STAGES),
        cfg.MODEL.FPN.OUT_CHANNELS,
        top_block=LastLevelMaxPool(),
    )

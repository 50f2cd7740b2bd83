"""A detector that learns in two minutes on one core: torchvision's Faster R-CNN on five convolutions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

_ANCHOR_SIDES = (14, 20, 30, 44)
_ANCHOR_ASPECTS = (1.0, 1.7)
_ROI_SIDE = 5


class Backbone(nn.Module):
    """Features of stride 4 that have seen stride 8: five convolutions, the first of ``width`` channels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.out_channels = 4 * width
        self.stem = nn.Sequential(_block(3, width, stride=2), _block(width, 2 * width, stride=2))
        self.fine = _block(2 * width, 4 * width)
        self.coarse = nn.Sequential(_block(4 * width, 6 * width, stride=2), _block(6 * width, 6 * width))
        self.lateral = nn.Conv2d(6 * width, 4 * width, 1)
        self.smooth = _block(4 * width, 4 * width)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``[B, out_channels, H / 4, W / 4]``."""
        fine = self.fine(self.stem(images))
        above = F.interpolate(self.lateral(self.coarse(fine)), size=fine.shape[-2:], mode="nearest")
        return self.smooth(fine + above)


def build_detector(classes: int, size: int, seed: int) -> FasterRCNN:
    """A detector of ``classes``, without background, on images of ``size`` px; the seed is that of its weights."""
    torch.manual_seed(seed)
    backbone = Backbone()
    pool = MultiScaleRoIAlign(featmap_names=["0"], output_size=_ROI_SIDE, sampling_ratio=2)
    return FasterRCNN(
        backbone,
        min_size=size,
        max_size=size,
        rpn_anchor_generator=AnchorGenerator((_ANCHOR_SIDES,), (_ANCHOR_ASPECTS,)),
        rpn_pre_nms_top_n_train=400,
        rpn_pre_nms_top_n_test=400,
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=50,
        rpn_batch_size_per_image=64,
        box_roi_pool=pool,
        box_head=TwoMLPHead(backbone.out_channels * _ROI_SIDE**2, 128),
        box_predictor=FastRCNNPredictor(128, classes + 1),
        box_batch_size_per_image=32,
        box_score_thresh=0.02,
        box_detections_per_img=20,
    )


def _block(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )

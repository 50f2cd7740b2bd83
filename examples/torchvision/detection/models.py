"""torchvision's detectors by name, for any number of classes, started from a local weights file or none.

Nothing is downloaded. The weights are a classifier's (they fill the backbone) or a whole detector's (its
class-dependent layers are kept only if the classes are as many).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import detection, mobilenet_v2
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from detection.datasets import DetectionDataset
from detection.frozen_norm import freeze_batch_norm


@dataclass(frozen=True)
class ModelKind:
    """How a detector is built, and what it needs.

    Attributes:
        builder: Function that makes the detector from keyword arguments.
        image_size: Default (shorter side, longest side) in px; None where the architecture fixes the size.
        frozen: The backbone's first stages, left untrained when it starts from weights.
        masks: Whether training needs masks.
        keypoints: Whether training needs keypoints.
    """

    builder: Callable[..., nn.Module]
    image_size: tuple[int, int] | None = (800, 1333)
    frozen: tuple[str, ...] = ("conv1", "bn1", "layer1")
    masks: bool = False
    keypoints: bool = False


def fasterrcnn_mobilenet_v2_fpn(*, num_classes: int, min_size: int, max_size: int) -> nn.Module:
    """Faster R-CNN on MobileNetV2 with a feature pyramid: small enough to train on one CPU core.

    Seconds per iteration on one core (four images of 550x450 px, shorter side scaled to 320; before frozen BatchNorm
    was computed by the convolutions):

    - 8.3 with torchvision's usual settings;
    - 5.4 with 128 boxes per image for the second stage instead of 512 (its dense layers and RoIAlign);
    - 5.0 with 500 proposals instead of 2,000;
    - 1.9 with 128 pyramid channels instead of 256 (the 3x3 convolutions at stride 4).

    64 boxes save another tenth and cost no AP (Penn-Fudan, 20 training images, one seed, after 200
    iterations: 48.5 against 46.4). Leaving out stride 4 does: 38.7.
    """
    features = mobilenet_v2(weights=None).features
    # The last layers at strides 4, 8, 16 and 32, and their channels.
    stages = {"3": "0", "6": "1", "13": "2", "18": "3"}
    backbone = BackboneWithFPN(features, stages, in_channels_list=[24, 32, 96, 1280], out_channels=128)
    return detection.FasterRCNN(
        backbone,
        num_classes=num_classes,
        min_size=min_size,
        max_size=max_size,
        rpn_pre_nms_top_n_train=500,
        rpn_post_nms_top_n_train=500,
        rpn_pre_nms_top_n_test=500,
        rpn_post_nms_top_n_test=300,
        box_batch_size_per_image=64,
    )


MODELS = {
    "fasterrcnn_mobilenet_v2_fpn": ModelKind(
        fasterrcnn_mobilenet_v2_fpn, image_size=(320, 640), frozen=("0", "1", "2", "3")
    ),
    "fasterrcnn_resnet50_fpn": ModelKind(detection.fasterrcnn_resnet50_fpn),
    "maskrcnn_resnet50_fpn": ModelKind(detection.maskrcnn_resnet50_fpn, masks=True),
    "keypointrcnn_resnet50_fpn": ModelKind(detection.keypointrcnn_resnet50_fpn, keypoints=True),
    "retinanet_resnet50_fpn": ModelKind(detection.retinanet_resnet50_fpn),
    "fcos_resnet50_fpn": ModelKind(detection.fcos_resnet50_fpn),
    "ssd300_vgg16": ModelKind(detection.ssd300_vgg16, image_size=None, frozen=()),
    "ssdlite320_mobilenet_v3_large": ModelKind(detection.ssdlite320_mobilenet_v3_large, image_size=None, frozen=()),
}

# Layers whose shape depends on the classes (or keypoints): a detector file may differ in these alone.
CLASS_LAYERS = (
    "roi_heads.box_predictor.",
    "roi_heads.mask_predictor.mask_fcn_logits.",
    "roi_heads.keypoint_predictor.",
    "head.classification_head.",
)


def build(
    name: str,
    dataset: DetectionDataset,
    image_size: tuple[int, int] | None = None,
    weights: Path | None = None,
) -> nn.Module:
    """The named detector for the data set's classes.

    Args:
        name: A key of `MODELS`.
        dataset: The training set.
        image_size: (shorter side, longest side) in px that the detector scales its input to.
        weights: A state dict to start from; the backbone's BatchNorm and first stages are then frozen.

    Raises:
        ValueError: If the data lacks masks or keypoints that the detector needs, its size is fixed, or the weights
            do not fit.
    """
    kind = MODELS[name]
    arguments = {"num_classes": len(dataset.classes) + 1} | _size_arguments(name, kind, image_size)
    if kind.masks and not dataset.has_masks:
        raise ValueError(f"{name} needs masks, and not every object of the training set has one")
    if kind.keypoints:
        if not dataset.keypoint_names:
            raise ValueError(f"{name} needs keypoints, and the training set's categories name none")
        arguments["num_keypoints"] = len(dataset.keypoint_names)
    if kind.builder is not fasterrcnn_mobilenet_v2_fpn:
        arguments |= {"weights": None, "weights_backbone": None}
    detector = kind.builder(**arguments)
    if weights is not None:
        _freeze(detector, kind)
        load_weights(detector, weights)
    # Convolutions are faster that way, on a CPU and in 16 bits on a GPU. Not the heads: torchvision's loss of keypoints
    # needs them in the usual order.
    detector.backbone.to(memory_format=torch.channels_last)
    return detector


def load_weights(detector: nn.Module, path: Path) -> None:
    """Fill the detector, or its backbone, from a local file.

    Raises:
        ValueError: If the file's keys or shapes fit neither.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("objects", "detector", "model", "state_dict"):
        state = state.get(wrapper, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a state dict of tensors, alone or under 'model' or 'state_dict'")
    if any(key.startswith("backbone.") for key in state):
        _load_detector(detector, state, path)
    else:
        _load_backbone(detector, state, path)


def _load_detector(detector: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = detector.state_dict()
    fitting = {
        key: value
        for key, value in state.items()
        if not (key.startswith(CLASS_LAYERS) and key in own and own[key].shape != value.shape)
    }
    _load(detector, fitting, path, may_lack=CLASS_LAYERS)
    renewed = sorted(state.keys() - fitting.keys())
    if renewed:
        print(f"{path.name}: other classes, so these start from scratch: {', '.join(renewed)}")


def _load_backbone(detector: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    body = getattr(detector.backbone, "body", None)
    if body is None:
        raise ValueError(
            f"{path}: a classifier's weights, but {type(detector).__name__} has its own backbone layout; "
            "give a whole detector's weights"
        )
    classifier = ("classifier.", "fc.")
    state = {key.removeprefix("features."): value for key, value in state.items() if not key.startswith(classifier)}
    _load(body, state, path)


def _load(module: nn.Module, state: dict[str, Tensor], path: Path, may_lack: tuple[str, ...] = ()) -> None:
    own = module.state_dict()
    missing = [key for key in own.keys() - state.keys() if not key.startswith(may_lack)]
    # A counter that frozen BatchNorm does not have and plain BatchNorm can do without.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    unknown = [key for key in state.keys() - own.keys() if not key.endswith("num_batches_tracked")]
    misshapen = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    problems = {"lacks": missing, "has unknown": unknown, "has other shapes for": misshapen}
    if any(problems.values()):
        details = "; ".join(
            f"{what} {', '.join(sorted(keys)[:3])} ({len(keys)} in all)" for what, keys in problems.items() if keys
        )
        raise ValueError(f"{path}: these weights do not fit {type(module).__name__}: the file {details}")
    module.load_state_dict(state, strict=False)


def _freeze(detector: nn.Module, kind: ModelKind) -> None:
    if not kind.frozen:
        return  # the single-shot detectors are trained whole, as torchvision does
    body = detector.backbone.body
    freeze_batch_norm(body)  # batches of a few images give poor statistics; the pretrained ones are better
    for name in kind.frozen:
        body.get_submodule(name).requires_grad_(False)


def _size_arguments(name: str, kind: ModelKind, image_size: tuple[int, int] | None) -> dict[str, int]:
    if kind.image_size is None:
        if image_size is not None:
            raise ValueError(f"{name} works at one fixed size; leave out --image-size")
        return {}
    min_size, max_size = image_size or kind.image_size
    return {"min_size": min_size, "max_size": max_size}

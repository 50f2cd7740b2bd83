"""The model under training, as terse-aug sees it."""

from collections.abc import Sequence

from torch import nn

from terse_aug.models.base import (
    IOU_THRESHOLDS,
    BaseAdapter,
    Detections,
    DetectorAdapter,
    GivesClassProbabilities,
    GivesInputGradients,
    ModelAdapter,
    Recorder,
    RecordsTrainingForward,
    best_scores,
)
from terse_aug.models.classifier import NO_CLASS, ClassifierAdapter, class_of
from terse_aug.models.forward_hooks import ForwardHooks
from terse_aug.models.input_gradients import input_gradients
from terse_aug.models.isolated_forward import isolated_forward
from terse_aug.models.predictions import (
    PredictionRecorder,
    Predictions,
    PredictionSource,
    conv_levels,
    flat_levels,
    levels_of,
)
from terse_aug.models.regressor import RegressorAdapter
from terse_aug.models.roi_head import Proposals, RoIHead, RoIHeadRecorder
from terse_aug.models.segmenter import SegmenterAdapter, label_map
from terse_aug.models.torchvision import TorchvisionAdapter


def as_model(model: nn.Module | ModelAdapter, iou_thresholds: Sequence[float] = IOU_THRESHOLDS) -> ModelAdapter:
    """An adapter as it is, or one for a module with torchvision's detection interface.

    Args:
        model: either.
        iou_thresholds: of the adapter for a module, see :class:`DetectorAdapter`.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(model, ModelAdapter):
        return model
    if isinstance(model, nn.Module):
        return TorchvisionAdapter(model, iou_thresholds)
    raise ValueError(f"model: expected a detector (torch.nn.Module) or a ModelAdapter, got {type(model).__name__}")


__all__ = [
    "IOU_THRESHOLDS",
    "NO_CLASS",
    "BaseAdapter",
    "ClassifierAdapter",
    "Detections",
    "DetectorAdapter",
    "ForwardHooks",
    "GivesClassProbabilities",
    "GivesInputGradients",
    "ModelAdapter",
    "PredictionRecorder",
    "PredictionSource",
    "Predictions",
    "Proposals",
    "Recorder",
    "RecordsTrainingForward",
    "RegressorAdapter",
    "RoIHead",
    "RoIHeadRecorder",
    "SegmenterAdapter",
    "TorchvisionAdapter",
    "as_model",
    "best_scores",
    "class_of",
    "conv_levels",
    "flat_levels",
    "input_gradients",
    "isolated_forward",
    "label_map",
    "levels_of",
]

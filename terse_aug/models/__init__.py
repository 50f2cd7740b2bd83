"""The model under training as terse-aug sees it."""

from torch import nn

from terse_aug.models.base import Listener, TargetModel, TellsChances, TellsInPassing, undisturbed
from terse_aug.models.classifier import NO_CLASS, ClassifierTarget, class_of
from terse_aug.models.forward_hooks import TrainingForwards
from terse_aug.models.input_gradients import GivesGradients, pixel_gradients
from terse_aug.models.regressor import RegressionTarget
from terse_aug.models.roi_head import Anatomy, Proposals, SecondStage
from terse_aug.models.segmenter import SegmentationTarget, label_map
from terse_aug.models.torchvision import TorchvisionDetector


def as_target(model: nn.Module | TargetModel) -> TargetModel:
    """A target as it is, or a module with torchvision's detection interface wrapped as one.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(model, TargetModel):
        return model
    if isinstance(model, nn.Module):
        return TorchvisionDetector(model)
    raise ValueError(f"target: expected a detector (torch.nn.Module) or a TargetModel, got {type(model).__name__}")


__all__ = [
    "NO_CLASS",
    "Anatomy",
    "ClassifierTarget",
    "GivesGradients",
    "Listener",
    "Proposals",
    "RegressionTarget",
    "SecondStage",
    "SegmentationTarget",
    "TargetModel",
    "TellsChances",
    "TellsInPassing",
    "TorchvisionDetector",
    "TrainingForwards",
    "as_target",
    "class_of",
    "label_map",
    "pixel_gradients",
    "undisturbed",
]

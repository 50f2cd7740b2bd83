"""What terse-aug needs from the model under training, and what the adapters share.

Shape letters: B images, N objects of an image, K classes, n detections of an image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from terse_aug.models.input_gradients import input_gradients
from terse_aug.models.isolated_forward import isolated_forward
from terse_aug.models.padding import mean_best_scores
from terse_aug.structures.annotations import Target
from terse_aug.utils.random import isolated_global_rng

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""COCO's overlaps from 0.5 to 0.95, over which AP is averaged."""


@runtime_checkable
class ModelAdapter(Protocol):
    """The model under training (the paper's "target"), as terse-aug uses it.

    Both methods leave the model unchanged: gradients, BatchNorm statistics and the global random generators. The
    policies ``random`` and ``adversarial`` need neither of them in live training.

    Attributes:
        first_label: lowest label of an object: 1 where 0 is the background, else 0.
        label_limit: labels have to be below this; ``None`` if unknown.
    """

    first_label: int
    label_limit: int | None

    def image_losses(self, images: Sequence[Tensor], targets: Sequence[Target], differentiable: bool = False) -> Tensor:
        """The training loss of each image, float ``[B]``; ``differentiable``: with a graph that ends at the images."""
        ...

    def object_scores(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        """How well each annotated object is predicted, float ``[N]`` in [0, 1]; NaN where it is unknown.

        Hardness is one minus this. Of a classifier it is the probability of the object's class, as in the paper; of a
        detector see :class:`DetectorAdapter`.
        """
        ...


@runtime_checkable
class GivesClassProbabilities(Protocol):
    """An adapter that also predicts class probabilities, from which a policy learns more than from a score."""

    def class_probabilities(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        """The predicted probability of every class for each annotated object, float ``[N, label_limit]``.

        Column k is label k; at the object's label it is :meth:`ModelAdapter.object_scores`. Rows sum to 1, or are NaN
        where they are unknown. Independent probabilities (sigmoids) do not qualify.
        """
        ...


@runtime_checkable
class GivesInputGradients(Protocol):
    """An adapter that gives the gradient of a batch's loss with respect to its pixels."""

    def input_gradients(
        self, images: Sequence[Tensor], targets: Sequence[Target], loss_scale: float = 1.0
    ) -> tuple[Tensor, list[Tensor]]:
        """One forward and one backward of the whole batch, which leave the model unchanged.

        Args:
            images: as in :meth:`ModelAdapter.image_losses`.
            targets: likewise.
            loss_scale: factor of the loss before the backward, so that gradients in float16 do not vanish.

        Returns:
            The training loss of the batch, a scalar, and for each image ``loss_scale`` times its gradient, of the
            image's shape; zeros where the loss does not depend on the image.
        """
        ...


class Recorder(Protocol):
    """Records what a model predicts in its training forward; see :class:`RecordsTrainingForward`.

    An exception of its hooks must not reach the model: it may be kept in an attribute ``error``, and is warned about.
    An attribute ``complete`` that is true says that a recorded score is never NaN, which saves looking.
    """

    def scores(
        self, images: Sequence[Tensor], targets: Sequence[Target], rows: Sequence[Sequence[int]] | None = None
    ) -> list[Tensor] | None:
        """:meth:`ModelAdapter.object_scores` from the recorded training forward of these targets.

        Args:
            images: composites that the model was trained on.
            targets: theirs.
            rows: of each image the objects whose scores are needed, all by default; others may be NaN.

        Returns:
            For each object float ``[N]`` in [0, 1], NaN where nothing was recorded; ``None`` without a forward of
            these targets.
        """
        ...

    def close(self) -> None:
        """Remove all hooks from the model."""
        ...


@runtime_checkable
class RecordsTrainingForward(Protocol):
    """An adapter whose training forward gives object scores, so that no extra forward is needed."""

    def record_forward(self) -> Recorder | None:
        """Record training forwards until the recorder is closed; ``None`` for a model that does not allow it."""
        ...


class BaseAdapter(ABC):
    """Base class of adapters.

    Args:
        model: DistributedDataParallel is unwrapped.
    """

    first_label: int
    label_limit: int | None

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model

    @abstractmethod
    def losses(self, images: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        """Run the model in training mode, as it is: the loss of each image ``[B]`` or of the batch, with its graph."""

    def image_losses(self, images: Sequence[Tensor], targets: Sequence[Target], differentiable: bool = False) -> Tensor:
        """See :class:`ModelAdapter`; one forward of the batch."""
        with isolated_forward(self.model, True, differentiable, images[0].device):
            return self.losses(images, targets)

    def input_gradients(
        self, images: Sequence[Tensor], targets: Sequence[Target], loss_scale: float = 1.0
    ) -> tuple[Tensor, list[Tensor]]:
        """See :class:`GivesInputGradients`."""
        return input_gradients(self.model, images, lambda leaves: self.losses(leaves, targets).mean(), loss_scale)

    def predict(self, images: Sequence[Tensor]) -> Tensor:
        """The output of a model that maps images of one size ``[B, 3, H, W]`` to a tensor, in evaluation mode."""
        with isolated_forward(self.model, False, device=images[0].device):
            output: Tensor = self.model(torch.stack(list(images)))
        return output.float()


class Detections(NamedTuple):
    """Detections in an image.

    Attributes:
        boxes: float ``[n, 4]`` XYXY.
        labels: int ``[n]``.
        scores: float ``[n]`` in [0, 1].
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


class DetectorAdapter(BaseAdapter):
    """Base class of adapters for detectors.

    The score of an object is the mean over IoU thresholds of the best score among the detections of its class that
    overlap it by at least the threshold. One minus this is the object's part of the AP that a detector lacks: both a
    low probability and a box that does not fit count.

    Args:
        model: DistributedDataParallel is unwrapped.
        iou_thresholds: ascending, in [0, 1]; those of COCO's AP by default. ``(0.5,)`` leaves localization out.

    Raises:
        ValueError: thresholds that are not ascending or out of range.
    """

    def __init__(self, model: nn.Module, iou_thresholds: Sequence[float] = IOU_THRESHOLDS) -> None:
        super().__init__(model)
        self.iou_thresholds = tuple(iou_thresholds) if isinstance(iou_thresholds, Iterable) else ()
        ascending = all(low < high for low, high in pairwise(self.iou_thresholds))
        if not (self.iou_thresholds and ascending and 0 <= self.iou_thresholds[0] <= self.iou_thresholds[-1] <= 1):
            raise ValueError(f"iou_thresholds: expected ascending numbers from 0 to 1, got {iou_thresholds}")

    @abstractmethod
    def detections(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Detections]:
        """Run the model in evaluation mode, as it is; the targets are for frameworks whose input includes them."""

    def forward_context(self) -> AbstractContextManager[Any]:
        """The context of every forward and backward made here; none by default."""
        return nullcontext()

    def image_losses(self, images: Sequence[Tensor], targets: Sequence[Target], differentiable: bool = False) -> Tensor:
        """See :class:`ModelAdapter`; one forward per image, each with the same draw of proposals."""
        losses = []
        with isolated_forward(self.model, True, differentiable, images[0].device), self.forward_context():
            for image, target in zip(images, targets, strict=True):
                with isolated_global_rng(0, [image.device]):
                    losses.append(self.losses([image], [target]))
        return torch.stack(losses)

    def input_gradients(
        self, images: Sequence[Tensor], targets: Sequence[Target], loss_scale: float = 1.0
    ) -> tuple[Tensor, list[Tensor]]:
        """See :class:`GivesInputGradients`; every rank has to call it, since some models average over ranks."""
        with self.forward_context():
            return super().input_gradients(images, targets, loss_scale)

    def object_scores(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        """See :class:`ModelAdapter` and :func:`best_scores`; 0 below the model's own score threshold."""
        with isolated_forward(self.model, False, device=images[0].device), self.forward_context():
            found = self.detections(images, targets)
        return [best_scores(*own, target, self.iou_thresholds) for own, target in zip(found, targets, strict=True)]


def best_scores(
    boxes: Tensor, labels: Tensor, scores: Tensor, target: Target, iou_thresholds: Sequence[float]
) -> Tensor:
    """The score of each object, see :class:`DetectorAdapter`, float ``[N]``.

    Args:
        boxes: of the detections, float ``[n, 4]`` XYXY.
        labels: int ``[n]``.
        scores: float ``[n]``.
        target: annotated ``boxes`` and ``labels``.
        iou_thresholds: see :class:`DetectorAdapter`.
    """
    same_class = target["labels"][:, None] == labels[None]
    overlap = box_iou(target["boxes"].float(), boxes.to(target["boxes"].device).float())
    return mean_best_scores(overlap, same_class * scores.float(), iou_thresholds)

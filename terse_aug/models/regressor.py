"""Regression models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terse_aug.models.base import BaseAdapter
from terse_aug.structures.annotations import Target


class RegressorAdapter(BaseAdapter):
    """A model that maps images ``[B, 3, H, W]`` of one size to values ``[B, k]``, trained by the smooth L1 loss.

    A regression predicts no probability of an object. The score is ``exp(-error / tolerance)`` instead, where the error
    is the largest absolute difference of the k values: 1 for an exact prediction, 0.37 where one value is off by the
    tolerance.

    Args:
        model: the regressor; DistributedDataParallel is unwrapped.
        values: from a target with at least one object to the values that the model should predict, float ``[k]``, for
            example the centre of the object.
        tolerance: the scale of an error, in the units of the values; above 0. Also where the smooth L1 loss turns
            from quadratic to linear. The score falls below one half at 0.69 of it.

    Raises:
        ValueError: a tolerance that is not above 0.
    """

    first_label, label_limit = 0, None

    def __init__(self, model: nn.Module, values: Callable[[Target], Tensor], tolerance: float) -> None:
        super().__init__(model)
        if not tolerance > 0:
            raise ValueError(f"tolerance: expected a value above 0, got {tolerance}")
        self.values, self.tolerance = values, tolerance

    def losses(self, images: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        """See :class:`BaseAdapter`; the mean over the values, 0 for an image without objects."""
        predicted: Tensor = self.model(torch.stack(list(images))).float()
        expected = self._expected(targets, predicted)
        return F.smooth_l1_loss(predicted, expected, reduction="none", beta=self.tolerance).mean(1)

    def object_scores(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        """See :class:`ModelAdapter`; all objects of an image have the same score."""
        predicted = self.predict(images)
        errors = (predicted - self._expected(targets, predicted)).abs().amax(1)
        scores = torch.exp(-errors / self.tolerance)
        return [score.expand(len(target["boxes"])) for score, target in zip(scores, targets, strict=True)]

    def _expected(self, targets: Sequence[Target], predicted: Tensor) -> Tensor:
        """``[B, k]``; the prediction itself where there is no object."""
        rows = [
            self.values(target).to(predicted) if len(target["boxes"]) else own
            for own, target in zip(predicted, targets, strict=True)
        ]
        return torch.stack(rows)

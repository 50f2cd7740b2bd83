"""Regression as a target. Imports torch only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terse_aug.models.base import isolated_forward
from terse_aug.models.input_gradients import input_gradients
from terse_aug.structures.annotations import Target


class RegressorAdapter:
    """A model that maps images ``[B, 3, H, W]`` of one size to values ``[B, k]``, trained by the smooth L1 loss.

    There is no probability of an object in a regression. In its place stands ``exp(-error / tolerance)``, the error
    being the largest absolute difference of the k values: 1 where they are right, 0.37 where one is off by the
    tolerance.

    Args:
        model: the regressor; a DistributedDataParallel wrapper is looked through.
        values: from a target with at least one object to what the model should give, float ``[k]``, for example the
            centre of the object.
        tolerance: the scale of an error, in the units of the values; above 0. Also where the smooth L1 loss turns
            from quadratic to linear. The score falls below one half at 0.69 of it.

    Raises:
        ValueError: a tolerance that is not above 0.
    """

    first_label, label_limit = 0, None

    def __init__(self, model: nn.Module, values: Callable[[Target], Tensor], tolerance: float) -> None:
        if not tolerance > 0:
            raise ValueError(f"tolerance: expected a value above 0, got {tolerance}")
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        self.model: nn.Module = model
        self.values = values
        self.tolerance = tolerance

    def image_losses(self, images: Sequence[Tensor], targets: Sequence[Target], differentiable: bool = False) -> Tensor:
        """See :class:`ModelAdapter`; the mean over the values, 0 for an image without objects."""
        with isolated_forward(self.model, True, differentiable, images[0].device):
            given: Tensor = self.model(torch.stack(list(images))).float()
            wanted = self._wanted(targets, given)
            return F.smooth_l1_loss(given, wanted, reduction="none", beta=self.tolerance).mean(1)

    def input_gradients(
        self, images: Sequence[Tensor], targets: Sequence[Target], loss_scale: float = 1.0
    ) -> tuple[Tensor, list[Tensor]]:
        """See :class:`GivesInputGradients`."""
        return input_gradients(self.model, images, lambda own: self.image_losses(own, targets, True).mean(), loss_scale)

    def object_scores(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        """See :class:`ModelAdapter`; the same for all objects of an image, each of which it judges."""
        with isolated_forward(self.model, False, device=images[0].device):
            given: Tensor = self.model(torch.stack(list(images))).float()
        errors = (given - self._wanted(targets, given)).abs().amax(1)
        scores = torch.exp(-errors / self.tolerance)
        return [score.expand(len(target["boxes"])) for score, target in zip(scores, targets, strict=True)]

    def _wanted(self, targets: Sequence[Target], given: Tensor) -> Tensor:
        """``[B, k]``; what is given itself where there is no object."""
        rows = [
            self.values(target).to(given) if len(target["boxes"]) else own
            for own, target in zip(given, targets, strict=True)
        ]
        return torch.stack(rows)

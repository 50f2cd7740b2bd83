"""Image classifiers as targets. Imports torch only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terse_aug.models.base import isolated_forward
from terse_aug.models.input_gradients import input_gradients
from terse_aug.structures.annotations import Target


class ClassifierAdapter:
    """A model that maps images ``[B, 3, H, W]`` of one size to logits ``[B, classes]``, trained by cross-entropy.

    An image has one class: that of the object that is in front, which is the last of its target. :func:`class_of`
    gives it, for the training loop as for this.

    Args:
        model: the classifier; a DistributedDataParallel wrapper is looked through.
        classes: number of classes; labels are 0 to ``classes - 1``.
    """

    def __init__(self, model: nn.Module, classes: int) -> None:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        self.model: nn.Module = model
        self.first_label, self.label_limit = 0, classes

    def image_losses(self, images: Sequence[Tensor], targets: Sequence[Target], differentiable: bool = False) -> Tensor:
        """See :class:`ModelAdapter`; an image without objects, or with one of no class in front, has a loss of 0."""
        labels = class_of(targets)
        labels = torch.where((labels >= 0) & (labels < self.label_limit), labels, NO_CLASS)
        with isolated_forward(self.model, True, differentiable, images[0].device):
            logits: Tensor = self.model(torch.stack(list(images)))
            return F.cross_entropy(logits.float(), labels, reduction="none", ignore_index=NO_CLASS)

    def input_gradients(
        self, images: Sequence[Tensor], targets: Sequence[Target], loss_scale: float = 1.0
    ) -> tuple[Tensor, list[Tensor]]:
        """See :class:`GivesInputGradients`."""
        return input_gradients(self.model, images, lambda own: self.image_losses(own, targets, True).mean(), loss_scale)

    def object_scores(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        """See :class:`ModelAdapter`; of the object in front, NaN of those behind it and of labels that are no class."""
        every = self.class_probabilities(images, targets)
        return [
            _of_their_class(own[:, : self.label_limit], target["labels"].long())
            for own, target in zip(every, targets, strict=True)
        ]

    def class_probabilities(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        """See :class:`GivesClassProbabilities`; of the object in front, NaN of those behind it."""
        with isolated_forward(self.model, False, device=images[0].device):
            logits: Tensor = self.model(torch.stack(list(images)))
        chances = logits.float().softmax(1)
        return [_of_the_last(own, len(target["labels"])) for own, target in zip(chances, targets, strict=True)]


def _of_the_last(chances: Tensor, count: int) -> Tensor:
    """Rows for the objects of an image, of which only the last gives it its class."""
    rows = chances.new_full((count, len(chances)), torch.nan)
    rows[-1:] = chances
    return rows


def _of_their_class(chances: Tensor, labels: Tensor) -> Tensor:
    known = (labels >= 0) & (labels < chances.shape[1])
    own = chances.gather(1, labels.where(known, 0)[:, None])[:, 0]
    return torch.where(known, own, torch.nan)


NO_CLASS = -100
"""The class of an image without objects; cross-entropy leaves it out."""


def class_of(targets: Sequence[Target]) -> Tensor:
    """The class of each image, int64 ``[B]``: the label of its last object, :data:`NO_CLASS` without any."""
    device = targets[0]["labels"].device
    last = [int(target["labels"][-1]) if len(target["labels"]) else NO_CLASS for target in targets]
    return torch.tensor(last, dtype=torch.long, device=device)

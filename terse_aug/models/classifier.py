"""Image classifiers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terse_aug.models.base import BaseAdapter
from terse_aug.structures.annotations import Target

NO_CLASS = -100
"""The class of an image without objects; cross-entropy ignores it."""


class ClassifierAdapter(BaseAdapter):
    """A model that maps images ``[B, 3, H, W]`` of one size to logits ``[B, K]``, trained by cross-entropy.

    An image has one class: that of the object in front, which is the last of its target. Use :func:`class_of` in the
    training loop, too.

    Args:
        model: the classifier; DistributedDataParallel is unwrapped.
        classes: K; labels are 0 to ``classes - 1``.
    """

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__(model)
        self.first_label = 0
        self.label_limit, self._classes = classes, classes

    def losses(self, images: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        """See :class:`BaseAdapter`; 0 for an image without objects, or with one of an unknown class in front."""
        labels = class_of(targets)
        labels = torch.where((labels >= 0) & (labels < self._classes), labels, NO_CLASS)
        logits: Tensor = self.model(torch.stack(list(images)))
        return F.cross_entropy(logits.float(), labels, reduction="none", ignore_index=NO_CLASS)

    def object_scores(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        """See :class:`ModelAdapter`; NaN for objects that are not in front, and for unknown classes."""
        scores = []
        for probabilities, target in zip(self.class_probabilities(images, targets), targets, strict=True):
            labels = target["labels"].long()
            known = (labels >= 0) & (labels < self._classes)
            own = probabilities.gather(1, labels.where(known, 0)[:, None])[:, 0]
            scores.append(own.where(known, torch.nan))
        return scores

    def class_probabilities(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        """See :class:`GivesClassProbabilities`; NaN for objects that are not in front."""
        rows = []
        for probabilities, target in zip(self.predict(images).softmax(1), targets, strict=True):
            own = probabilities.new_full((len(target["labels"]), len(probabilities)), torch.nan)
            own[-1:] = probabilities
            rows.append(own)
        return rows


def class_of(targets: Sequence[Target]) -> Tensor:
    """The class of each image, int64 ``[B]``: the label of its last object, :data:`NO_CLASS` without objects."""
    last = [int(target["labels"][-1]) if len(target["labels"]) else NO_CLASS for target in targets]
    return torch.tensor(last, dtype=torch.long, device=targets[0]["labels"].device)

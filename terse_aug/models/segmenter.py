"""Semantic segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terse_aug.models.base import BaseAdapter
from terse_aug.structures.annotations import Target

BACKGROUND = 0
"""The class of pixels without an object."""


class SegmenterAdapter(BaseAdapter):
    """A model that maps images ``[B, 3, H, W]`` of one size to logits ``[B, K, H, W]``, trained by cross-entropy.

    The class of a pixel is the label of the object whose mask covers it, else 0; use :func:`label_map` in the training
    loop, too. Targets need ``masks``.

    Args:
        model: the segmenter; DistributedDataParallel is unwrapped.
        classes: K, including the background; labels are 1 to ``classes - 1``.
    """

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__(model)
        self.first_label, self.label_limit = 1, classes

    def losses(self, images: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        """See :class:`BaseAdapter`; the mean over the pixels."""
        logits: Tensor = self.model(torch.stack(list(images)))
        classes = torch.stack([label_map(target) for target in targets])
        return F.cross_entropy(logits.float(), classes, reduction="none").mean((1, 2))

    def object_scores(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        """See :class:`ModelAdapter`; the mean probability of an object's class over its mask, NaN for an empty one."""
        scores = []
        for probabilities, target in zip(self.predict(images).softmax(1), targets, strict=True):
            masks = _masks(target).to(probabilities.dtype)
            own = probabilities[target["labels"].long()]
            scores.append((own * masks).sum((1, 2)) / masks.sum((1, 2)))
        return scores


def label_map(target: Target) -> Tensor:
    """The class of every pixel, int64 ``[H, W]``; later objects are in front.

    Raises:
        ValueError: the target has no masks.
    """
    masks = _masks(target)
    classes: Tensor = masks.new_full(masks.shape[1:], BACKGROUND, dtype=torch.long)
    for mask, label in zip(masks, target["labels"], strict=True):
        classes[mask] = label.long()
    return classes


def _masks(target: Target) -> Tensor:
    if "masks" not in target:
        raise ValueError(f"a segmentation target needs masks; this one has {sorted(target)}")
    masks: Tensor = target["masks"].bool()
    return masks

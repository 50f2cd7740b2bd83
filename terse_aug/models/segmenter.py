"""Semantic segmentation as a target. Imports torch only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terse_aug.models.base import isolated_forward
from terse_aug.models.input_gradients import input_gradients
from terse_aug.structures.annotations import Target

BACKGROUND = 0
"""The class of pixels that show no object."""


class SegmenterAdapter:
    """A model that maps images ``[B, 3, H, W]`` of one size to logits ``[B, classes, H, W]``, trained by cross-entropy.

    The class of a pixel is the label of the object whose mask has it, 0 elsewhere; :func:`label_map` gives it, for the
    training loop as for this. Targets need ``masks``.

    Args:
        model: the segmenter; a DistributedDataParallel wrapper is looked through.
        classes: number of classes, the background included; labels are 1 to ``classes - 1``.
    """

    def __init__(self, model: nn.Module, classes: int) -> None:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        self.model: nn.Module = model
        self.first_label, self.label_limit = 1, classes

    def image_losses(self, images: Sequence[Tensor], targets: Sequence[Target], differentiable: bool = False) -> Tensor:
        """See :class:`ModelAdapter`; the mean over the pixels."""
        wanted = torch.stack([label_map(target) for target in targets])
        with isolated_forward(self.model, True, differentiable, images[0].device):
            logits: Tensor = self.model(torch.stack(list(images)))
            return F.cross_entropy(logits.float(), wanted, reduction="none").mean((1, 2))

    def input_gradients(
        self, images: Sequence[Tensor], targets: Sequence[Target], loss_scale: float = 1.0
    ) -> tuple[Tensor, list[Tensor]]:
        """See :class:`GivesInputGradients`."""
        return input_gradients(self.model, images, lambda own: self.image_losses(own, targets, True).mean(), loss_scale)

    def object_scores(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        """See :class:`ModelAdapter`; the mean probability of an object's class over its mask, NaN for an empty one."""
        with isolated_forward(self.model, False, device=images[0].device):
            logits: Tensor = self.model(torch.stack(list(images)))
        scores = []
        for chances, target in zip(logits.float().softmax(1), targets, strict=True):
            masks = _masks(target).to(chances.dtype)
            own = chances[target["labels"].long()]
            scores.append((own * masks).sum((1, 2)) / masks.sum((1, 2)))
        return scores


def label_map(target: Target) -> Tensor:
    """The class of every pixel, int64 ``[H, W]``.

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

"""Hearing how hard objects are from the second stage of a detector, while it is trained. Imports torch and torchvision.

A two-stage detector classifies proposals in every training forward; of those that overlap an object, the best says as
much of it as a detection would. The proposals among which a detector mixes the annotated boxes themselves are told
apart by these: they show that the forward was of this batch, and are left out, because no detector is given them when
it counts.
Shape letters: B images, N objects of all images, R proposals of all images, K columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchvision.ops import box_iou

from terse_aug._sample import Target

_SAME_BOX = 0.99
_MOST_HEARD = 4


@dataclass(frozen=True)
class Proposals:
    """The proposals of a batch.

    Attributes:
        boxes: float ``[R, 4]`` XYXY, detached.
        image_of: whole numbers ``[R]``, of any type: the image of each.
        sizes: of each image as the model had it, (height, width), if that is another than the composite's.
    """

    boxes: Tensor
    image_of: Tensor
    sizes: Sequence[tuple[int, int]] | None = None

    @classmethod
    def by_image(cls, boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None) -> Proposals:
        """Of a list with float ``[r, 4]`` for each image."""
        return cls(torch.cat(list(boxes)).detach(), _image_of([len(own) for own in boxes]), sizes)


class SecondStage:
    """Listens to the modules of a second stage, which have to be called one after the other in a training forward.

    Args:
        pooler: the module that is given proposals.
        predictor: the module that gives their class logits.
        proposals: from the pooler's arguments to what it is given.
        probabilities: from the predictor's output to float ``[R, K]``, label k in column k.
        iou_threshold: a proposal belongs to an object if they overlap at least this much.
    """

    def __init__(
        self,
        pooler: nn.Module,
        predictor: nn.Module,
        proposals: Callable[[tuple[Any, ...]], Proposals],
        probabilities: Callable[[Any], Tensor],
        iou_threshold: float,
    ) -> None:
        self._proposals, self._probabilities, self._iou_threshold = proposals, probabilities, iou_threshold
        self._last: Proposals | None = None
        self._heard: list[tuple[Proposals, Tensor]] = []
        self._handles: list[RemovableHandle] = [
            pooler.register_forward_hook(self._see),
            predictor.register_forward_hook(self._hear),
        ]

    def scores(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor] | None:
        """See :class:`terse_aug.targets.Listener`.

        An object of which not even the annotated box was among the sampled proposals has not been heard of; one whose
        box was, but no proposal near it, has been missed.
        """
        for proposals, probabilities in self._heard:
            if (found := self._scores(proposals, probabilities, images, targets)) is not None:
                return found
        return None

    def close(self) -> None:
        """See :class:`terse_aug.targets.Listener`."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._heard.clear()

    def _see(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._last = self._proposals(inputs) if module.training else None

    def _hear(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self._last is None or not module.training or len(self._heard) == _MOST_HEARD:
            return
        probabilities = self._probabilities(output).detach()
        if len(probabilities) == len(self._last.boxes):
            self._heard.append((self._last, probabilities))
        self._last = None

    def _scores(
        self, proposals: Proposals, probabilities: Tensor, images: Sequence[Tensor], targets: Sequence[Target]
    ) -> list[Tensor] | None:
        """Scores of all objects, if the forward was of these targets."""
        if proposals.sizes is not None and len(proposals.sizes) != len(images):
            return None
        counts = [len(target["boxes"]) for target in targets]
        objects = torch.cat([target["boxes"] for target in targets]).float()
        labels = torch.cat([target["labels"] for target in targets])
        boxes = _in_composites(proposals, images).to(objects)
        same_image = _image_of(counts)[:, None].to(objects) == proposals.image_of.to(objects)
        overlap = box_iou(objects, boxes) * same_image
        annotated = overlap > _SAME_BOX
        if not bool(annotated.any()):
            return None
        near = (overlap >= self._iou_threshold) & ~annotated.any(0)
        own_class = probabilities.float()[:, labels].T
        found = torch.where(near, own_class, 0.0).amax(1)
        heard = near.any(1) | annotated.any(1)
        return list(torch.split(torch.where(heard, found, torch.nan), counts))


def _in_composites(proposals: Proposals, images: Sequence[Tensor]) -> Tensor:
    """Boxes ``[R, 4]`` in pixels of the composites."""
    if proposals.sizes is None:
        return proposals.boxes
    pairs = zip(images, proposals.sizes, strict=True)
    factors = [(image.shape[-1] / width, image.shape[-2] / height) for image, (height, width) in pairs]
    return proposals.boxes * torch.tensor(factors).repeat(1, 2)[proposals.image_of.cpu().long()].to(proposals.boxes)


def _image_of(counts: Sequence[int]) -> Tensor:
    """The image of each of some rows, ``[sum(counts)]``, on the CPU."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))

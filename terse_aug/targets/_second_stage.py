"""Hearing how hard objects are from the second stage of a detector, while it is trained. Imports torch and torchvision.

A two-stage detector classifies proposals in every training forward; of those that overlap an object, the best says as
much of it as a detection would. The annotated boxes, which detectors mix among their proposals, are left out: no
detector is given them when it counts.
Shape letters: B images, N objects of all images, R proposals of all images, K columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from terse_aug._sample import Target
from terse_aug.targets._listening import Arguments, TrainingForwards

_SAME_BOX = 0.99


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


@dataclass(frozen=True)
class Anatomy:
    """Where a detector's training forward passes, and how to read what passes there.

    Attributes:
        model: the detector.
        annotated: from its arguments to the boxes that it is trained on, for each image float ``[n, 4]`` XYXY.
        pooler: the module that is given sampled proposals.
        proposals: from its arguments to these.
        predictor: the module that gives their class logits, after the pooler.
        probabilities: from its output to float ``[R, K]``, label k in column k.
        head: the module that is given all proposals, before it samples from them; ``None`` if there is none.
        offered: from its arguments to these.
    """

    model: nn.Module
    annotated: Callable[[Arguments, Mapping[str, Any]], Sequence[Tensor]]
    pooler: nn.Module
    proposals: Callable[[Arguments], Proposals]
    predictor: nn.Module
    probabilities: Callable[[Any], Tensor]
    head: nn.Module | None = None
    offered: Callable[[Arguments], Proposals] | None = None


@dataclass
class _Forward:
    """What was heard of one training forward."""

    annotated: Sequence[Tensor]
    offered: Proposals | None = None
    proposals: Proposals | None = None
    probabilities: Tensor | None = None


class SecondStage(TrainingForwards[_Forward]):
    """Listens to a detector with a second stage; a :class:`terse_aug.targets.Listener`.

    Args:
        anatomy: of the detector.
        iou_threshold: a proposal belongs to an object if they overlap at least this much.
    """

    def __init__(self, anatomy: Anatomy, iou_threshold: float) -> None:
        super().__init__(anatomy.model)
        self._anatomy, self._iou_threshold = anatomy, iou_threshold
        self.hold(anatomy.pooler.register_forward_hook(self._see))
        self.hold(anatomy.predictor.register_forward_hook(self._hear))
        if anatomy.head is not None:
            self.hold(anatomy.head.register_forward_pre_hook(self._take_in))

    def begun(self, inputs: Arguments, named: Mapping[str, Any]) -> _Forward:
        """The boxes that the forward is trained on."""
        return _Forward([boxes.detach() for boxes in self._anatomy.annotated(inputs, named)])

    def scores(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor] | None:
        """See :class:`terse_aug.targets.Listener`.

        An object that no proposal came near has been missed: 0. One of whose proposals none was sampled has not been
        heard of: NaN.
        """
        for forward in self.forwards:
            if forward.probabilities is not None and _is_of(forward, targets):
                return self._scores(forward, images, targets)
        return None

    def _take_in(self, module: nn.Module, inputs: Arguments) -> None:
        if self.current is not None and self._anatomy.offered is not None:
            self.current.offered = self._anatomy.offered(inputs)

    def _see(self, module: nn.Module, inputs: Arguments, output: Any) -> None:
        # A cascade pools again for its later stages, which are not listened to.
        if self.current is not None and self.current.proposals is None:
            self.current.proposals = self._anatomy.proposals(inputs)

    def _hear(self, module: nn.Module, inputs: Arguments, output: Any) -> None:
        forward = self.current
        if forward is None or forward.proposals is None or forward.probabilities is not None:
            return
        probabilities = self._anatomy.probabilities(output).detach().float()
        if len(probabilities) == len(forward.proposals.boxes):
            forward.probabilities = probabilities

    def _scores(self, forward: _Forward, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        assert forward.proposals is not None
        assert forward.probabilities is not None
        counts = [len(target["boxes"]) for target in targets]
        labels = torch.cat([target["labels"] for target in targets])
        near, annotated = self._near(forward.proposals, images, targets)
        own_class = forward.probabilities[:, labels].T
        best = torch.where(near, own_class, 0.0).amax(1) if near.shape[1] else own_class.new_zeros(len(labels))
        # Had there been others near an object whose annotated box was sampled, so might they have been.
        missed = annotated.any(1)
        if forward.offered is not None:
            missed = ~self._near(forward.offered, images, targets)[0].any(1)
        return list(torch.split(torch.where(near.any(1) | missed, best, torch.nan), counts))

    def _near(self, proposals: Proposals, images: Sequence[Tensor], targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
        """Which proposals belong to which objects, and which are an object's annotated box; bool ``[N, R]``."""
        objects = torch.cat([target["boxes"] for target in targets]).float()
        of_object = _image_of([len(target["boxes"]) for target in targets]).to(objects)
        boxes = _in_composites(proposals, images).to(objects)
        overlap = box_iou(objects, boxes) * (of_object[:, None] == proposals.image_of.to(objects))
        annotated = overlap > _SAME_BOX
        return (overlap >= self._iou_threshold) & ~annotated.any(0), annotated


def _is_of(forward: _Forward, targets: Sequence[Target]) -> bool:
    """Whether a forward was trained on these targets."""
    boxes = [target["boxes"] for target in targets]
    if [own.shape for own in forward.annotated] != [own.shape for own in boxes]:
        return False
    known, told = torch.cat(list(forward.annotated)), torch.cat(boxes)
    return torch.allclose(known.to(told), told)


def _in_composites(proposals: Proposals, images: Sequence[Tensor]) -> Tensor:
    """Boxes ``[R, 4]`` in pixels of the composites."""
    if proposals.sizes is None:
        return proposals.boxes
    pairs = zip(images, proposals.sizes, strict=True)
    factors = [(image.shape[-1] / width, image.shape[-2] / height) for image, (height, width) in pairs]
    return proposals.boxes * torch.tensor(factors).repeat(1, 2)[proposals.image_of].to(proposals.boxes)


def _image_of(counts: Sequence[int]) -> Tensor:
    """The image of each of some rows, ``[sum(counts)]``, on the CPU."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))

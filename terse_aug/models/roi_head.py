"""Hearing how hard objects are from the second stage of a detector, while it is trained. Imports torch and torchvision.

A two-stage detector classifies proposals in every training forward; of those that overlap an object, the best says as
much of it as a detection would. The annotated boxes, which detectors mix among their proposals, are left out: no
detector is given them when it counts.
Shape letters: B images, N objects of an image, r proposals of an image, R of all, K columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from terse_aug.models.forward_hooks import Arguments, ForwardHooks
from terse_aug.structures.annotations import Target

_SLACK = 0.01


@dataclass(frozen=True)
class Proposals:
    """The proposals of a batch, image by image.

    Attributes:
        boxes: float ``[R, 4]`` XYXY, detached.
        of_image: how many are of each image; or whole numbers ``[R]`` of any type, the image of each, ascending.
        sizes: of each image as the model had it, (height, width), if that is another than the composite's.
    """

    boxes: Tensor
    of_image: Sequence[int] | Tensor
    sizes: Sequence[tuple[int, int]] | None = None

    @classmethod
    def by_image(cls, boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None) -> Proposals:
        """Of a list with float ``[r, 4]`` for each image."""
        return cls(torch.cat(list(boxes)).detach(), [len(own) for own in boxes], sizes)

    def counts(self, images: int) -> list[int]:
        """How many are of each of so many images."""
        if not isinstance(self.of_image, Tensor):
            return list(self.of_image)
        counts: list[int] = torch.bincount(self.of_image.long(), minlength=images).tolist()
        return counts


@dataclass(frozen=True)
class RoIHead:
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


class RoIHeadRecorder(ForwardHooks[_Forward]):
    """Listens to a detector with a second stage; a :class:`terse_aug.models.Recorder`.

    Args:
        anatomy: of the detector.
        iou_threshold: a proposal belongs to an object if they overlap at least this much.
    """

    def __init__(self, anatomy: RoIHead, iou_threshold: float) -> None:
        super().__init__(anatomy.model)
        self._anatomy, self._iou_threshold = anatomy, iou_threshold
        if anatomy.head is not None:
            self.on_call(anatomy.head, self._take_in)
        self.on_call(anatomy.pooler, self._see)
        self.on_output(anatomy.predictor, self._hear)

    def begun(self, inputs: Arguments, named: Mapping[str, Any]) -> _Forward:
        """The boxes that the forward is trained on."""
        return _Forward([boxes.detach() for boxes in self._anatomy.annotated(inputs, named)])

    def scores(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor] | None:
        """See :class:`terse_aug.models.Recorder`.

        An object that no proposal came near has been missed: 0. One of whose proposals none was sampled has not been
        heard of: NaN.
        """
        for forward in self.forwards:
            if forward.probabilities is not None and _is_of(forward, targets):
                return self._scores(forward, images, targets)
        return None

    def _take_in(self, forward: _Forward, inputs: Arguments) -> None:
        if self._anatomy.offered is not None:
            forward.offered = self._anatomy.offered(inputs)

    def _see(self, forward: _Forward, inputs: Arguments) -> None:
        # A cascade pools again for its later stages, which are not listened to.
        if forward.proposals is None:
            forward.proposals = self._anatomy.proposals(inputs)

    def _hear(self, forward: _Forward, output: Any) -> None:
        if forward.proposals is None or forward.probabilities is not None:
            return
        probabilities = self._anatomy.probabilities(output).detach()
        if len(probabilities) == len(forward.proposals.boxes):
            forward.probabilities = probabilities

    def _scores(self, forward: _Forward, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        assert forward.proposals is not None
        assert forward.probabilities is not None
        counts = forward.proposals.counts(len(images))
        sampled = _by_composite(forward.proposals, counts, images)
        probabilities = torch.split(forward.probabilities, counts)
        offered = None
        if forward.offered is not None:
            offered = _by_composite(forward.offered, forward.offered.counts(len(images)), images)
        scores = []
        for number, target in enumerate(targets):
            near, annotated = _near(*sampled[number], target["boxes"].float(), self._iou_threshold)
            own_class = probabilities[number].float()[:, target["labels"]].T
            best = torch.where(near, own_class, 0.0)
            best = best.amax(1) if best.shape[1] else own_class.new_zeros(len(own_class))
            # Had there been others near an object whose annotated box was sampled, so might they have been.
            missed = annotated.any(1)
            if offered is not None:
                missed = ~_near(*offered[number], target["boxes"].float(), self._iou_threshold)[0].any(1)
            scores.append(torch.where(near.any(1) | missed, best, torch.nan))
        return scores


def _near(boxes: Tensor, factors: Tensor, objects: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Which boxes of an image belong to which objects, and which are an object's annotated box; bool ``[N, r]``.

    Args:
        boxes: in the model's pixels.
        factors: ``[4]``, by which they are multiplied to be in the composite's.
        objects: in the composite's.
        iou_threshold: where a box begins to belong to an object.
    """
    # Under autocast, a detector's annotated boxes are rounded as its proposals are.
    rounded = (objects / factors).to(boxes.dtype).float()
    annotated = ((rounded[:, None] - boxes.float()).abs() <= _SLACK).all(2)
    return (box_iou(objects, boxes.float() * factors) >= iou_threshold) & ~annotated.any(0), annotated


def _is_of(forward: _Forward, targets: Sequence[Target]) -> bool:
    """Whether a forward was trained on these targets."""
    boxes = [target["boxes"] for target in targets]
    if [own.shape for own in forward.annotated] != [own.shape for own in boxes]:
        return False
    known, told = torch.cat(list(forward.annotated)), torch.cat(boxes)
    return torch.allclose(known.to(told), told)


def _by_composite(proposals: Proposals, counts: Sequence[int], images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """For each image its boxes ``[r, 4]``, and the factors ``[4]`` that bring them into pixels of the composite."""
    found = []
    for number, (own, image) in enumerate(zip(torch.split(proposals.boxes, list(counts)), images, strict=True)):
        factors = own.new_ones(4, dtype=torch.float32)
        if proposals.sizes is not None:
            height, width = proposals.sizes[number]
            factors = torch.tensor([image.shape[-1] / width, image.shape[-2] / height]).repeat(2).to(factors)
        found.append((own, factors))
    return found

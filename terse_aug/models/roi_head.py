"""Object scores from the RoI head of a two-stage detector, recorded in its training forward.

A two-stage detector classifies proposals in every training forward. Of the proposals that overlap an object, the best
score of its class stands for a detection's. Annotated boxes, which detectors mix among their proposals, do not count:
they are not available at inference.
Shape letters: B images, N objects and P proposals of an image at most, R proposals of all images, K columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from terse_aug.models.forward_hooks import Arguments, ForwardHooks
from terse_aug.models.padding import PaddedObjects, overlaps, padded_index, scale_factors
from terse_aug.models.predictions import matching_boxes
from terse_aug.structures.annotations import Target
from terse_aug.utils.transfer import to_device

_BOX_TOLERANCE = 0.01


@dataclass(frozen=True)
class Proposals:
    """The proposals of a batch, image by image.

    Attributes:
        boxes: float ``[R, 4]`` XYXY, detached.
        of_image: number of proposals of each image; or the image of each proposal, ascending ``[R]`` of any type.
        sizes: (height, width) of each image in the model, if that differs from the composite's.
    """

    boxes: Tensor
    of_image: Sequence[int] | Tensor
    sizes: Sequence[tuple[int, int]] | None = None

    @classmethod
    def by_image(cls, boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None) -> Proposals:
        """From float ``[r, 4]`` for each image."""
        return cls(torch.cat(list(boxes)).detach(), [len(own) for own in boxes], sizes)

    def counts(self, images: int) -> list[int]:
        """The number of proposals of each of so many images."""
        if not isinstance(self.of_image, Tensor):
            return list(self.of_image)
        counts: list[int] = torch.bincount(self.of_image.long(), minlength=images).tolist()
        return counts


@dataclass(frozen=True)
class RoIHead:
    """The modules of a detector with an RoI head, and how to read their arguments and outputs.

    Attributes:
        model: the detector.
        annotated_boxes: from its arguments to the annotated boxes, float ``[n, 4]`` XYXY for each image.
        pooler: the module whose input are sampled proposals.
        sampled_proposals: from its arguments to these.
        predictor: the module whose output are their class logits, after the pooler.
        probabilities: from its output to float ``[R, K]``, label k in column k.
        head: the module whose input are all proposals, from which it samples; ``None`` if there is none.
        all_proposals: from its arguments to these.
    """

    model: nn.Module
    annotated_boxes: Callable[[Arguments, Mapping[str, Any]], Sequence[Tensor]]
    pooler: nn.Module
    sampled_proposals: Callable[[Arguments], Proposals]
    predictor: nn.Module
    probabilities: Callable[[Any], Tensor]
    head: nn.Module | None = None
    all_proposals: Callable[[Arguments], Proposals] | None = None


@dataclass
class _Record:
    annotated_boxes: Sequence[Tensor]
    all_proposals: Proposals | None = None
    sampled: Proposals | None = None
    probabilities: Tensor | None = None


class RoIHeadRecorder(ForwardHooks[_Record]):
    """Records the object scores of an RoI head; a :class:`terse_aug.models.Recorder`.

    Args:
        roi_head: of the detector.
        iou_threshold: a proposal belongs to an object from this overlap on.
    """

    def __init__(self, roi_head: RoIHead, iou_threshold: float) -> None:
        super().__init__(roi_head.model)
        self._roi_head, self._iou_threshold = roi_head, iou_threshold
        if roi_head.head is not None:
            self.on_input(roi_head.head, self._add_all_proposals)
        self.on_input(roi_head.pooler, self._add_sampled)
        self.on_output(roi_head.predictor, self._add_probabilities)

    def start_record(self, inputs: Arguments, keywords: Mapping[str, Any]) -> _Record:
        """With the annotated boxes."""
        return _Record(self._roi_head.annotated_boxes(inputs, keywords))

    def scores(
        self, images: Sequence[Tensor], targets: Sequence[Target], rows: Sequence[Sequence[int]] | None = None
    ) -> list[Tensor] | None:
        """See :class:`terse_aug.models.Recorder`.

        An object that no proposal overlaps is missed: 0. One whose proposals were not sampled is unknown: NaN.
        """
        for record in self.records:
            if record.probabilities is not None and matching_boxes(record.annotated_boxes, images, targets):
                return self._scores(record, images, targets)
        return None

    def _add_all_proposals(self, record: _Record, inputs: Arguments) -> None:
        if self._roi_head.all_proposals is not None:
            record.all_proposals = self._roi_head.all_proposals(inputs)

    def _add_sampled(self, record: _Record, inputs: Arguments) -> None:
        # A cascade pools again for its later stages, which are not recorded.
        if record.sampled is None:
            record.sampled = self._roi_head.sampled_proposals(inputs)

    def _add_probabilities(self, record: _Record, output: Any) -> None:
        if record.sampled is None or record.probabilities is not None:
            return
        probabilities = self._roi_head.probabilities(output).detach()
        if len(probabilities) == len(record.sampled.boxes):
            record.probabilities = probabilities

    def _scores(self, record: _Record, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        assert record.sampled is not None
        assert record.probabilities is not None
        objects = PaddedObjects.of(targets)
        sampled = _Padded.of(record.sampled, len(images))
        near, annotated = _near(sampled, record.sampled.sizes, objects, images, self._iou_threshold)
        columns = record.probabilities.shape[1]
        probabilities = sampled.pad(record.probabilities.float())
        index = objects.labels.clamp(0, columns - 1)[:, None].expand(-1, probabilities.shape[1], -1)
        own_class = probabilities.gather(2, index).transpose(1, 2)
        known = (objects.labels >= 0) & (objects.labels < columns)
        own_class = torch.where(known[:, :, None], own_class, 0.0)
        # A box of score 0 for objects without any.
        best = nn.functional.pad(torch.where(near, own_class, 0.0), (0, 1)).amax(2)
        # Without all proposals: if the object's annotated box was sampled, others near it would have been, too.
        missed = annotated.any(2)
        if record.all_proposals is not None:
            proposals = _Padded.of(record.all_proposals, len(images))
            missed = ~_near(proposals, record.all_proposals.sizes, objects, images, self._iou_threshold)[0].any(2)
        return objects.split(torch.where(near.any(2) | missed, best, torch.nan))


@dataclass(frozen=True)
class _Padded:
    """Proposals of all images in one tensor, with empty boxes where an image has fewer.

    Attributes:
        boxes: float ``[B, P, 4]`` in the model's pixels.
        index: ``[B, P]``, rows of the proposals.
    """

    boxes: Tensor
    index: Tensor

    @classmethod
    def of(cls, proposals: Proposals, images: int) -> _Padded:
        counts = proposals.counts(images)
        (index,) = to_device([padded_index([range(count) for count in counts], counts)], proposals.boxes.device)
        return cls(_padded(proposals.boxes, index), index)

    def pad(self, values: Tensor) -> Tensor:
        """Values ``[R, K]`` of the proposals as ``[B, P, K]``."""
        return _padded(values, self.index)


def _padded(values: Tensor, index: Tensor) -> Tensor:
    return torch.cat([values, values.new_zeros(1, values.shape[1])])[index]


def _near(
    proposals: _Padded,
    sizes: Sequence[tuple[int, int]] | None,
    objects: PaddedObjects,
    images: Sequence[Tensor],
    iou_threshold: float,
) -> tuple[Tensor, Tensor]:
    """Which proposals belong to which objects, and which are an object's annotated box; bool ``[B, N, P]``.

    Args:
        proposals: in the model's pixels.
        sizes: of the images in the model, if they differ from the composites'.
        objects: in the composites' pixels.
        images: the composites.
        iou_threshold: a proposal belongs to an object from this overlap on.
    """
    boxes, own = proposals.boxes, objects.boxes.to(proposals.boxes.device)
    if sizes is not None:
        shown = [(image.shape[-2], image.shape[-1]) for image in images]
        own = own * to_device([scale_factors(sizes, shown)], boxes.device)[0]
    # Under autocast, a detector's annotated boxes are rounded as its proposals are.
    rounded = own.to(boxes.dtype).float()
    annotated = ((rounded[:, :, None] - boxes[:, None].float()).abs() <= _BOX_TOLERANCE).all(3)
    near = overlaps(own, boxes.float()) >= iou_threshold
    return near & ~annotated.any(1, keepdim=True), annotated

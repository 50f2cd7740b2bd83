"""Object scores from the RoI head of a two-stage detector, recorded in its training forward.

A two-stage detector classifies and refines proposals in every training forward. They stand for detections: of those
that overlap an object by a threshold, the best score of its class counts. Annotated boxes, which detectors mix among
their proposals, do not: they are not available at inference.
Shape letters: B images, N objects and P proposals of an image at most, R proposals of all images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from terse_aug.models.forward_hooks import Arguments, ForwardHooks
from terse_aug.models.padding import PaddedObjects, mean_best_scores, overlaps, padded_index, scale_factors
from terse_aug.models.predictions import detached, matching_boxes
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
        refined: from its output and the proposals ``[R, 4]`` to their refined boxes, float ``[R, K * 4]``, or
            ``[R, 4]`` for all classes; ``None`` if it does not refine them.
        head: the module whose input are all proposals, from which it samples; ``None`` if there is none.
        all_proposals: from its arguments to these.
    """

    model: nn.Module
    annotated_boxes: Callable[[Arguments, Mapping[str, Any]], Sequence[Tensor]]
    pooler: nn.Module
    sampled_proposals: Callable[[Arguments], Proposals]
    predictor: nn.Module
    probabilities: Callable[[Any], Tensor]
    refined: Callable[[Any, Tensor], Tensor] | None = None
    head: nn.Module | None = None
    all_proposals: Callable[[Arguments], Proposals] | None = None


@dataclass
class _Record:
    annotated_boxes: Sequence[Tensor]
    all_proposals: Proposals | None = None
    sampled: Proposals | None = None
    probabilities: Tensor | None = None
    output: Any = None


class RoIHeadRecorder(ForwardHooks[_Record]):
    """Records the object scores of an RoI head; a :class:`terse_aug.models.Recorder`.

    Args:
        roi_head: of the detector.
        iou_thresholds: see :class:`DetectorAdapter`.
    """

    def __init__(self, roi_head: RoIHead, iou_thresholds: Sequence[float]) -> None:
        super().__init__(roi_head.model)
        self._roi_head, self._iou_thresholds = roi_head, iou_thresholds
        if roi_head.head is not None:
            self.on_input(roi_head.head, self._add_all_proposals)
        self.on_input(roi_head.pooler, self._add_sampled)
        self.on_output(roi_head.predictor, self._add_output)

    def start_record(self, inputs: Arguments, keywords: Mapping[str, Any]) -> _Record:
        """With the annotated boxes."""
        return _Record(self._roi_head.annotated_boxes(inputs, keywords))

    @torch.no_grad()
    def scores(
        self, images: Sequence[Tensor], targets: Sequence[Target], rows: Sequence[Sequence[int]] | None = None
    ) -> list[Tensor] | None:
        """See :class:`terse_aug.models.Recorder`.

        An object that no proposal overlaps is missed. One whose proposals were not sampled is unknown: NaN.
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

    def _add_output(self, record: _Record, output: Any) -> None:
        if record.sampled is None or record.probabilities is not None:
            return
        probabilities = self._roi_head.probabilities(output)
        if len(probabilities) == len(record.sampled.boxes):
            record.probabilities, record.output = probabilities, detached(output)

    def _scores(self, record: _Record, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        assert record.sampled is not None
        assert record.probabilities is not None
        objects = PaddedObjects.of(targets)
        proposals = _Padded.of(record.sampled, record.all_proposals, images)
        own = objects.boxes.to(proposals.factors.device) * proposals.factors
        near, annotated = _near(proposals.boxes, own, self._iou_thresholds[0])
        probabilities = proposals.pad(record.probabilities.float())
        known = (objects.labels >= 0) & (objects.labels < probabilities.shape[2])
        own_class = _of_labels(probabilities[..., None], objects.labels)[..., 0]
        sampled = probabilities.shape[1]
        counts = known[:, :, None] & ~annotated[..., :sampled].any(1, keepdim=True)
        boxes = proposals.boxes[:, :sampled].float()
        if self._roi_head.refined is not None:
            refined = proposals.pad(self._roi_head.refined(record.output, record.sampled.boxes).float())
            by_class = refined.view(len(images), sampled, refined.shape[2] // 4, 4)
            boxes = torch.minimum(_of_labels(by_class, objects.labels).clamp(min=0), proposals.limits[:, None])
        scores = mean_best_scores(overlaps(own, boxes), own_class * counts, self._iou_thresholds)
        # Without all proposals: if the object's annotated box was sampled, others near it would have been, too.
        missed = annotated.any(2) if record.all_proposals is None else ~near[..., sampled:].any(2)
        return objects.split(torch.where(near[..., :sampled].any(2) | missed, scores, torch.nan))


@dataclass(frozen=True)
class _Padded:
    """The sampled and all proposals of all images in one tensor, with empty boxes where an image has fewer.

    Attributes:
        boxes: float ``[B, P, 4]`` in the model's pixels, first the sampled ones.
        index: ``[B, p]``, rows of the sampled ones.
        factors: from pixels of the composites to those of the model ``[B, 1, 4]``.
        limits: the largest coordinates in the model ``[B, 1, 4]``.
    """

    boxes: Tensor
    index: Tensor
    factors: Tensor
    limits: Tensor

    @classmethod
    def of(cls, sampled: Proposals, every: Proposals | None, images: Sequence[Tensor]) -> _Padded:
        shown = [(image.shape[-2], image.shape[-1]) for image in images]
        sizes = sampled.sizes or shown
        limits = torch.tensor([[width, height] for height, width in sizes], dtype=torch.float32).repeat(1, 2)[:, None]
        kinds = [sampled] if every is None else [sampled, every]
        # One upload and one index for both kinds; a row of zeros after each.
        indices, first = [], 0
        for kind in kinds:
            counts = kind.counts(len(images))
            indices.append(padded_index([range(count) for count in counts], counts) + first)
            first += len(kind.boxes) + 1
        parts = [torch.cat(indices, 1), indices[0], scale_factors(sizes, shown), limits]
        index, own_index, factors, limits = to_device(parts, sampled.boxes.device)
        zero = sampled.boxes.new_zeros(1, 4)
        boxes = torch.cat([part for kind in kinds for part in (kind.boxes, zero)])[index]
        return cls(boxes, own_index, factors, limits)

    def pad(self, values: Tensor) -> Tensor:
        """Values ``[R, K]`` of the sampled proposals as ``[B, p, K]``."""
        return torch.cat([values, values.new_zeros(1, values.shape[1])])[self.index]


def _of_labels(values: Tensor, labels: Tensor) -> Tensor:
    """Of values ``[B, P, K, n]``, or ``[B, P, 1, n]`` for all classes, those of labels ``[B, N]``: ``[B, N, P, n]``."""
    index = labels.clamp(0, values.shape[2] - 1)[:, None, :, None]
    return values.gather(2, index.expand(-1, values.shape[1], -1, values.shape[3])).transpose(1, 2)


def _near(boxes: Tensor, own: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Which proposals overlap which objects, and which are an object's annotated box; bool ``[B, N, P]``.

    Args:
        boxes: of the proposals ``[B, P, 4]``.
        own: the objects ``[B, N, 4]``.
        iou_threshold: a proposal overlaps an object from this on.
    """
    # Under autocast, a detector's annotated boxes are rounded as its proposals are.
    rounded = own.to(boxes.dtype).float()
    annotated = ((rounded[:, :, None] - boxes[:, None].float()).abs() <= _BOX_TOLERANCE).all(3)
    near = overlaps(own, boxes.float()) >= iou_threshold
    return near & ~annotated.any(1, keepdim=True), annotated

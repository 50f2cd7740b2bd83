"""Objects and boxes of a batch in tensors of one size, so that all images are compared at once.

Shape letters: B images, N objects of an image at most, P boxes of an image at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from terse_aug.structures.annotations import Target
from terse_aug.utils.transfer import constant, to_device


@dataclass(frozen=True)
class PaddedObjects:
    """The annotated objects of a batch; missing ones have an empty box and label 0.

    Attributes:
        boxes: float ``[B, N, 4]`` XYXY.
        labels: int64 ``[B, N]``.
        index: int64 ``[B, N]``, their rows in the concatenated targets; that after the last for missing ones.
        counts: of each target.
    """

    boxes: Tensor
    labels: Tensor
    index: Tensor
    counts: Sequence[int]

    @classmethod
    def of(cls, targets: Sequence[Target], rows: Sequence[Sequence[int]] | None = None) -> PaddedObjects:
        """The objects of targets; with ``rows``, only these rows of each."""
        counts = [len(target["boxes"]) for target in targets]
        boxes = torch.cat([target["boxes"].float() for target in targets])
        labels = torch.cat([target["labels"].long() for target in targets])
        index = padded_index([range(count) for count in counts] if rows is None else rows, counts)
        (index,) = to_device([index], boxes.device)
        boxes, labels = (torch.cat([own, own.new_zeros(1, *own.shape[1:])])[index] for own in (boxes, labels))
        return cls(boxes, labels, index, counts)

    def split(self, values: Tensor) -> list[Tensor]:
        """Values ``[B, N]`` as one tensor for each target; NaN for rows that are not among the objects."""
        found = values.new_full((sum(self.counts) + 1,), torch.nan)
        found[self.index.flatten()] = values.flatten()
        return list(torch.split(found[:-1], list(self.counts)))


def padded_index(rows: Sequence[Sequence[int]], counts: Sequence[int]) -> Tensor:
    """An index ``[B, P]`` into something concatenated; that after the last row fills up.

    Args:
        rows: of each image.
        counts: of each image's part of what is concatenated.
    """
    most, filler = max((len(own) for own in rows), default=0), sum(counts)
    index, first = [], 0
    for own, count in zip(rows, counts, strict=True):
        index.append([first + row for row in own] + [filler] * (most - len(own)))
        first += count
    return torch.tensor(index, dtype=torch.long).view(len(rows), most)


def scale_factors(to: Sequence[tuple[float, float]], from_: Sequence[tuple[float, float]]) -> Tensor:
    """Factors ``[B, 1, 4]`` from XYXY boxes in images of some sizes to boxes in those of others; (height, width)."""
    factors = [[new[1] / old[1], new[0] / old[0]] for new, old in zip(to, from_, strict=True)]
    return torch.tensor(factors).repeat(1, 2)[:, None]


def overlaps(objects: Tensor, boxes: Tensor) -> Tensor:
    """The IoU ``[B, N, P]`` of objects ``[B, N, 4]`` with boxes ``[B, P, 4]``, or ``[B, N, P, 4]``, those of each."""
    # Coordinates first, so that the largest tensors are contiguous.
    own = objects[:, :, None].movedim(3, 1)
    other = (boxes[:, None] if boxes.dim() == 3 else boxes).movedim(3, 1).contiguous()
    sides = torch.minimum(own[:, 2:], other[:, 2:]).sub_(torch.maximum(own[:, :2], other[:, :2])).clamp_(min=0)
    common = sides[:, 0] * sides[:, 1]
    union = (own[:, 2:] - own[:, :2]).prod(1) + (other[:, 2:] - other[:, :2]).prod(1) - common
    return common.div_(union)


def mean_best_scores(overlap: Tensor, scores: Tensor, iou_thresholds: Sequence[float]) -> Tensor:
    """The mean over thresholds of the best score of a box that overlaps by at least as much, ``[...]``; 0 without one.

    Args:
        overlap: IoU of an object with boxes, float ``[..., P]``.
        scores: of the boxes for the object's class, float ``[..., P]`` in [0, 1].
        iou_thresholds: T of them, ascending.
    """
    limits = constant(tuple(iou_thresholds), overlap.device)
    reached = torch.bucketize(overlap.nan_to_num(), limits, right=True)
    best = scores.new_zeros((*scores.shape[:-1], len(iou_thresholds) + 1)).scatter_reduce(-1, reached, scores, "amax")
    return best.flip(-1)[..., :-1].cummax(-1).values.mean(-1)

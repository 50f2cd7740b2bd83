"""The real objects of a batch, for policies whose pastes are to be like them.

Shape letters: n objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from terse_aug.compositing.geometry import frame_of
from terse_aug.structures.annotations import Target
from terse_aug.utils.transfer import to_cpu


@dataclass(frozen=True)
class RealObjects:
    """All objects of a batch before pasting, without crowds; on the CPU.

    Attributes:
        boxes: float ``[n, 4]``, XYXY as fractions of their image, within [0, 1].
        labels: int64 ``[n]``.
        image_of: int64 ``[n]``, the image of each, ascending.
    """

    boxes: Tensor
    labels: Tensor
    image_of: Tensor

    @classmethod
    def of(cls, images: Sequence[Tensor], targets: Sequence[Target]) -> RealObjects:
        """Those of a validated batch; waits for the device if the targets are on one."""
        names = [[name for name in ("boxes", "labels", "iscrowd") if name in target] for target in targets]
        read = iter(to_cpu([target[name] for target, own in zip(targets, names, strict=True) for name in own]))
        boxes, labels, counts = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.long)], []
        for image, own in zip(images, names, strict=True):
            values = {name: next(read) for name in own}
            height, width = frame_of(image)
            scaled = (values["boxes"].float() / torch.tensor([width, height, width, height])).clamp(0, 1)
            # Boxes on a device have not been repaired.
            kept = (scaled[:, 2:] > scaled[:, :2]).all(1)
            if "iscrowd" in values:
                kept &= ~values["iscrowd"].bool()
            boxes.append(scaled[kept])
            labels.append(values["labels"][kept].long())
            counts.append(len(boxes[-1]))
        image_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))
        return cls(torch.cat(boxes), torch.cat(labels), image_of)

    def overlaps(self) -> Tensor:
        """:func:`overlap_fractions` of each object with the others of its image, float ``[n]``."""
        found = [torch.zeros(0)]
        for image in sorted(set(self.image_of.tolist())):
            boxes = self.boxes[self.image_of == image]
            found.append(overlap_fractions(boxes, boxes).fill_diagonal_(0).amax(1))
        return torch.cat(found)


def overlap_fractions(boxes: Tensor, others: Tensor) -> Tensor:
    """The area that two boxes share divided by that of the smaller one, float ``[n, m]`` in [0, 1].

    Args:
        boxes: float ``[n, 4]`` XYXY.
        others: float ``[m, 4]`` XYXY.
    """
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    areas, other_areas = ((own[:, 2:] - own[:, :2]).clamp(min=0).prod(1) for own in (boxes, others))
    smaller = torch.minimum(areas[:, None], other_areas[None])
    return torch.where(smaller > 0, shared / smaller, 0.0).clamp(max=1)

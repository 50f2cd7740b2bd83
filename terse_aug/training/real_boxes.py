"""Where the real objects of a batch are, for policies that learn from it.

Shape letters: n objects.
"""

from __future__ import annotations

import torch
from torch import Tensor

from terse_aug.compositing.geometry import frame_of
from terse_aug.structures.validation import ValidatedBatch
from terse_aug.utils.transfer import to_cpu


def real_boxes(batch: ValidatedBatch) -> tuple[Tensor, Tensor]:
    """Boxes and labels of all objects of a batch before pasting, without crowds.

    Returns:
        float ``[n, 4]``, XYXY as fractions of their image, within [0, 1], and int64 ``[n]``; on the CPU.
    """
    names = [[name for name in ("boxes", "labels", "iscrowd") if name in target] for target in batch.targets]
    read = iter(to_cpu([target[name] for target, own in zip(batch.targets, names, strict=True) for name in own]))
    boxes, labels = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.long)]
    for image, own in zip(batch.images, names, strict=True):
        values = {name: next(read) for name in own}
        height, width = frame_of(image)
        scaled = (values["boxes"].float() / torch.tensor([width, height, width, height])).clamp(0, 1)
        # Boxes on a device have not been repaired.
        kept = (scaled[:, 2:] > scaled[:, :2]).all(1)
        if "iscrowd" in values:
            kept &= ~values["iscrowd"].bool()
        boxes.append(scaled[kept])
        labels.append(values["labels"][kept].long())
    return torch.cat(boxes), torch.cat(labels)

"""Validation of a batch before anything is pasted: boxes are repaired, what is left out is counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from terse_aug.structures.annotations import Target, check_samples, repair_boxes
from terse_aug.structures.box_format import check_box_format
from terse_aug.structures.object_fields import unknown_field_warnings

_LEFT_OUT = {
    "image_not_finite": "{} image(s) with NaN or infinity: nothing is pasted on them",
    "box_degenerate": "{} object(s) with a box without area or not finite: left out of the targets; expected XYXY in "
    "pixels, see torchvision.ops.box_convert for boxes in another format",
    "box_outside": "{} object(s) with a box outside the image: left out of the targets",
    "paste_too_small": "{} paste(s) below min_side: left out; the images are small or the scale range is low",
    "box_clipped": "{} object(s) with a box that reaches more than a pixel beyond the image: clipped to it",
}


@dataclass(frozen=True)
class ValidatedBatch:
    """A batch that keeps to the contract of :mod:`terse_aug.structures.annotations`.

    Attributes:
        images: B tensors ``[3, H, W]``, float or uint8, the caller's own.
        targets: B targets, copies where they were repaired.
        usable: for each image whether it can be pasted on.
        dropped: counts of what was left out or clipped, by reason.
        warnings: texts to warn of once, by kind.
    """

    images: list[Tensor]
    targets: list[Target]
    usable: list[bool]
    dropped: Counter[str]
    warnings: dict[str, str]

    def usable_given(self, largest: Sequence[float]) -> list[bool]:
        """``usable`` where the largest absolute values of images on a device are known; empty for others."""
        return [math.isfinite(value) for value in largest] if largest else self.usable


def validate_batch(
    images: Sequence[Tensor] | Tensor, targets: Sequence[Target], keypoint_count: int = 0
) -> ValidatedBatch:
    """Check a batch, repair its boxes, and find out which images can be pasted on.

    Values on a device are left for :func:`terse_aug.compositing.compose.compose`, which does the same: reading them
    here would wait for the device.

    Args:
        images: B images.
        targets: B targets.
        keypoint_count: of the foregrounds that will be pasted; 0 where they have none.

    Raises:
        ValueError: the batch is empty, does not keep to the contract of :mod:`terse_aug.structures.annotations`, has
            boxes in another format, or another number of keypoints than the foregrounds.
    """
    images, targets = list(images), list(targets)
    if not images:
        raise ValueError("expected at least one image, got an empty batch")
    check_samples(images, targets)
    warnings = unknown_field_warnings(targets)
    if targets[0]["boxes"].device.type == "cpu":
        boxes = [target["boxes"].detach().float().numpy() for target in targets]
        warnings |= check_box_format(boxes, [(image.shape[-2], image.shape[-1]) for image in images])
    if keypoint_count:
        targets = [_with_keypoints(index, target, keypoint_count) for index, target in enumerate(targets)]
    dropped: Counter[str] = Counter()
    usable = [True] * len(images)
    if images[0].device.type == "cpu":
        for index, image in enumerate(images):
            if image.is_floating_point():
                usable[index] = math.isfinite(float(image.detach().sum(dtype=torch.float32)))
            targets[index], repaired = repair_boxes(targets[index], image.shape[-2], image.shape[-1])
            dropped.update(repaired)
    return ValidatedBatch(images, targets, usable, +dropped, warnings)


def left_out_warnings(dropped: Mapping[str, int]) -> dict[str, str]:
    """Texts to warn of once about what was left out or clipped, by reason."""
    return {reason: text.format(dropped[reason]) for reason, text in _LEFT_OUT.items() if dropped.get(reason)}


def _with_keypoints(index: int, target: Target, count: int) -> Target:
    """A target with as many keypoints as the foregrounds have; without objects any number will do."""
    if "keypoints" not in target or target["keypoints"].shape[1] == count:
        return target
    if len(target["keypoints"]) == 0:
        return target | {"keypoints": target["keypoints"].new_zeros(0, count, 3)}
    raise ValueError(
        f"target {index}: expected {count} keypoints of each object, as the foregrounds have, got "
        f"{target['keypoints'].shape[1]}; build the bank from annotations with the same keypoints"
    )

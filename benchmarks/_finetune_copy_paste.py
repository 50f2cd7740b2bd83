"""Arm ``copy-paste`` of :mod:`benchmarks.finetune`: mmdet's ``CopyPaste``, as its pipeline calls it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._finetune_data import CachedDataset
from benchmarks._finetune_example import to_device
from benchmarks._finetune_measures import Target

_PROBABILITY = 0.75
"""Fraction of the images that are pasted on, as in the other arms."""


class CopyPastePasting:
    """Pastes objects of another training image, at their own place and size; mmdet's defaults.

    Args:
        training_set: real images with masks.
        seed: of all draws.
        flip: whether half of the other images are flipped, as those that are trained on.

    Raises:
        ImportError: mmdet, or mmcv for it, is not installed.
    """

    extra_forwards = 0

    def __init__(self, training_set: CachedDataset, seed: int, flip: bool) -> None:
        from mmdet.datasets.transforms import CopyPaste

        self._transform = CopyPaste()
        self._training_set, self._flip = training_set, flip
        self._random = np.random.default_rng(seed)

    def __call__(self, images: Sequence[Tensor], targets: Sequence[Target]) -> tuple[Any, Any]:
        """Composites and their targets; mmdet's transform works on the CPU."""
        here = to_device(list(images), list(targets), torch.device("cpu"))
        pasted = [self._pasted(*sample) for sample in zip(*here, strict=True)]
        return to_device([image for image, _ in pasted], [target for _, target in pasted], images[0].device)

    def step(self, losses: Any) -> None:
        """Nothing to do."""

    def _pasted(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        other, source = self._training_set[int(self._random.integers(len(self._training_set)))]
        seed, pastes, flips = int(self._random.integers(2**31)), self._random.random(), self._random.random()
        if pastes >= _PROBABILITY or not len(source["boxes"]):
            return image, target
        if self._flip and flips < 0.5:
            other, source = _flipped(other, source)
        height, width = image.shape[-2:]
        other, source = _fitted(other, source, height, width)
        if not len(source["boxes"]):
            return image, target
        before = np.random.get_state()  # noqa: NPY002 - what mmdet draws from
        np.random.seed(seed)  # noqa: NPY002
        found = self._transform(_as_mmdet(image, target) | {"mix_results": [_as_mmdet(other, source)]})
        np.random.set_state(before)  # noqa: NPY002
        composite = torch.from_numpy(np.ascontiguousarray(found["img"])).permute(2, 0, 1).to(image.dtype)
        fields = {
            "boxes": found["gt_bboxes"].tensor,
            "labels": torch.from_numpy(found["gt_bboxes_labels"]),
            "masks": torch.from_numpy(found["gt_masks"].masks.astype(np.uint8)),
        }
        return composite, {"image_id": target["image_id"]} | fields


def _flipped(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    boxes = target["boxes"].clone()
    boxes[:, [0, 2]] = image.shape[-1] - target["boxes"][:, [2, 0]]
    return image.flip(-1), {"boxes": boxes, "labels": target["labels"], "masks": target["masks"].flip(-1)}


def _fitted(image: Tensor, target: Target, height: int, width: int) -> tuple[Tensor, Target]:
    """A sample cropped, or filled with black, to another size; objects that are cut away are left out."""
    pad = (0, width - image.shape[-1], 0, height - image.shape[-2])
    masks = F.pad(target["masks"], pad)
    kept = masks.bool().flatten(1).any(1)
    return F.pad(image, pad), {name: own[kept] for name, own in (("masks", masks), ("labels", target["labels"]))} | {
        "boxes": torch.minimum(target["boxes"][kept], torch.tensor([width, height] * 2))
    }


def _as_mmdet(image: Tensor, target: Target) -> dict[str, Any]:
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks

    masks = target["masks"].numpy().astype(np.uint8)
    return {
        "img": image.permute(1, 2, 0).numpy().copy(),
        "gt_bboxes": HorizontalBoxes(target["boxes"].clone()),
        "gt_bboxes_labels": target["labels"].numpy().copy(),
        "gt_ignore_flags": np.zeros(len(masks), bool),
        "gt_masks": BitmapMasks(masks.copy(), *image.shape[-2:]),
    }

"""Batches of the samples of an image processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from terse_aug_transformers.batch import Layout, boxes_in_pixels, like


def collate_detection(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch for a detector; images of different sizes are padded at the right and bottom.

    Args:
        samples: for each image ``pixel_values`` ``[3, h, w]`` and ``labels``, as an image processor gives them for one
            image; ``pixel_mask`` ``[h, w]`` where it has padded.

    Returns:
        ``pixel_values`` ``[B, 3, H, W]``, ``labels``, a list, and where there is padding ``pixel_mask`` ``[B, H, W]``.
        Boxes and ``size`` are those of the padded batch, masks are padded.

    Raises:
        ValueError: a sample without ``pixel_values``, or with those of several images.
    """
    images = [_image(number, sample) for number, sample in enumerate(samples)]
    height, width = (max(image.shape[side] for image in images) for side in (-2, -1))
    padded = [pad(image, _padding(image, height, width)) for image in images]
    batch: dict[str, Any] = {"pixel_values": torch.stack(padded)}
    if all("labels" in sample for sample in samples):
        pairs = zip(images, samples, strict=True)
        batch["labels"] = [_padded_label(sample["labels"], image, height, width) for image, sample in pairs]
    masks = [sample.get("pixel_mask") for sample in samples]
    if any(mask is not None for mask in masks) or len({image.shape for image in images}) > 1:
        ones = [image.new_ones(image.shape[-2:], dtype=torch.long) for image in images]
        own = [one if mask is None else mask for mask, one in zip(masks, ones, strict=True)]
        batch["pixel_mask"] = torch.stack([pad(mask, _padding(mask, height, width)) for mask in own])
    return batch


def _image(number: int, sample: Mapping[str, Any]) -> Tensor:
    image = sample.get("pixel_values")
    if not isinstance(image, Tensor) or image.ndim != 3:
        got = f"{list(image.shape)}" if isinstance(image, Tensor) else f"{type(image).__name__} among {sorted(sample)}"
        raise ValueError(
            f"sample {number}: expected pixel_values [3, h, w] of one image, got {got}; of what an image processor "
            "returns for one image take the first entries: {name: values[0] for name, values in ...}"
        )
    return image


def _padding(image: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    return 0, width - image.shape[-1], 0, height - image.shape[-2]


def _padded_label(label: Mapping[str, Any], image: Tensor, height: int, width: int) -> Any:
    if image.shape[-2:] == (height, width) or "boxes" not in label:
        return label
    layout = Layout.of({"pixel_values": image[None], "labels": [label]})
    (corners,) = boxes_in_pixels([label], layout)
    own: dict[str, Any] = {}
    whole = corners.new_tensor([width, height] * 2)
    centre, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    own["boxes"] = (torch.cat([centre, sides], 1) / whole).to(label["boxes"].dtype)
    own["size"] = torch.tensor([height, width])
    if "masks" in label:
        own["masks"] = pad(label["masks"], _padding(label["masks"], height, width))
    return like(label, {**label, **own})

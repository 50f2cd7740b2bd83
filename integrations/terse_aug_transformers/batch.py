"""Conversion between batches of Hugging Face's image processors and the images and targets of terse-aug.

Shape letters: B images, H and W the sides of the padded batch, h and w those of an image in it, N objects of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert

from terse_aug.integration import SAMPLED_KEY
from terse_aug.utils.transfer import to_cpu

_OF_IMAGE = ("size", "orig_size", "image_id", SAMPLED_KEY)
"""Entries of labels that stay as they are."""
_LARGEST = 1.5
"""Boxes that reach a little beyond the image are clipped; larger values are pixels."""


@dataclass(frozen=True)
class Layout:
    """Where the images of a batch are.

    Attributes:
        shown: (h, w) of each image, at the top left of the padded batch.
        reference: (height, width) in pixels of what the boxes of each image are relative to.
    """

    shown: list[tuple[int, int]]
    reference: list[tuple[int, int]]

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> Layout:
        """Of a batch with ``pixel_values`` ``[B, 3, H, W]``, optionally ``pixel_mask`` ``[B, H, W]``, and ``labels``.

        Boxes are relative to ``size`` of the labels, which image processors set; else to the padded batch. Waits for
        the device once.

        Raises:
            ValueError: a mask that is not that of padding at the right and at the bottom.
        """
        pixels, mask = batch["pixel_values"], batch.get("pixel_mask")
        whole = (pixels.shape[-2], pixels.shape[-1])
        shown = [whole] * len(pixels)
        sizes = [label.get("size") for label in batch["labels"]]
        wanted = [own for own in sizes if isinstance(own, Tensor)]
        values = to_cpu(wanted if mask is None else [*wanted, _extents(mask)])
        if mask is not None:
            extents = values.pop().tolist()
            for number, (height, width, area, corner) in enumerate(extents):
                if area != height * width or not corner:
                    raise ValueError(
                        f"pixel_mask of image {number}: expected 0 for padding at the right and bottom alone"
                    )
            shown = [(height, width) for height, width, *_ in extents]
        read = iter(values)
        reference = [whole if own is None else _pair(next(read) if isinstance(own, Tensor) else own) for own in sizes]
        return cls(shown, reference)

    @property
    def relative(self) -> list[tuple[float, float]]:
        """(height, width) of each image in units of its boxes."""
        pairs = zip(self.shown, self.reference, strict=True)
        return [(own[0] / whole[0], own[1] / whole[1]) for own, whole in pairs]


def boxes_in_pixels(labels: Sequence[Mapping[str, Any]], layout: Layout) -> list[Tensor]:
    """The boxes of each image, float ``[N, 4]`` XYXY in pixels."""
    return [
        box_convert(label["boxes"].float(), "cxcywh", "xyxy") * _scale(size, label["boxes"])
        for label, size in zip(labels, layout.reference, strict=True)
    ]


def to_samples(batch: Mapping[str, Any]) -> tuple[list[Tensor], list[dict[str, Any]], Layout]:
    """Images ``[3, h, w]`` without padding, targets in the form of :class:`terse_aug.Terse`, and where they were.

    Args:
        batch: ``pixel_values``, optionally ``pixel_mask``, and ``labels``: for each image ``class_labels`` int ``[N]``,
            ``boxes`` float ``[N, 4]``, centre and sides relative to the image, optionally ``masks`` ``[N, H, W]``,
            ``area`` and ``iscrowd``.

    Raises:
        ValueError: the batch has another form, or boxes in pixels.
    """
    labels = _checked(batch)
    layout = Layout.of(batch)
    images, targets = [], []
    for number, (label, boxes) in enumerate(zip(labels, boxes_in_pixels(labels, layout), strict=True)):
        height, width = layout.shown[number]
        images.append(batch["pixel_values"][number, :, :height, :width])
        target = {name: value for name, value in label.items() if name not in (*_OF_IMAGE, "class_labels")}
        target |= {"boxes": boxes, "labels": label["class_labels"]}
        if "masks" in label:
            target["masks"] = (label["masks"] > 0)[:, :height, :width]
        targets.append(target)
    return images, targets, layout


def put_back(
    batch: Mapping[str, Any], images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]], layout: Layout
) -> dict[str, Any]:
    """A batch of composites in the form of ``batch``, which is left untouched.

    Args:
        batch: see :func:`to_samples`.
        images, targets: of the composites.
        layout: of the batch.
    """
    pixels = batch["pixel_values"]
    canvases, labels = [], []
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        height, width = layout.shown[number]
        canvas = image
        if image.shape != pixels[number].shape:
            canvas = pixels[number].to(image.dtype, copy=True)
            canvas[:, :height, :width] = image
        canvases.append(canvas)
        labels.append(_label(batch["labels"][number], target, layout.reference[number], pixels.shape[-2:]))
    return {**batch, "pixel_values": torch.stack(canvases), "labels": labels}


def as_batch(images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]], *, mask: bool) -> dict[str, Any]:
    """A batch of images of any sizes, padded to the largest; ``mask``: with ``pixel_mask``, if there is padding."""
    shown = [(image.shape[-2], image.shape[-1]) for image in images]
    height, width = (max(sides) for sides in zip(*shown, strict=True))
    pixels = images[0].new_zeros(len(images), 3, height, width)
    kept = torch.zeros(len(images), height, width, dtype=torch.long, device=pixels.device)
    for number, own in enumerate(shown):
        kept[number, : own[0], : own[1]] = 1
    empty: dict[str, Any] = {"pixel_values": pixels, "labels": [{}] * len(images)}
    batch = put_back(empty, images, targets, Layout(shown, [(height, width)] * len(images)))
    return batch | ({"pixel_mask": kept} if mask and len(set(shown)) > 1 else {})


def _checked(batch: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    pixels, labels = batch.get("pixel_values"), batch.get("labels")
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or not isinstance(labels, list | tuple):
        raise ValueError(
            "expected a batch with pixel_values [B, 3, H, W] and a list of labels, as from an image processor and "
            f"collate_detection, got {sorted(batch)} with pixel_values "
            f"{list(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__} and labels "
            f"{type(labels).__name__}"
        )
    for number, label in enumerate(labels):
        if not isinstance(label, Mapping) or not {"boxes", "class_labels"} <= set(label):
            got = sorted(label) if isinstance(label, Mapping) else type(label).__name__
            raise ValueError(f"labels of image {number}: expected class_labels and boxes, got {got}")
        if "keypoints" in label:
            raise ValueError(
                f"labels of image {number} have keypoints, which image processors do not resize: leave them out of "
                "the annotations"
            )
    boxes = torch.cat([label["boxes"].reshape(-1) for label in labels])
    if len(boxes) and float(boxes.abs().max()) > _LARGEST:
        raise ValueError(
            f"labels: expected boxes as centre and sides relative to the image, got values up to "
            f"{float(boxes.abs().max()):.5g}: use an image processor with do_convert_annotations=True"
        )
    return labels


def _label(label: Mapping[str, Any], target: Mapping[str, Any], size: tuple[int, int], padded: Sequence[int]) -> Any:
    own = {name: value for name, value in target.items() if name not in ("boxes", "labels", "masks")}
    boxes = box_convert(target["boxes"] / _scale(size, target["boxes"]), "xyxy", "cxcywh")
    own |= {"class_labels": target["labels"], "boxes": boxes.to(label["boxes"].dtype) if "boxes" in label else boxes}
    if "masks" in target:
        masks = target["masks"]
        right, bottom = padded[1] - masks.shape[-1], padded[0] - masks.shape[-2]
        masks = torch.nn.functional.pad(masks, (0, right, 0, bottom))
        own["masks"] = masks.to(label["masks"].dtype) if "masks" in label else masks
    kept = {name: value for name, value in label.items() if name in _OF_IMAGE and name != SAMPLED_KEY}
    return like(label, {**kept, **own})


def like(label: Mapping[str, Any], values: dict[str, Any]) -> Any:
    """Values in a dictionary of the same type: image processors have one of their own, which moves to a device."""
    kind: Any = type(label)
    return kind(values)


def _scale(size: tuple[int, int], like: Tensor) -> Tensor:
    return torch.tensor([size[1], size[0]] * 2, dtype=torch.float32, device=like.device)


def _extents(mask: Tensor) -> Tensor:
    """Rows, columns and pixels that are kept, and whether the first pixel is: int ``[B, 4]``."""
    kept = mask.bool()
    extents = [kept.any(2).sum(1), kept.any(1).sum(1), kept.sum((1, 2)), kept[:, 0, 0].long()]
    return torch.stack(extents, 1)


def _pair(size: Any) -> tuple[int, int]:
    height, width = size.tolist() if isinstance(size, Tensor) else size
    return int(height), int(width)

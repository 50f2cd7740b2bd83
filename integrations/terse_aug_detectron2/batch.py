"""Conversion between Detectron2's batches and the images and targets of terse-aug."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from torch import Tensor

from terse_aug import SampledForegrounds
from terse_aug.integration import SAMPLED_KEY, common_foregrounds

Item = dict[str, Any]
"""One image of a batch, as Detectron2's mappers return it."""

_FIELDS = {"gt_boxes": "boxes", "gt_classes": "labels", "gt_masks": "masks", "gt_keypoints": "keypoints"}
_CROWD = ("gt_iscrowd", "iscrowd")


@dataclass(frozen=True)
class Needs:
    """Annotations that a model is trained on beside boxes.

    Attributes:
        masks: whether it is trained on masks.
        keypoints: how many for each object; 0 if it is not trained on keypoints.
    """

    masks: bool = False
    keypoints: int = 0


def to_samples(batch: Sequence[Item], device: torch.device, needs: Needs) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Images ``[3, H, W]``, uint8 or float in 0 to 255, in the mapper's channel order, on a device; and their targets.

    Args:
        batch: as a mapper returns it.
        device: of the model.
        needs: fields that an image without objects lacks; they are added, empty.

    Raises:
        ValueError: an item has no instances, or annotations that pasting cannot correct: semantic maps, precomputed
            proposals, rotated boxes, or unknown fields of instances.
    """
    images, targets = [], []
    for number, item in enumerate(checked_items(batch)):
        _check_item(number, item)
        images.append(item["image"].to(device))
        instances = item["instances"]
        targets.append(_empty(needs, instances) | _target(instances, f"image {number} of the batch"))
    return images, targets


def objects_of(batch: Sequence[Item]) -> list[dict[str, Any]]:
    """Targets of a batch with boxes and labels alone, as they are."""
    objects = (item["instances"] for item in batch)
    return [{"boxes": own.gt_boxes.tensor, "labels": own.gt_classes} for own in objects]


def from_samples(batch: Sequence[Item], images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]) -> list[Item]:
    """The batch with these images and targets; its other keys are kept."""
    composed = []
    for item, image, target in zip(batch, images, targets, strict=True):
        crowd = next((name for name in _CROWD if item["instances"].has(name)), None)
        rest = {key: value for key, value in item.items() if key != SAMPLED_KEY}
        composed.append(rest | {"image": image, "instances": _instances(target, image, crowd)})
    return composed


def sampled_foregrounds_of(batch: Sequence[Item]) -> list[SampledForegrounds] | None:
    """What the mapper has sampled, if all images have it."""
    return common_foregrounds(item.get(SAMPLED_KEY) for item in checked_items(batch))


def checked_items(batch: Sequence[Any]) -> Sequence[Item]:
    """A batch, whose items are dictionaries.

    Raises:
        ValueError: they are not, as where a mapper returns several views of an image.
    """
    if other := [type(item).__name__ for item in batch if not isinstance(item, Mapping)]:
        raise ValueError(
            f"expected a batch of dictionaries, one for each image, got {type(batch).__name__} of {other[0]}: batches "
            "of several views of each image, as semi-supervised training has them, are not supported"
        )
    return batch


def as_bitmasks(instances: Instances) -> Instances:
    """Instances with polygons rasterized, on the CPU; instances with other masks or none unchanged."""
    if not (instances.has("gt_masks") and isinstance(instances.gt_masks, PolygonMasks)):
        return instances
    height, width = instances.image_size
    fields = instances.get_fields() | {"gt_masks": bitmasks(instances.gt_masks, height, width)}
    return Instances(instances.image_size, **fields)


def bitmasks(polygons: PolygonMasks, height: int, width: int) -> BitMasks:
    """Polygons as bitmaps ``[N, height, width]``."""
    if len(polygons) == 0:
        return BitMasks(torch.zeros(0, height, width, dtype=torch.bool))
    return BitMasks.from_polygon_masks(polygons, height, width)


def _check_item(number: int, item: Item) -> None:
    if "sem_seg" in item:
        raise ValueError(
            f"image {number} of the batch has a semantic map (sem_seg), which pasting does not correct: panoptic and "
            "semantic segmentation are not supported"
        )
    if "proposals" in item:
        raise ValueError(
            f"image {number} of the batch has precomputed proposals, which a pasted object would lack: they are not "
            "supported"
        )
    if "instances" not in item:
        raise ValueError(
            f"image {number} of the batch has no 'instances', only {sorted(item)}; use a mapper for training"
        )


def _empty(needs: Needs, instances: Instances) -> dict[str, Any]:
    """Fields that an image without objects lacks."""
    if len(instances):
        return {}
    device = instances.gt_classes.device
    masks = torch.zeros(0, *instances.image_size, dtype=torch.bool, device=device)
    keypoints = torch.zeros(0, needs.keypoints, 3, device=device)
    return ({"masks": masks} if needs.masks else {}) | ({"keypoints": keypoints} if needs.keypoints else {})


def _target(instances: Instances, where: str) -> dict[str, Any]:
    if unknown := sorted(set(instances.get_fields()) - {*_FIELDS, *_CROWD}):
        raise ValueError(
            f"{where}: its instances have {unknown}, which terse-aug cannot give to a pasted object; supported are "
            f"{sorted({*_FIELDS, *_CROWD})}. Remove them in the mapper"
        )
    boxes = instances.gt_boxes
    if type(boxes) is not Boxes:
        raise ValueError(
            f"{where}: expected upright boxes (Boxes), got {type(boxes).__name__}: rotated boxes are not supported"
        )
    target: dict[str, Any] = {"boxes": boxes.tensor, "labels": instances.gt_classes}
    if instances.has("gt_masks"):
        masks = instances.gt_masks
        if isinstance(masks, PolygonMasks):
            masks = bitmasks(masks, *instances.image_size)
        if not isinstance(masks, BitMasks):
            raise ValueError(f"{where}: expected gt_masks as BitMasks or PolygonMasks, got {type(masks).__name__}")
        target["masks"] = masks.tensor.to(boxes.tensor.device)
    if instances.has("gt_keypoints"):
        target["keypoints"] = instances.gt_keypoints.tensor
    for name in _CROWD:
        if instances.has(name):
            target["iscrowd"] = torch.as_tensor(instances.get(name), device=boxes.tensor.device)
    return target


def _instances(target: Mapping[str, Any], image: Tensor, crowd: str | None) -> Instances:
    instances = Instances((image.shape[-2], image.shape[-1]))
    instances.gt_boxes = Boxes(target["boxes"])
    instances.gt_classes = target["labels"]
    if "masks" in target:
        instances.gt_masks = BitMasks(target["masks"].bool())
    if "keypoints" in target:
        instances.gt_keypoints = Keypoints(target["keypoints"])
    if crowd is not None:
        instances.set(crowd, target["iscrowd"])
    return instances

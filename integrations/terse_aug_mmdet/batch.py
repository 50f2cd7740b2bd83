"""Conversion between MMDetection's batches and the images and targets of terse-aug."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData
from torch import Tensor

from terse_aug import SampledForegrounds
from terse_aug.integration import SAMPLED_KEY, common_foregrounds

_FIELDS = ("bboxes", "labels", "masks")


class PathWithForegrounds(str):
    """A file name that carries sampled foregrounds.

    ``PackDetInputs`` keeps only the keys that its ``meta_keys`` name; the name of the image is one of them by default.
    """

    sampled_foregrounds: SampledForegrounds


def to_samples(batch: Mapping[str, Any], device: torch.device) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Images ``[3, H, W]``, uint8 or float in 0 to 255, as the pipeline has loaded them, on a device; and targets.

    Raises:
        ValueError: the batch is not from ``PackDetInputs``, or has annotations that pasting cannot correct: semantic
            maps, precomputed proposals, rotated boxes, or unknown fields of instances.
    """
    inputs, samples = _parts(batch)
    images = [image.to(device) for image in inputs]
    return images, [_target(sample, f"image {number} of the batch") for number, sample in enumerate(samples)]


def objects_of(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Targets of a batch with boxes and labels alone, as they are."""
    objects = (sample.gt_instances for sample in batch["data_samples"])
    return [{"boxes": own.bboxes, "labels": own.labels} for own in objects]


def put_back(
    batch: dict[str, Any],
    images: Sequence[Tensor],
    targets: Sequence[Mapping[str, Any]],
    replaced: Collection[int] = (),
) -> None:
    """Put images and targets into a batch, in place: MMEngine continues with the same dictionary.

    Images whose background was ``replaced`` lose their ignored regions.
    """
    samples = batch["data_samples"]
    batch["inputs"] = torch.stack(list(images)) if isinstance(batch["inputs"], Tensor) else list(images)
    batch["data_samples"] = [
        with_instances(sample, target, image) for sample, target, image in zip(samples, targets, images, strict=True)
    ]
    for number in replaced:
        if "ignored_instances" in (sample := batch["data_samples"][number]):
            sample.ignored_instances = sample.ignored_instances[torch.zeros(0, dtype=torch.long)]


def sampled_foregrounds_of(batch: Mapping[str, Any]) -> list[SampledForegrounds] | None:
    """What the pipeline has sampled, if all images have it."""
    _, samples = _parts(batch)
    return common_foregrounds(
        sample.get(SAMPLED_KEY, None) or getattr(sample.get("img_path", ""), "sampled_foregrounds", None)
        for sample in samples
    )


def check_batch(batch: Any) -> None:
    """Refuse a batch that is no dictionary of images, as semi-supervised training has them.

    Raises:
        ValueError: saying what it is.
    """
    inputs = batch.get("inputs") if isinstance(batch, Mapping) else None
    branches = inputs if isinstance(inputs, Mapping) else next(iter(inputs), None) if isinstance(inputs, list) else None
    if isinstance(branches, Mapping):
        raise ValueError(
            f"the batch has branches, {sorted(branches)}, as MultiBranch makes them for semi-supervised training: not "
            "supported"
        )
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"expected a batch that is a dictionary of inputs and data_samples, as from PackDetInputs, got "
            f"{type(batch).__name__}: batches of several views of each image are not supported"
        )


def _parts(batch: Mapping[str, Any]) -> tuple[Any, Any]:
    check_batch(batch)
    inputs: Any = batch.get("inputs")
    samples: Any = batch.get("data_samples")
    if not isinstance(inputs, Tensor | list | tuple) or not isinstance(samples, list | tuple):
        raise ValueError(
            f"expected a batch with lists of inputs and data_samples, as from PackDetInputs, got {sorted(batch)} "
            f"with inputs {type(inputs).__name__} and data_samples {type(samples).__name__}"
        )
    return inputs, samples


def _target(sample: DetDataSample, where: str) -> dict[str, Any]:
    if "gt_sem_seg" in sample:
        raise ValueError(
            f"{where} has a semantic map (gt_sem_seg), which pasting does not correct: panoptic and semantic "
            "segmentation are not supported"
        )
    if "proposals" in sample:
        raise ValueError(f"{where} has precomputed proposals, which a pasted object would lack: they are not supported")
    if "gt_instances" not in sample or "bboxes" not in sample.gt_instances:
        raise ValueError(f"{where} has no boxes: load annotations with_bbox=True in the pipeline")
    instances = sample.gt_instances
    if unknown := sorted(set(instances.keys()) - set(_FIELDS)):
        raise ValueError(
            f"{where}: its instances have {unknown}, which terse-aug cannot give to a pasted object; supported are "
            f"{_FIELDS}"
        )
    boxes = instances.bboxes
    if isinstance(boxes, BaseBoxes) and not isinstance(boxes, HorizontalBoxes):
        raise ValueError(
            f"{where}: expected upright boxes (HorizontalBoxes), got {type(boxes).__name__}: rotated boxes are not "
            "supported"
        )
    plain = boxes.tensor if isinstance(boxes, BaseBoxes) else boxes
    target = {"boxes": plain.float(), "labels": instances.labels}
    if "masks" in instances:
        target["masks"] = _masks(instances.masks, plain.device)
    return target


def _masks(masks: Any, device: torch.device) -> Tensor:
    if isinstance(masks, PolygonMasks):
        masks = masks.to_bitmap()
    return torch.from_numpy(np.ascontiguousarray(masks.masks)).to(device).bool()


def with_instances(sample: DetDataSample, target: Mapping[str, Any], image: Tensor) -> DetDataSample:
    """A copy of a sample with other instances; the sampled foregrounds are removed from both."""
    boxes = target["boxes"].clone()  # batch augmentations write into them
    before = sample.get("gt_instances", None)
    if before is None or isinstance(before.bboxes, BaseBoxes):
        boxes = HorizontalBoxes(boxes)
    fields = {"bboxes": boxes, "labels": target["labels"]}
    if "masks" in target:
        height, width = image.shape[-2:]
        fields["masks"] = BitmapMasks(target["masks"].to("cpu", torch.uint8).numpy(), height, width)
    # Before the copy, which would copy the foregrounds too.
    if SAMPLED_KEY in sample:
        delattr(sample, SAMPLED_KEY)
    if isinstance(sample.get("img_path", None), PathWithForegrounds):
        sample.set_metainfo({"img_path": str(sample.img_path)})
    other: DetDataSample = sample.clone()
    other.gt_instances = InstanceData(**fields)
    return other

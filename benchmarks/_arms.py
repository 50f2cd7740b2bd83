"""The ways of pasting that :mod:`benchmarks.composite` compares. Imports the peers lazily, if they are there.

All do the same job: K cut-outs onto an image that has K objects with masks; image, boxes, labels and masks
afterwards as one would train on them. An arm has its inputs in the form that its library wants, made before the
clock runs; what a library changes in place is made anew for every call, likewise before.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

import terse_aug
from benchmarks._scenes import Picture, bounding_box, write_bank

_EDGE = 3  # pixels added around a cut-out, for its softened edge
_MIN_VISIBILITY = 0.25


@dataclass(frozen=True)
class Arm:
    """One way of pasting.

    Attributes:
        prepare: makes the input of call number i; not timed.
        paste: the work.
        outcome: the composite as an array of any layout, and the number of its boxes and of its masks.
    """

    prepare: Callable[[int], Any]
    paste: Callable[[Any], Any]
    outcome: Callable[[Any], tuple[NDArray[Any], int, int]]


def terse_arm(backgrounds: Sequence[Picture], sources: Sequence[Picture], folder: Path) -> Arm:
    """``Terse`` with the random policy on a batch of one: float tensors, cut-outs read from a bank on disk.

    Scale is fixed to the cut-out's own pixels; rotation, shear, mirroring and place are drawn as always.
    """
    count, side = len(backgrounds[0].labels), backgrounds[0].image.shape[0]
    cutouts = [cutout for picture in sources for cutout in picture.cutouts]
    ranges = terse_aug.TransformRanges(scale=(1.0, 1.0), scale_x=(1.0, 1.0), scale_y=(1.0, 1.0), keep_inside=1.0)
    terse = terse_aug.Terse(
        write_bank(folder / f"objects_{side}.bank", cutouts, side),
        policy="random",
        objects=(count, count),
        image_probability=1.0,
        decoys=(0, 0),
        ranges=ranges,
    )
    samples = [
        (
            torch.from_numpy(picture.image).permute(2, 0, 1).contiguous().float() / 255,
            {
                "boxes": torch.from_numpy(picture.boxes),
                "labels": torch.from_numpy(picture.labels),
                "masks": torch.from_numpy(picture.masks).bool(),
            },
        )
        for picture in backgrounds
    ]

    def prepare(number: int) -> Any:
        image, target = samples[number % len(samples)]
        return [image], [target]

    def outcome(result: Any) -> tuple[NDArray[Any], int, int]:
        (image,), (target,) = result
        return image.numpy(), len(target["boxes"]), len(target["masks"])

    return Arm(prepare, lambda batch: terse(*batch), outcome)


def numpy_arm(backgrounds: Sequence[Picture], sources: Sequence[Picture]) -> Arm:
    """A paste written by hand for one's own loader: uint8 arrays, soft edge, only the objects' rectangles touched."""
    generator = np.random.default_rng(0)

    def prepare(number: int) -> Any:
        return backgrounds[number % len(backgrounds)], sources[number % len(sources)]

    def outcome(result: Any) -> tuple[NDArray[Any], int, int]:
        image, boxes, _, masks = result
        return image, len(boxes), len(masks)

    return Arm(prepare, lambda pair: _paste_by_hand(*pair, generator), outcome)


def _paste_by_hand(background: Picture, source: Picture, generator: np.random.Generator) -> tuple[Any, ...]:
    image, count = background.image.copy(), len(background.labels)
    masks = np.zeros((count + len(source.cutouts), *image.shape[:2]), np.uint8)
    masks[:count] = background.masks
    touched: set[int] = set()
    for row, cutout in enumerate(source.cutouts, start=count):
        padded = cv2.copyMakeBorder(cutout, _EDGE, _EDGE, _EDGE, _EDGE, cv2.BORDER_CONSTANT)
        height, width = padded.shape[:2]
        top = int(generator.integers(image.shape[0] - height + 1))
        left = int(generator.integers(image.shape[1] - width + 1))
        window = np.s_[top : top + height, left : left + width]
        opaque = padded[:, :, 3] > 127
        alpha = cv2.GaussianBlur(padded[:, :, 3].astype(np.float32) / 255, (0, 0), 1.0)[:, :, None]
        region = image[window].astype(np.float32)
        image[window] = (region + alpha * (padded[:, :, :3] - region) + 0.5).astype(np.uint8)
        for earlier in range(row):
            covered = masks[earlier][window]
            if (covered[opaque]).any():
                covered[opaque] = 0
                touched.add(earlier)
        masks[row][window] = opaque
        touched.add(row)
    boxes = np.concatenate([background.boxes, np.zeros((len(source.cutouts), 4), np.float32)])
    labels = np.concatenate([background.labels, source.labels])
    keep = np.ones(len(masks), bool)
    for row in touched:
        boxes[row] = bounding_box(masks[row])
        before = background.masks[row] if row < count else source.cutouts[row - count][:, :, 3] > 127
        keep[row] = np.count_nonzero(masks[row]) >= max(_MIN_VISIBILITY * np.count_nonzero(before), 1)
    if not keep.all():
        boxes, labels, masks = boxes[keep], labels[keep], masks[keep]
    return image, boxes, labels, masks


def mmdet_arm(backgrounds: Sequence[Picture], sources: Sequence[Picture]) -> Arm:
    """mmdet's ``CopyPaste`` as its pipeline calls it, with ``selected=False`` so that all K objects are pasted.

    It has no soft edge, no transform and pastes each object where it was in its own image.

    Raises:
        ImportError: mmdet, or mmcv for it, is not installed.
    """
    from mmdet.datasets.transforms import CopyPaste
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks

    transform = CopyPaste(selected=False)

    def results(picture: Picture) -> dict[str, Any]:
        return {
            "img": picture.image,
            "gt_bboxes": HorizontalBoxes(torch.from_numpy(picture.boxes)),
            "gt_bboxes_labels": picture.labels,
            "gt_ignore_flags": np.zeros(len(picture.labels), bool),
            "gt_masks": BitmapMasks(picture.masks, *picture.image.shape[:2]),
        }

    def prepare(number: int) -> Any:
        # CopyPaste writes into what it gets; its data set therefore makes a copy, which is not timed here.
        destination = results(backgrounds[number % len(backgrounds)])
        destination["mix_results"] = [results(sources[number % len(sources)])]
        return destination

    def outcome(result: Any) -> tuple[NDArray[Any], int, int]:
        return result["img"], len(result["gt_bboxes"]), len(result["gt_masks"])

    return Arm(prepare, transform.transform, outcome)


def segpaste_arm(backgrounds: Sequence[Picture], sources: Sequence[Picture]) -> Arm:
    """segpaste's ``CopyPasteAugmentation``; source objects as its collator makes them, views of whole images.

    It pastes at a random place, without a soft edge or a transform.

    Raises:
        ImportError: segpaste is not installed.
    """
    _let_segpaste_load()
    from segpaste import CopyPasteAugmentation, CopyPasteConfig, DetectionTarget

    count = len(backgrounds[0].labels)
    augmentation = CopyPasteAugmentation(
        CopyPasteConfig(paste_probability=1.0, min_paste_objects=count, max_paste_objects=count)
    )

    def sample(picture: Picture) -> Any:
        image = torch.from_numpy(picture.image).permute(2, 0, 1).contiguous().float() / 255
        fields = (torch.from_numpy(values) for values in (picture.boxes, picture.labels, picture.masks))
        return DetectionTarget(image, *fields)

    def objects(picture: Picture) -> list[Any]:
        whole = sample(picture)
        return [
            DetectionTarget(whole.image, whole.boxes[i : i + 1], whole.labels[i : i + 1], whole.masks[i : i + 1])
            for i in range(len(whole.labels))
        ]

    targets, pasted = [sample(picture) for picture in backgrounds], [objects(picture) for picture in sources]

    def prepare(number: int) -> Any:
        return targets[number % len(targets)], pasted[number % len(pasted)]

    def outcome(result: Any) -> tuple[NDArray[Any], int, int]:
        return result.image.numpy(), len(result.boxes), len(result.masks)

    return Arm(prepare, lambda pair: augmentation.transform(*pair), outcome)


def _let_segpaste_load() -> None:
    """Stand in for faster_coco_eval where it is missing.

    segpaste 0.2.0 imports two names from it for its COCO data set, without which the package does not load;
    pasting uses neither. The stand-in lives in this process alone.
    """
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError:
        stand_in = types.ModuleType("faster_coco_eval")
        stand_in.__dict__.update(COCO=None, mask=None, init_as_pycocotools=lambda: None)
        sys.modules["faster_coco_eval"] = stand_in

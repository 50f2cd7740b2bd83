"""The copy-paste implementations that :mod:`benchmarks.composite` compares; other libraries are imported on use.

All do the same job: paste K foregrounds onto an image that has K objects with masks, and return image, boxes, labels
and masks to train on. Each gets its input in the form that its library expects, prepared before the clock starts; input
that a library changes in place is prepared anew for every call.
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
from benchmarks._drawn_images import DrawnImage, bounding_box, write_bank

_EDGE = 3  # pixels added around a foreground, for its softened edge
_MIN_VISIBILITY = 0.25


@dataclass(frozen=True)
class Arm:
    """An implementation of copy-paste.

    Attributes:
        prepare: makes the input of call number i; not timed.
        paste: the call that is timed.
        result: the composite as an array of any layout, and the number of its boxes and of its masks.
    """

    prepare: Callable[[int], Any]
    paste: Callable[[Any], Any]
    result: Callable[[Any], tuple[NDArray[Any], int, int]]


def terse_arm(
    backgrounds: Sequence[DrawnImage], sources: Sequence[DrawnImage], folder: Path, masks: bool = True, **paste: Any
) -> Arm:
    """``Terse`` with the random policy on a batch of one: uint8 tensors, foregrounds read from a bank on disk.

    Scale is fixed to the foreground's own pixels; rotation, shear, flip and place are random as usual; ``paste`` are
    more settings of :class:`terse_aug.PasteConfig`.
    """
    count, side = len(backgrounds[0].labels), backgrounds[0].image.shape[0]
    foregrounds = [foreground for drawn in sources for foreground in drawn.foregrounds]
    ranges = terse_aug.TransformRanges(scale=(1.0, 1.0), scale_x=(1.0, 1.0), scale_y=(1.0, 1.0), keep_inside=1.0)
    settings: dict[str, Any] = {"objects": (count, count), "paste_probability": 1.0, "decoys": (0, 0), "ranges": ranges}
    terse = terse_aug.Terse(
        write_bank(folder / f"objects_{side}_{len(list(folder.iterdir()))}.bank", foregrounds, side),
        paste=terse_aug.PasteConfig(**(settings | paste)),
    )
    samples = [
        (
            torch.from_numpy(drawn.image).permute(2, 0, 1).contiguous(),
            {"boxes": torch.from_numpy(drawn.boxes), "labels": torch.from_numpy(drawn.labels)}
            | ({"masks": torch.from_numpy(drawn.masks).bool()} if masks else {}),
        )
        for drawn in backgrounds
    ]

    def prepare(number: int) -> Any:
        image, target = samples[number % len(samples)]
        return [image], [target]

    def result(pasted: Any) -> tuple[NDArray[Any], int, int]:
        (image,), (target,) = pasted
        return image.numpy(), len(target["boxes"]), len(target["masks" if masks else "boxes"])

    return Arm(prepare, lambda batch: terse(*batch), result)


def numpy_arm(backgrounds: Sequence[DrawnImage], sources: Sequence[DrawnImage]) -> Arm:
    """Copy-paste by hand in numpy and OpenCV: uint8 arrays, soft edge, only the objects' rectangles are changed."""
    generator = np.random.default_rng(0)

    def prepare(number: int) -> Any:
        return backgrounds[number % len(backgrounds)], sources[number % len(sources)]

    def result(pasted: Any) -> tuple[NDArray[Any], int, int]:
        image, boxes, _, masks = pasted
        return image, len(boxes), len(masks)

    return Arm(prepare, lambda pair: _paste_with_numpy(*pair, generator), result)


def _paste_with_numpy(background: DrawnImage, source: DrawnImage, generator: np.random.Generator) -> tuple[Any, ...]:
    image, count = background.image.copy(), len(background.labels)
    masks = np.zeros((count + len(source.foregrounds), *image.shape[:2]), np.uint8)
    masks[:count] = background.masks
    touched: set[int] = set()
    for row, foreground in enumerate(source.foregrounds, start=count):
        padded = cv2.copyMakeBorder(foreground, _EDGE, _EDGE, _EDGE, _EDGE, cv2.BORDER_CONSTANT)
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
    boxes = np.concatenate([background.boxes, np.zeros((len(source.foregrounds), 4), np.float32)])
    labels = np.concatenate([background.labels, source.labels])
    keep = np.ones(len(masks), bool)
    for row in touched:
        boxes[row] = bounding_box(masks[row])
        before = background.masks[row] if row < count else source.foregrounds[row - count][:, :, 3] > 127
        keep[row] = np.count_nonzero(masks[row]) >= max(_MIN_VISIBILITY * np.count_nonzero(before), 1)
    if not keep.all():
        boxes, labels, masks = boxes[keep], labels[keep], masks[keep]
    return image, boxes, labels, masks


def mmdet_arm(backgrounds: Sequence[DrawnImage], sources: Sequence[DrawnImage]) -> Arm:
    """mmdet's ``CopyPaste`` as its pipeline calls it, with ``selected=False`` so that all K objects are pasted.

    It has no soft edge, no transform and pastes each object where it was in its own image.

    Raises:
        ImportError: mmdet, or mmcv for it, is not installed.
    """
    from mmdet.datasets.transforms import CopyPaste
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks

    transform = CopyPaste(selected=False)

    def results(drawn: DrawnImage) -> dict[str, Any]:
        return {
            "img": drawn.image,
            "gt_bboxes": HorizontalBoxes(torch.from_numpy(drawn.boxes)),
            "gt_bboxes_labels": drawn.labels,
            "gt_ignore_flags": np.zeros(len(drawn.labels), bool),
            "gt_masks": BitmapMasks(drawn.masks, *drawn.image.shape[:2]),
        }

    def prepare(number: int) -> Any:
        # CopyPaste writes into what it gets; its data set therefore makes a copy, which is not timed here.
        destination = results(backgrounds[number % len(backgrounds)])
        destination["mix_results"] = [results(sources[number % len(sources)])]
        return destination

    def result(pasted: Any) -> tuple[NDArray[Any], int, int]:
        return pasted["img"], len(pasted["gt_bboxes"]), len(pasted["gt_masks"])

    return Arm(prepare, transform.transform, result)


def segpaste_arm(backgrounds: Sequence[DrawnImage], sources: Sequence[DrawnImage]) -> Arm:
    """segpaste's ``CopyPasteAugmentation``; its source objects are views of whole images, as from its collator.

    It pastes at a random place, without a soft edge or a transform.

    Raises:
        ImportError: segpaste is not installed.
    """
    _stub_faster_coco_eval()
    from segpaste import CopyPasteAugmentation, CopyPasteConfig, DetectionTarget

    count = len(backgrounds[0].labels)
    augmentation = CopyPasteAugmentation(
        CopyPasteConfig(paste_probability=1.0, min_paste_objects=count, max_paste_objects=count)
    )

    def sample(drawn: DrawnImage) -> Any:
        image = torch.from_numpy(drawn.image).permute(2, 0, 1).contiguous().float() / 255
        fields = (torch.from_numpy(values) for values in (drawn.boxes, drawn.labels, drawn.masks))
        return DetectionTarget(image, *fields)

    def objects(drawn: DrawnImage) -> list[Any]:
        whole = sample(drawn)
        return [
            DetectionTarget(whole.image, whole.boxes[i : i + 1], whole.labels[i : i + 1], whole.masks[i : i + 1])
            for i in range(len(whole.labels))
        ]

    targets, pasted = [sample(drawn) for drawn in backgrounds], [objects(drawn) for drawn in sources]

    def prepare(number: int) -> Any:
        return targets[number % len(targets)], pasted[number % len(pasted)]

    def result(pasted: Any) -> tuple[NDArray[Any], int, int]:
        return pasted.image.numpy(), len(pasted.boxes), len(pasted.masks)

    return Arm(prepare, lambda pair: augmentation.transform(*pair), result)


def _stub_faster_coco_eval() -> None:
    """A stub of faster_coco_eval where it is missing.

    segpaste 0.2.0 imports two names from it for its COCO data set, without which the package does not load;
    pasting uses neither. The stub exists in this process only.
    """
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError:
        stub = types.ModuleType("faster_coco_eval")
        stub.__dict__.update(COCO=None, mask=None, init_as_pycocotools=lambda: None)
        sys.modules["faster_coco_eval"] = stub

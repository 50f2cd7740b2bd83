"""The contract of a sample. It is checked once, by :func:`check_samples`; everything else relies on it.

images: float or uint8 ``[3, H, W]``, targets: a dictionary of ``boxes`` float ``[N, 4]`` (XYXY, pixels), ``labels`` int
``[N]`` and, where present, ``masks`` bool or uint8 of 0 and 1 ``[N, H, W]``, ``keypoints`` float ``[N, k, 3]`` (x, y,
visibility), ``ids`` int ``[N]``, ``area`` float ``[N]``, ``iscrowd`` ``[N]``. Other entries are passed through. All
targets are on the device of the images, or on the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Target = dict[str, Any]
"""The annotation of one image."""

OBJECT_FIELDS = ("boxes", "labels", "masks", "keypoints", "ids", "area", "iscrowd")
"""Fields with one entry per object, in the order in which they are documented."""

_FLOAT = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)

_KINDS: dict[str, tuple[str, tuple[torch.dtype, ...]]] = {
    "boxes": ("a float", _FLOAT),
    "labels": ("an integer", (torch.uint8, *_SIGNED)),
    "masks": ("a bool or uint8", (torch.bool, torch.uint8)),
    "keypoints": ("a float", _FLOAT),
    "ids": ("a signed integer", _SIGNED),
}
"""Types of the fields that would otherwise be corrupted silently: pasted ids are negative, for one."""

_CONVERSIONS = {
    1: ": one channel; a gray image becomes RGB by image.expand(3, -1, -1)",
    4: ": four channels; leave out alpha, or what is beyond RGB, by image[:3]",
}
"""What to do, by the number of channels."""


def check_samples(images: Sequence[Tensor], targets: Sequence[Target]) -> None:
    """Refuse what cannot be a batch of samples.

    Args:
        images: see the module.
        targets: see the module; as many as images.

    Raises:
        ValueError: naming the image, the field, what was expected and what came.
    """
    if len(images) != len(targets):
        raise ValueError(f"expected one target per image, got {len(images)} images and {len(targets)} targets")
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        _check_image(index, image)
        same_kind = (image.dtype == torch.uint8) == (images[0].dtype == torch.uint8)
        if image.device != images[0].device or not same_kind:
            expected, got = f"{images[0].dtype} on {images[0].device}", f"{image.dtype} on {image.device}"
            raise ValueError(f"image {index}: expected {expected}, as the first image is, got {got}")
        _check_target(index, image, target)
        if target["boxes"].device != targets[0]["boxes"].device:
            on = f"on {targets[0]['boxes'].device}, as the first target is, got one on {target['boxes'].device}"
            raise ValueError(f"target {index}: expected it {on}")


def _check_image(index: int, image: Tensor) -> None:
    if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        shape = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        advice = _CONVERSIONS.get(image.shape[0], "") if isinstance(image, Tensor) and image.ndim == 3 else ""
        raise ValueError(f"image {index}: expected a tensor [3, H, W], got {shape}{advice}")
    if not (image.is_floating_point() or image.dtype == torch.uint8):
        raise ValueError(f"image {index}: expected a float or uint8 tensor, got {image.dtype}")


def _check_target(index: int, image: Tensor, target: Target) -> None:
    where = f"target {index}"
    if not isinstance(target, Mapping):
        raise ValueError(f"{where}: expected a dictionary, got {type(target).__name__}")
    for name in ("boxes", "labels"):
        if name not in target:
            raise ValueError(f"{where}: the field {name!r} is missing; it has {sorted(target)}")
    boxes = target["boxes"]
    device = boxes.device if isinstance(boxes, Tensor) else image.device
    count = boxes.shape[0] if isinstance(boxes, Tensor) and boxes.ndim else "N"
    for name in OBJECT_FIELDS:
        if name in target:
            _check_field(where, name, image, target[name], count, device)


def _check_field(where: str, name: str, image: Tensor, value: Any, count: int | str, device: torch.device) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{where}: expected {name} to be a tensor, got {type(value).__name__}")
    shape = tuple(value.shape)
    expected = _expected_shape(name, count, image)
    if shape != expected and not (name == "keypoints" and len(shape) == 3 and shape[::2] == expected[::2]):
        wanted = ", ".join(map(str, expected))
        rotated = name == "boxes" and len(shape) == 2 and shape[1] in (5, 8)
        hint = ": rotated boxes are not supported, because a paste hides upright parts of them" if rotated else ""
        raise ValueError(f"{where}: expected {name} of shape [{wanted}], got {list(shape)}{hint}")
    if value.device != device or device not in (image.device, torch.device("cpu")):
        raise ValueError(f"{where}: {name} is on {value.device}, its image on {image.device}; move both")
    # torchvision's tv_tensors have an attribute for the format of their boxes.
    if name == "boxes" and (box_format := getattr(getattr(value, "format", None), "name", "XYXY")) != "XYXY":
        raise ValueError(f"{where}: expected boxes as XYXY, got {box_format}; convert them before calling Terse")
    kind, allowed = _KINDS.get(name, ("", ()))
    if allowed and value.dtype not in allowed:
        raise ValueError(f"{where}: expected {name} to be {kind} tensor, got {value.dtype}")


def _expected_shape(name: str, count: int | str, image: Tensor) -> tuple[int | str, ...]:
    """Sizes; a letter where any will do."""
    if name == "masks":
        return (count, *image.shape[1:])
    if name == "keypoints":
        return (count, "k", 3)
    return (count, 4) if name == "boxes" else (count,)


def repair_boxes(target: Target, height: int, width: int) -> tuple[Target, Counter[str]]:
    """Clip boxes to the frame and leave out objects whose box holds no pixel.

    Args:
        target: a checked target; left untouched.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        The target itself where nothing had to be repaired, else a copy; and counts under
        ``box_degenerate`` (no area, or not finite), ``box_outside``, and ``box_clipped`` (by more than a pixel).
    """
    dropped: Counter[str] = Counter()
    boxes = target["boxes"].detach()
    if len(boxes) == 0:
        return target, dropped
    rows = boxes.tolist()
    keep: list[int] = []
    clip = False
    for index, (left, top, right, bottom) in enumerate(rows):
        if not (right > left and bottom > top and abs(left + top + right + bottom) < float("inf")):
            dropped["box_degenerate"] += 1
        elif right <= 0 or bottom <= 0 or left >= width or top >= height:
            dropped["box_outside"] += 1
        else:
            keep.append(index)
            beyond = max(-left, -top, right - width, bottom - height)
            clip |= beyond > 0
            dropped["box_clipped"] += beyond > 1
    dropped = +dropped
    if not clip and len(keep) == len(rows):
        return target, dropped
    repaired = take_objects(target, keep)
    limits = boxes.new_tensor([width, height, width, height])
    repaired["boxes"] = torch.minimum(repaired["boxes"].clamp(min=0), limits)
    return repaired, dropped


def take_objects(target: Target, indices: Sequence[int]) -> Target:
    """A copy of a target with the chosen objects, in the given order, in every per-object field."""
    chosen = torch.tensor(indices, dtype=torch.long, device=target["boxes"].device)
    return {name: value[chosen] if name in OBJECT_FIELDS else value for name, value in target.items()}

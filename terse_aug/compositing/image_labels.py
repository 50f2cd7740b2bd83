"""The labels of images whose layers have been rendered, on the CPU or on a device."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from terse_aug.compositing.label_correction import Correction, PastedObject, correct_target
from terse_aug.compositing.layers import Frames, Layer, RenderSettings, pasted_object
from terse_aug.compositing.mask_extents import Mask, MaskChange
from terse_aug.compositing.mask_stack import MaskStack
from terse_aug.compositing.render import Rendered
from terse_aug.structures.annotations import OBJECT_FIELDS, Target, repair_boxes
from terse_aug.structures.box_format import check_box_format
from terse_aug.utils.transfer import to_cpu, to_device


@dataclass(frozen=True)
class ImageLabels:
    """The labels of an image after pasting.

    Attributes:
        target: corrected; the one that was given where nothing has changed.
        layers: numbers of the layers that are shown.
        visible: what each of them shows.
        rows: for each of them its row in the target, or ``None``.
        kept: rows of the original objects that are kept; ``None`` for all.
        dropped: counts by reason.
    """

    target: Target
    layers: list[int] = field(default_factory=list)
    visible: list[PastedObject] = field(default_factory=list)
    rows: list[int | None] = field(default_factory=list)
    kept: list[int] | None = None
    dropped: Counter[str] = field(default_factory=Counter)


def label_image(
    target: Target,
    numbers: Sequence[int],
    layers: Sequence[Layer],
    masks: Sequence[Mask],
    frame: tuple[int, int],
    settings: RenderSettings,
    changes: Sequence[MaskChange] | None = None,
) -> ImageLabels:
    """The labels of an image, on the CPU.

    Args:
        target: of the image.
        numbers: of its layers.
        layers: of the batch.
        masks: for each of them bool ``[h, w]`` over its rectangle.
        frame: (H, W).
        settings: how to render.
        changes: see :func:`correct_target`.
    """
    dropped: Counter[str] = Counter()
    shown: dict[int, PastedObject] = {}
    for number in numbers:
        pasted = pasted_object(layers[number], masks[number], frame, settings.keypoint_flip_order)
        if pasted is not None:
            shown[number] = pasted
        elif layers[number].kind != "distractor":
            dropped["paste_too_small"] += 1
    pastes = {layers[number].row for number in shown if layers[number].kind == "paste"}
    shown = {
        number: own
        for number, own in shown.items()
        if layers[number].kind != "occludee" or layers[number].occluder in pastes
    }
    if not shown:
        return ImageLabels(target, dropped=dropped)
    visible = list(shown.values())
    correction = correct_target(target, frame, visible, settings.paste.min_visibility, changes)
    dropped.update(correction.dropped)
    return ImageLabels(correction.target, list(shown), visible, correction.rows, correction.kept, dropped)


def label_on_device(
    images: Sequence[Tensor],
    targets: Sequence[Target],
    layers: Sequence[Layer],
    rendered: Rendered | None,
    frames: Frames,
    settings: RenderSettings,
) -> tuple[list[ImageLabels], list[float], dict[str, str]]:
    """The labels of a batch on a device: everything that is needed comes to the CPU in one piece, and goes back so.

    Boxes are repaired here, and nothing is pasted on images that are not finite: to know either earlier would take
    another synchronization. Masks on the device stay there.

    Args:
        images: before pasting.
        targets: of the images, on their device or on the CPU.
        layers: of the batch.
        rendered: the layers; ``None`` without any.
        frames: of the images.
        settings: how to render.

    Returns:
        Labels; the largest absolute value of each float image, NaN or infinite where one is; texts to warn of once,
        by kind.

    Raises:
        ValueError: boxes on the device that are not XYXY in pixels.
    """
    stack, on_cpu = None, targets[0]["boxes"].device.type == "cpu"
    if rendered is not None and not on_cpu and any("masks" in target for target in targets):
        stack = MaskStack(targets, frames, rendered)
    names = [[name for name in OBJECT_FIELDS if name in target and (on_cpu or name != "masks")] for target in targets]
    wanted = [target[name] for target, own in zip(targets, names, strict=True) for name in own]
    wanted += [] if stack is None else [stack.changes]
    wanted += [] if rendered is None else [rendered.mask]
    wanted += [_largest(images)] if images[0].is_floating_point() else []
    here = to_cpu(wanted)
    largest = here.pop().tolist() if images[0].is_floating_point() else []
    finite = [math.isfinite(value) for value in largest] or [True] * len(images)
    masks = [] if rendered is None else [own.numpy() for own in rendered.pixels.patches(here.pop())]
    changes = None if stack is None else here.pop()
    values = iter(here)
    labels = []
    every = [{name: next(values) for name in own} for own in names]
    warnings: dict[str, str] = {}
    if not on_cpu:
        warnings = check_box_format([fields["boxes"].detach().float().numpy() for fields in every], frames)
    for number, (target, fields) in enumerate(zip(targets, every, strict=True)):
        numbers = [row for row, layer in enumerate(layers) if layer.image == number and finite[number]]
        known = None if stack is None or changes is None else stack.changes_of(number, changes)
        labels.append(_label(fields, target, numbers, layers, masks, frames[number], settings, known))
    return _sent_back(labels, targets, names, stack, len(layers), images[0].device), largest, warnings


def _label(
    fields: Target,
    target: Target,
    numbers: Sequence[int],
    layers: Sequence[Layer],
    masks: Sequence[Mask],
    frame: tuple[int, int],
    settings: RenderSettings,
    changes: Sequence[MaskChange] | None,
) -> ImageLabels:
    """Labels of one image on the CPU, with the masks if these are there; ``target`` itself if nothing has changed."""
    # The rows of the objects ride along as a field, so that it is known which of them repairing leaves out.
    count = len(fields["boxes"])
    repaired, dropped = repair_boxes(fields | {"ids": torch.arange(count)}, *frame)
    rows = repaired["ids"].tolist()
    if len(rows) < count:
        fields = {name: value[rows] for name, value in fields.items()}
        changes = None if changes is None else [changes[row] for row in rows]
    unchanged = repaired["boxes"] is fields["boxes"] and len(rows) == count
    fields = fields | {"boxes": repaired["boxes"]}
    found = label_image(fields, numbers, layers, masks, frame, settings, changes)
    found.dropped.update(dropped)
    if found.target is fields and unchanged:
        found = ImageLabels(target, dropped=found.dropped)
    kept = rows if found.kept is None else [rows[row] for row in found.kept]
    return ImageLabels(found.target, found.layers, found.visible, found.rows, kept, found.dropped)


def _sent_back(
    labels: Sequence[ImageLabels],
    targets: Sequence[Target],
    names: Sequence[Sequence[str]],
    stack: MaskStack | None,
    layer_count: int,
    device: torch.device,
) -> list[ImageLabels]:
    """The labels with their targets on the device."""
    changed = [
        number
        for number, (own, target) in enumerate(zip(labels, targets, strict=True))
        if own.target is not target or target["boxes"].device != device
    ]
    if not changed:
        return list(labels)
    there = iter(to_device([labels[number].target[name] for number in changed for name in names[number]], device))
    found = list(labels)
    masks: Mapping[int, Tensor] = {}
    if stack is not None:
        corrections = {
            number: Correction(labels[number].target, labels[number].rows, labels[number].kept or [], Counter())
            for number in changed
            if "masks" in targets[number] and labels[number].layers
        }
        masks = stack.corrected(corrections, {number: labels[number].layers for number in changed}, layer_count)
    for number in changed:
        target = dict(targets[number]) | {name: next(there) for name in names[number]}
        if number in masks:
            target["masks"] = masks[number]
        elif "masks" in target and "masks" not in names[number]:
            (rows,) = to_device([torch.tensor(labels[number].kept, dtype=torch.long)], device)
            target["masks"] = target["masks"].index_select(0, rows)
        own = labels[number]
        found[number] = ImageLabels(target, own.layers, own.visible, own.rows, own.kept, own.dropped)
    return found


def _largest(images: Sequence[Tensor]) -> Tensor:
    """The largest absolute value of each image, NaN where there is one, by one kernel for all."""
    return torch.stack(torch._foreach_norm([image.detach() for image in images], float("inf"))).float()

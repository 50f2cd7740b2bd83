"""From a paste plan and transforms to composites with corrected labels: a pure function.

Shape letters: B images, M pastes, P transform parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from terse_aug.bank import Foreground
from terse_aug.compositing.geometry import frame_of, paste_geometry, place_unit
from terse_aug.compositing.image_labels import ImageLabels, label_image, label_on_device
from terse_aug.compositing.label_correction import PastedObject
from terse_aug.compositing.layers import Layer, RenderSettings, layers_of
from terse_aug.compositing.patches import Patch, blend
from terse_aug.compositing.photometric import BLUR_RADIUS, Looks, changed_patch
from terse_aug.compositing.plan import AuxiliaryObjects, PastePlan
from terse_aug.compositing.render import Rendered, composites, render
from terse_aug.compositing.render_cpu import render_8bit
from terse_aug.structures.annotations import Target, repair_boxes
from terse_aug.transforms import Placement
from terse_aug.utils.transfer import Reading, to_cpu

POISSON = (
    "blends: poisson is computed on the CPU, and has no gradient: compose there, with terse.composer(), terse.ahead() "
    "or images on the CPU, by a policy that does not learn from gradients; or leave poisson out"
)
"""Why a batch is refused."""


@dataclass(frozen=True)
class Paste:
    """One paste of a composite.

    Attributes:
        index: of the foreground in the bank.
        source: where the foreground comes from.
        label: its class.
        unit: float ``[P]``, its transform in the unit cube, on the CPU.
        row: its row in the composite's target, or ``None`` where it got no label.
        number: its row in the proposal; ``None`` for an occludee.
    """

    index: int
    source: str
    label: int
    unit: Tensor
    row: int | None
    number: int | None


@dataclass(frozen=True)
class Composites:
    """The outcome of :func:`compose`.

    Attributes:
        images: B tensors ``[3, H, W]``, float or uint8; with a graph where the proposal had one.
        targets: B corrected targets.
        pastes: for each image its pastes, the last in front, occludees first; without distractors and decoys.
        dropped: counts by reason.
        visible: for each image the pixels of everything that was pasted, decoys first.
        unit: float ``[M, P]``, the transforms in the unit cube, on the CPU.
        largest: absolute value of each float image on a device, NaN where it is not finite; empty for others.
        backgrounds: by image that was replaced, the index of its background in the pool.
        warnings: texts to warn of once, by kind, about targets on a device.
    """

    images: list[Tensor]
    targets: list[Target]
    pastes: list[list[Paste]]
    dropped: Counter[str]
    visible: list[list[PastedObject]]
    unit: Tensor
    largest: list[float]
    backgrounds: dict[int, int] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)

    def labelled(self, image: int) -> list[Paste]:
        """The pastes of an image that the policy placed and that have a label."""
        return [paste for paste in self.pastes[image] if paste.row is not None and paste.number is not None]


def compose(
    images: Sequence[Tensor],
    targets: Sequence[Target],
    plan: PastePlan[Foreground],
    unit: Tensor,
    settings: RenderSettings,
    placement: Placement | None = None,
    boxes: Reading | None = None,
) -> Composites:
    """Paste the foregrounds of a plan with the given transforms.

    In full precision: under autocast the matrices would round positions to whole pixels.

    Args:
        images: B validated images, left untouched.
        targets: B validated targets, left untouched.
        plan: M pastes.
        unit: float ``[M, P]`` in [0, 1].
        settings: how to render.
        placement: of the transforms, where it is known already.
        boxes: those of the targets, for decoys, where they are on their way to the CPU already.

    Returns:
        Composites, differentiable in ``unit``. Images without pastes are the input tensors themselves.
    """
    with full_precision(images[0].device):
        return _compose(images, targets, plan, unit, settings, placement, boxes)


def full_precision(device: torch.device) -> torch.autocast:
    """Autocast off, for a forward or a backward."""
    return torch.autocast(device.type, enabled=False)


def _compose(
    images: Sequence[Tensor],
    targets: Sequence[Target],
    plan: PastePlan[Foreground],
    unit: Tensor,
    settings: RenderSettings,
    placement: Placement | None,
    boxes: Reading | None,
) -> Composites:
    dropped: Counter[str] = Counter()
    frames, device = [frame_of(image) for image in images], images[0].device
    own_frames, ranges = [frames[image] for image in plan.image_of], settings.paste.ranges
    if placement is None and unit.requires_grad and torch.is_grad_enabled():
        placement = place_unit(unit, paste_geometry(plan.foregrounds, plan.flipped, own_frames, unit), ranges)
    learned = None if placement is None or not placement.matrix.requires_grad else (placement, unit)
    unit, *parts = to_cpu([unit] if placement is None else [unit, *placement.parts()])
    if parts:
        known = Placement(*(own.numpy() for own in parts))
    else:
        geometry = paste_geometry(plan.foregrounds, plan.flipped, own_frames, unit.numpy())
        known = place_unit(unit.numpy(), geometry, ranges)
    boxes = boxes or Reading([target["boxes"] for target in targets] if plan.decoys else [])
    objects = [repair_boxes({"boxes": own}, *frames[image])[0]["boxes"] for image, own in enumerate(boxes.values())]
    layers, occludee_unit = layers_of(plan, unit.numpy(), known, frames, objects, settings, dropped)
    numbers = [[row for row, layer in enumerate(layers) if layer.image == image] for image in range(len(images))]
    largest: list[float] = []
    warnings: dict[str, str] = {}
    composed = list(images)
    if device.type == "cpu" and learned is None:
        patches = _patches(layers, images, settings)
        masks = [patch.mask for patch in patches]
        labels = [
            label_image(target, own, layers, masks, frame, settings)
            for target, own, frame in zip(targets, numbers, frames, strict=True)
        ]
        composed = [
            blend(image, [patches[row] for row in own.layers]) if own.layers else image
            for image, own in zip(images, labels, strict=True)
        ]
    else:
        rendered = None
        if layers:
            rendered, composed = _rendered(layers, images, learned, settings)
        if device.type == "cpu":
            masks = [] if rendered is None else [own.numpy() for own in rendered.pixels.patches(rendered.mask)]
            labels = [
                label_image(target, own, layers, masks, frame, settings)
                for target, own, frame in zip(targets, numbers, frames, strict=True)
            ]
        else:
            labels, largest, warnings = label_on_device(images, targets, layers, rendered, frames, settings)
    found = _result(plan, unit, occludee_unit, images, composed, layers, labels, dropped)
    return replace(found, largest=largest, warnings=warnings)


def _rendered(
    layers: Sequence[Layer],
    images: Sequence[Tensor],
    learned: tuple[Placement, Tensor] | None,
    settings: RenderSettings,
) -> tuple[Rendered, list[Tensor]]:
    """The layers on any device, and the images with them; ``learned`` are the pastes' placement and transforms."""
    paste, pixel_format, device = settings.paste, settings.pixel_format, images[0].device
    if any(layer.blend == "poisson" for layer in layers):
        raise ValueError(POISSON)
    placement, unit = learned or (None, None)
    frames, sigma = [frame_of(image) for image in images], paste.edge_blur_sigma
    margin = BLUR_RADIUS if "blur" in paste.columns else 0
    rendered = render(layers, placement, frames, sigma, pixel_format.bgr, device, margin)
    looks = Looks.of(layers, paste, unit, device) if paste.photometric.columns else None
    return rendered, composites(images, rendered, pixel_format, looks)


def _patches(layers: Sequence[Layer], images: Sequence[Tensor], settings: RenderSettings) -> list[Patch]:
    """The layers rendered by OpenCV."""
    if not layers:
        return []
    patches = render_8bit(
        [layer.reduced for layer in layers],
        [(layer.matrix * layer.reduction).tolist() for layer in layers],
        [layer.center.tolist() for layer in layers],
        [layer.rectangle for layer in layers],
        settings.paste.edge_blur_sigma,
        settings.pixel_format,
        [layer.blend for layer in layers],
    )
    for row, layer in enumerate(layers):
        if layer.source is not None:
            image, place = layer.source
            patches[row] = replace(patches[row], color=place.of(images[image].detach()))
        if layer.look is not None:
            patches[row] = changed_patch(patches[row], layer.look, images[layer.image].detach(), settings.paste)
    return patches


def _result(
    plan: PastePlan[Foreground],
    unit: Tensor,
    occludee_unit: Tensor,
    images: Sequence[Tensor],
    composed: Sequence[Tensor],
    layers: Sequence[Layer],
    labels: Sequence[ImageLabels],
    dropped: Counter[str],
) -> Composites:
    pastes: list[list[Paste]] = []
    kinds: Counter[str] = Counter()
    units, occludee_units = unit.unbind(), occludee_unit.unbind()
    for own in labels:
        dropped.update(own.dropped)
        found = []
        for number, target_row in zip(own.layers, own.rows, strict=True):
            layer = layers[number]
            kinds[layer.kind] += 1
            if layer.kind == "occludee":
                found.append(_paste(plan.occludees, layer.row, occludee_units[layer.row], target_row, None))
            elif layer.kind == "paste":
                found.append(_paste(plan, layer.row, units[layer.row], target_row, layer.row))
        pastes.append(found)
    dropped["decoy_without_background"] += len(plan.decoys) - kinds["decoy"]
    dropped["distractor_not_shown"] += len(plan.distractors) - kinds["distractor"]
    shown = [new if own.layers else image for image, new, own in zip(images, composed, labels, strict=True)]
    targets, visible = [own.target for own in labels], [own.visible for own in labels]
    return Composites(shown, targets, pastes, +dropped, visible, unit, [])


def _paste(
    objects: PastePlan[Foreground] | AuxiliaryObjects,
    row: int,
    unit: Tensor,
    target_row: int | None,
    number: int | None,
) -> Paste:
    foreground = objects.foregrounds[row]
    return Paste(objects.indices[row], foreground.source, foreground.label, unit, target_row, number)

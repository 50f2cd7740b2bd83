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
from terse_aug.compositing.decoys import decoy_pastes
from terse_aug.compositing.geometry import frame_of, paste_geometry, place_unit
from terse_aug.compositing.label_correction import PastedObject, correct_target
from terse_aug.compositing.occludees import place_occludees
from terse_aug.compositing.plan import AuxiliaryObjects, PastePlan
from terse_aug.compositing.render import Patch, blend
from terse_aug.compositing.warp import RenderSettings, warp_objects
from terse_aug.structures.annotations import Target
from terse_aug.transforms import Placement

Layer = tuple[Patch, PastedObject]


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
        images: B tensors float ``[3, H, W]``; with a graph where the proposal had one.
        targets: B corrected targets.
        pastes: for each image its pastes, the last in front, occludees first; without distractors and decoys.
        dropped: counts by reason.
        visible: for each image the pixels of everything that was pasted, decoys first.
        backgrounds: by image that was replaced, the index of its background in the pool.
    """

    images: list[Tensor]
    targets: list[Target]
    pastes: list[list[Paste]]
    dropped: Counter[str]
    visible: list[list[PastedObject]]
    backgrounds: dict[int, int] = field(default_factory=dict)

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

    Returns:
        Composites, differentiable in ``unit``. Images without pastes are the input tensors themselves.
    """
    with full_precision(images[0].device):
        return _compose(images, targets, plan, unit, settings, placement)


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
) -> Composites:
    dropped: Counter[str] = Counter()
    frames = [frame_of(image) for image in images]
    if placement is None:
        placement = _place(plan, unit, frames, settings)
    unlabelled = decoy_pastes(plan.decoys, images, targets, settings, dropped)
    for where, layer in _distractors(plan.distractors, frames, unit, settings, dropped):
        unlabelled.setdefault(where, []).append(layer)
    objects = _objects(plan, placement, frames, settings, dropped)
    occludee_unit, occludees = _occludees(plan.occludees, placement, frames, settings, dropped)
    unit, occludee_unit = unit.detach().cpu(), occludee_unit.cpu()
    composites = Composites([], [], [], dropped, [])
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        own = [row for row, of in enumerate(plan.image_of) if of == number and row in objects]
        behind = [row for row in occludees if plan.occludees.occluded_by[row] in own]
        covers = unlabelled.get(number, [])
        layers = covers + [occludees[row] for row in behind] + [objects[row] for row in own]
        visible = [pasted for _, pasted in layers]
        composites.visible.append(visible)
        if not layers:
            composites.images.append(image)
            composites.targets.append(target)
            composites.pastes.append([])
            continue
        composites.images.append(blend(image, [patch for patch, _ in layers]))
        correction = correct_target(target, frames[number], visible, settings.paste.min_visibility)
        dropped.update(correction.dropped)
        composites.targets.append(correction.target)
        rows = iter(correction.rows[len(covers) :])
        pastes = [_paste(plan.occludees, row, occludee_unit[row], next(rows), None) for row in behind]
        composites.pastes.append(pastes + [_paste(plan, row, unit[row], next(rows), row) for row in own])
    return replace(composites, dropped=+dropped)


def _place(
    objects: PastePlan[Foreground] | AuxiliaryObjects,
    unit: Tensor,
    frames: Sequence[tuple[int, int]],
    settings: RenderSettings,
) -> Placement:
    own = [frames[image] for image in objects.image_of]
    return place_unit(unit, paste_geometry(objects.foregrounds, objects.flipped, own, unit), settings.paste.ranges)


def _objects(
    objects: PastePlan[Foreground] | AuxiliaryObjects,
    placement: Placement,
    frames: Sequence[tuple[int, int]],
    settings: RenderSettings,
    dropped: Counter[str],
) -> dict[int, Layer]:
    own = [frames[image] for image in objects.image_of]
    return warp_objects(objects.foregrounds, objects.flipped, placement, own, settings, dropped)


def _distractors(
    distractors: AuxiliaryObjects,
    frames: Sequence[tuple[int, int]],
    like: Tensor,
    settings: RenderSettings,
    dropped: Counter[str],
) -> list[tuple[int, Layer]]:
    """Image and layer of the distractors with a visible pixel; the others are counted."""
    if not len(distractors):
        return []
    placement = _place(distractors, distractors.unit.to(like.device), frames, settings)
    visible = _objects(distractors, placement, frames, settings, Counter())
    dropped["distractor_not_shown"] += len(distractors) - len(visible)
    return [
        (distractors.image_of[row], (patch, replace(pasted, label=None))) for row, (patch, pasted) in visible.items()
    ]


def _occludees(
    occludees: AuxiliaryObjects,
    pastes: Placement,
    frames: Sequence[tuple[int, int]],
    settings: RenderSettings,
    dropped: Counter[str],
) -> tuple[Tensor, dict[int, Layer]]:
    if not len(occludees):
        return occludees.unit, {}
    unit, placement = place_occludees(occludees, pastes, frames, settings.paste.ranges)
    return unit, _objects(occludees, placement, frames, settings, dropped)


def _paste(
    objects: PastePlan[Foreground] | AuxiliaryObjects,
    row: int,
    unit: Tensor,
    target_row: int | None,
    number: int | None,
) -> Paste:
    foreground = objects.foregrounds[row]
    return Paste(objects.indices[row], foreground.source, foreground.label, unit, target_row, number)

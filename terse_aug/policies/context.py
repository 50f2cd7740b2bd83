"""What a policy may look at, made from a layout and the batch that it is for. Imports no host."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from terse_aug.bank import Foreground
from terse_aug.compositing.compose import RenderSettings, compose_exactly
from terse_aug.compositing.plan import PastePlan
from terse_aug.data.foreground_cache import ForegroundCache, ForegroundLike
from terse_aug.models import ModelAdapter
from terse_aug.policies import Policy, PolicyContext
from terse_aug.policies.base import THUMBNAIL
from terse_aug.policies.thumbnails import background_picture, foreground_pictures
from terse_aug.policies.views import view_maker
from terse_aug.structures.annotations import Target


def make_context(
    layout: PastePlan[ForegroundLike],
    images: Sequence[Tensor],
    targets: Sequence[Target],
    surface: RenderSettings,
    policy: Policy,
    detector: ModelAdapter | None,
    shelf: ForegroundCache,
) -> PolicyContext:
    """The scene with as much as the policy looks at, and no more.

    Raises:
        ValueError: the policy asks the detector, and there is none.
    """
    device = images[0].device
    scene = PolicyContext(
        torch.tensor(layout.image_of, dtype=torch.long, device=device),
        len(images),
        torch.tensor([foreground.label for foreground in layout.foregrounds], dtype=torch.long, device=device),
    )
    if policy.uses_thumbnails:
        scene = _with_pictures(scene, layout, images, targets, surface)
    if policy.uses_views:
        scene = dataclasses.replace(scene, glimpse=view_maker(layout, images, targets, surface))
    if policy.needs_model:
        if detector is None:
            raise ValueError("this policy asks the detector: give Terse(target=detector)")
        scene = dataclasses.replace(
            scene, detector_loss=_asker(layout.taken(shelf), images, targets, surface, detector)
        )
    return scene


def _with_pictures(
    scene: PolicyContext,
    layout: PastePlan[ForegroundLike],
    images: Sequence[Tensor],
    targets: Sequence[Target],
    surface: RenderSettings,
) -> PolicyContext:
    """The scene with what policies with ``uses_thumbnails`` look at."""
    device = images[0].device
    backgrounds = [
        background_picture(image, target, surface.pixels, THUMBNAIL)
        for image, target in zip(images, targets, strict=True)
    ]
    natural = []
    for foreground, image in zip(layout.foregrounds, layout.image_of, strict=True):
        height, width = images[image].shape[-2:]
        factor = foreground.relative_size * math.sqrt(height * width) / max(foreground.size)
        natural.append((factor * foreground.size[0] / width, factor * foreground.size[1] / height))
    return dataclasses.replace(
        scene,
        backgrounds=torch.stack(backgrounds),
        foregrounds=foreground_pictures(layout.foregrounds, layout.mirrored).to(device),
        natural_size=torch.tensor(natural, device=device).view(-1, 2),
    )


def _asker(
    layout: PastePlan[Foreground],
    images: Sequence[Tensor],
    targets: Sequence[Target],
    surface: RenderSettings,
    detector: ModelAdapter,
) -> Callable[[Tensor], Tensor]:
    """The detector's loss of each image, as a function of the transforms."""

    def detector_loss(unit: Tensor) -> Tensor:
        """Only images that show a paste are asked for: the others have no choice, or are not finite."""
        candidates = compose_exactly(images, targets, layout, unit, surface)
        losses = torch.full((len(images),), torch.nan, device=unit.device)
        pasted = [number for number, pastes in enumerate(candidates.pastes) if pastes]
        if not pasted:
            return losses
        asked = detector.image_losses(
            [candidates.images[index] for index in pasted], [candidates.targets[index] for index in pasted]
        )
        # NaN is for what was not asked; loud about infinity, which nan_to_num would make a large number.
        losses[pasted] = asked.to(losses).nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        return losses

    return detector_loss

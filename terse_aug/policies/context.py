"""Makes the input of a policy from a paste plan and its batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from terse_aug.bank import Foreground
from terse_aug.compositing.compose import compose
from terse_aug.compositing.geometry import ForegroundLike, frame_of, paste_geometry, place_unit
from terse_aug.compositing.layers import RenderSettings
from terse_aug.compositing.plan import PastePlan
from terse_aug.data.foreground_cache import THUMBNAIL_SIDE
from terse_aug.data.planner import PlannedBatch
from terse_aug.models import ModelAdapter
from terse_aug.policies.base import Policy, PolicyContext
from terse_aug.policies.real_objects import RealObjects
from terse_aug.policies.thumbnails import background_thumbnails, foreground_thumbnails
from terse_aug.policies.views import view_maker
from terse_aug.structures.annotations import Target
from terse_aug.utils.transfer import to_device


def make_context(
    planned: PlannedBatch,
    settings: RenderSettings,
    policy: Policy,
    detector: ModelAdapter | None,
    whole: Callable[[PastePlan[ForegroundLike], None], PastePlan[Foreground]],
) -> PolicyContext:
    """The context with as much as the policy uses, and no more.

    Args:
        planned: batch and plan of M pastes.
        settings: how to render.
        policy: its attributes determine what is computed.
        detector: for a policy with ``needs_model``.
        whole: gives a plan with whole foregrounds.

    Raises:
        ValueError: the policy needs the detector, and there is none.
    """
    plan, images, targets = planned.plan, planned.batch.images, planned.batch.targets
    context = PolicyContext(
        torch.from_numpy(np.array(plan.image_of, np.int64)),
        len(images),
        torch.from_numpy(np.array([foreground.label for foreground in plan.foregrounds], np.int64)),
        images[0].device,
        settings.paste.columns,
    )
    if policy.uses_thumbnails:
        context = _with_thumbnails(context, plan, images, targets, settings)
    if policy.uses_views:
        context = dataclasses.replace(context, views=view_maker(plan, images, targets, settings))
    if policy.uses_boxes:
        real = RealObjects.of(images, targets)
        context = dataclasses.replace(context, boxes=_boxes(plan, images, settings), real=real)
    if policy.needs_model:
        if detector is None:
            raise ValueError("this policy needs forwards of the detector: give Terse(model=detector)")
        loss = _detector_loss(whole(plan, None), images, targets, settings, detector)
        context = dataclasses.replace(context, detector_loss=loss)
    return context


def _boxes(
    plan: PastePlan[ForegroundLike], images: Sequence[Tensor], settings: RenderSettings
) -> Callable[[Tensor], Tensor]:
    """From candidates to their bounding boxes, see :class:`PolicyContext`."""

    def boxes(unit: Tensor) -> Tensor:
        count, pastes = unit.shape[:2]
        flat = unit.flatten(0, 1).numpy()
        frames = [frame_of(images[number]) for number in plan.image_of]
        geometry = paste_geometry(plan.foregrounds, plan.flipped, frames, flat)
        geometry = geometry.rows(np.tile(np.arange(pastes), count))
        placement = place_unit(flat, geometry, settings.paste.ranges)
        ends = np.stack([placement.box_center - placement.half_size, placement.box_center + placement.half_size], 1)
        return torch.from_numpy(ends / geometry.frame_sizes[:, None]).view(count, pastes, 4)

    return boxes


def _with_thumbnails(
    context: PolicyContext,
    plan: PastePlan[ForegroundLike],
    images: Sequence[Tensor],
    targets: Sequence[Target],
    settings: RenderSettings,
) -> PolicyContext:
    backgrounds = background_thumbnails(images, targets, settings.pixel_format, THUMBNAIL_SIDE)
    base_sizes = []
    for foreground, image in zip(plan.foregrounds, plan.image_of, strict=True):
        height, width = images[image].shape[-2:]
        factor = foreground.relative_size * math.sqrt(height * width) / max(foreground.size)
        base_sizes.append((factor * foreground.size[0] / width, factor * foreground.size[1] / height))
    arrays = [foreground_thumbnails(plan.foregrounds, plan.flipped), torch.tensor(base_sizes).view(-1, 2)]
    foregrounds, base_size = to_device(arrays, context.device)
    return dataclasses.replace(context, backgrounds=backgrounds, foregrounds=foregrounds, base_size=base_size)


def _detector_loss(
    plan: PastePlan[Foreground],
    images: Sequence[Tensor],
    targets: Sequence[Target],
    settings: RenderSettings,
    detector: ModelAdapter,
) -> Callable[[Tensor], Tensor]:
    """The detector's loss of each image, as a function of the transforms."""

    def loss(unit: Tensor) -> Tensor:
        """One forward for each image that shows a paste: the others have no choice, or are not finite."""
        candidates = compose(images, targets, plan, unit, settings)
        losses = torch.full((len(images),), torch.nan, device=images[0].device)
        pasted = [number for number, pastes in enumerate(candidates.pastes) if pastes]
        if not pasted:
            return losses
        computed = detector.image_losses(
            settings.pixel_format.as_float([candidates.images[index] for index in pasted]),
            [candidates.targets[index] for index in pasted],
        )
        # NaN marks images without a forward; a loss that is not finite becomes infinite.
        losses[pasted] = computed.to(losses).nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        return losses

    return loss

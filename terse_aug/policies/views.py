"""Small images of what a paste would look like, for policies that compare candidates.

Of its photometric values they show the color, and not blur and noise, which are finer than their pixels.

Every image that is pasted on is reduced once; then a view costs a few thousand pixels however large the image is, so
that many candidates can be compared where a detector forward allows one. No gradient flows through it.
Shape letters: B images, M pastes, C candidates for each, P transform parameters, V = VIEW_SIDE.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from terse_aug.compositing.geometry import ForegroundLike, frame_of, paste_geometry, place_unit
from terse_aug.compositing.layers import RenderSettings
from terse_aug.compositing.patches import inverse_2x2
from terse_aug.compositing.plan import PastePlan
from terse_aug.data.foreground_cache import FOREGROUND_FILL
from terse_aug.policies.base import VIEW_SHAPE, VIEW_SIDE, Views
from terse_aug.policies.thumbnails import background_thumbnails, foreground_thumbnails
from terse_aug.structures.annotations import Target
from terse_aug.transforms import color_matrix
from terse_aug.utils.transfer import to_device

_WINDOW = 1.5
"""Side of the local view relative to the longer side of the paste: some of its surroundings belong to how it looks."""
_REDUCED_SIDE = 160
"""Images are reduced to squares of this side, pixels, before local views are taken from them."""


def view_maker(
    plan: PastePlan[ForegroundLike], images: Sequence[Tensor], targets: Sequence[Target], settings: RenderSettings
) -> Callable[[Tensor], Views]:
    """A function from candidates, float ``[C, M, P]`` in the unit cube, to their views.

    Args:
        plan: M pastes.
        images: B validated images.
        targets: B validated targets.
        settings: ranges and pixel format.
    """

    @torch.no_grad()
    def make_views(unit: Tensor) -> Views:
        count, pastes = unit.shape[:2]
        device = images[0].device
        frames = [frame_of(images[number]) for number in plan.image_of]
        geometry = paste_geometry(plan.foregrounds, plan.flipped, frames, unit)
        geometry = geometry.rows(torch.arange(pastes).repeat(count))
        flat = unit.flatten(0, 1)
        placement = place_unit(flat, geometry, settings.paste.ranges)
        center, half_size, frame = placement.box_center, placement.half_size, geometry.frame_sizes
        numbers = torch.cat([flat * 2 - 1, 2 * center / frame - 1, 2 * half_size / frame], 1)
        pasted = sorted(set(plan.image_of))
        reduced = _reduced([images[number] for number in pasted], [targets[number] for number in pasted], settings)
        thumbnails = foreground_thumbnails(plan.foregrounds, [False] * pastes)
        to_thumbnail = FOREGROUND_FILL * 2 / geometry.foreground_sizes.amax(1)
        to_foreground = inverse_2x2(placement.matrix).mT * to_thumbnail[:, None, None]
        before = _nth_of_image(plan.image_of)
        rows, nth = torch.tensor([pasted.index(number) for number in plan.image_of]).long(), torch.tensor(before).long()
        steps = (torch.arange(VIEW_SIDE, dtype=unit.dtype) + 0.5) * (2 / VIEW_SIDE) - 1
        square = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).flatten(0, 1)
        looks = settings.paste.photometric_values(unit)
        arrays = [numbers, center, half_size, frame, placement.center, to_foreground, thumbnails, rows, nth, square]
        numbers, center, half_size, frame, origin, to_foreground, thumbnails, rows, nth, square = to_device(
            arrays, device
        )
        views = torch.empty(count, pastes, *VIEW_SHAPE, dtype=unit.dtype, device=device)

        def fill(view: Tensor, points: Tensor, background: Tensor) -> None:
            """Fill a view ``[C, M, 6, V, V]`` at points ``[C * M, V * V, 2]``; background: ``[C or 1, M, 5, V, V]``."""
            sampled = (points - origin[:, None]) @ to_foreground
            sampled = sampled.view(count, pastes, VIEW_SIDE * VIEW_SIDE, 1, 2).transpose(0, 1).flatten(1, 2)
            front = F.grid_sample(thumbnails, sampled, mode="bilinear", padding_mode="zeros", align_corners=False)
            front = front.view(pastes, 4, count, VIEW_SIDE, VIEW_SIDE).permute(2, 0, 1, 3, 4)
            alpha = front[:, :, 3:]
            view[:, :, :3] = torch.lerp(background[:, :, :3], _colored(front[:, :, :3], looks), alpha)
            view[:, :, 3:4] = alpha
            view[:, :, 4:] = background[:, :, 3:]

        half_window = (half_size.amax(1) * _WINDOW)[:, None].expand(-1, 2)
        points = center[:, None] + square * half_window[:, None]
        in_image = (2 * points / frame[:, None] - 1).view(count, pastes, VIEW_SIDE, VIEW_SIDE, 2)
        fill(views[:, :, 0], points, _sample_images(in_image, rows, nth, max(before, default=0) + 1, reduced))
        small = F.adaptive_avg_pool2d(reduced, VIEW_SIDE).to(unit.dtype).index_select(0, rows)
        whole = (frame / 2)[:, None]
        fill(views[:, :, 1], whole + square * whole, small[None])
        return Views(views, numbers.view(count, pastes, -1), placement)

    return make_views


def _colored(color: Tensor, looks: Tensor | None) -> Tensor:
    """Colors ``[C, M, 3, V, V]`` in [0, 1] with photometric values ``[C, M, k]`` on the CPU, if there are any."""
    if looks is None:
        return color
    (matrix,) = to_device([color_matrix(looks)], color.device)
    return (torch.einsum("cmij,cmjyx->cmiyx", matrix[..., :3], color) + matrix[..., 3:, None] / 255).clamp(0, 1)


def _reduced(images: Sequence[Tensor], targets: Sequence[Target], settings: RenderSettings) -> Tensor:
    """Images stretched to squares: RGB, a map of the objects on them, and ones, ``[B, 5, S, S]``."""
    side = min(_REDUCED_SIDE, max(max(frame_of(image)) for image in images))
    backgrounds = background_thumbnails(images, targets, settings.pixel_format, side)
    return torch.cat([backgrounds, torch.ones_like(backgrounds[:, :1])], 1)


def _sample_images(points: Tensor, rows: Tensor, nth: Tensor, most: int, images: Tensor) -> Tensor:
    """Sample every paste's own image; zeros outside of it.

    Args:
        points: float ``[C, M, V, V, 2]`` in grid_sample's coordinates of the whole image.
        rows: int64 ``[M]``, the image of each paste, ascending.
        nth: int64 ``[M]``, how many pastes before it are on the same image.
        most: pastes on one image.
        images: ``[B, c, S, S]``.

    Returns:
        ``[C, M, c, V, V]``.
    """
    count, channels = len(points), images.shape[1]
    # All pastes of an image are sampled in one row of a padded batch: one call, and no copy of an image.
    padded = points.new_full((len(images), most, count * VIEW_SIDE, VIEW_SIDE, 2), -2.0)
    padded[rows, nth] = points.transpose(0, 1).flatten(1, 2)
    sampled = F.grid_sample(images.to(points), padded.flatten(1, 2), padding_mode="zeros", align_corners=False)
    by_paste: Tensor = sampled.view(-1, channels, most, count, VIEW_SIDE, VIEW_SIDE)[rows, :, nth]
    return by_paste.permute(2, 0, 1, 3, 4)


def _nth_of_image(image_of: Sequence[int]) -> list[int]:
    """For each paste, how many before it are on the same image."""
    counts: Counter[int] = Counter()
    nth = []
    for image in image_of:
        nth.append(counts[image])
        counts[image] += 1
    return nth

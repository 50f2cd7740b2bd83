"""Small pictures of what a paste would look like, for policies that judge candidates. Imports no host.

Every image that is pasted on is reduced once; then a glimpse costs a few thousand pixels however large the image is, so
that many candidates can be looked at where the detector could be asked for one. No gradient flows through it.
Shape letters: B images, M pastes, C candidates for each, P transform parameters, G = GLIMPSE.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from terse_aug.compositing.compose import RenderSettings
from terse_aug.compositing.plan import PastePlan, paste_geometry
from terse_aug.compositing.render import inverse_2x2
from terse_aug.data.foreground_cache import ForegroundLike
from terse_aug.policies import VIEW_SIDE, Views
from terse_aug.policies.base import FOREGROUND_FILL, VIEW_SHAPE
from terse_aug.policies.thumbnails import background_picture, foreground_pictures
from terse_aug.structures.annotations import Target
from terse_aug.transforms import PasteGeometry, place

_WINDOW = 1.5
"""Side of the window relative to the larger side of the paste: some of its surroundings belong to how it looks."""
_CANVAS = 160
"""Images are reduced to squares of this side, pixels, before windows are taken from them."""
_GRID = (VIEW_SIDE, VIEW_SIDE, 2)


def view_maker(
    layout: PastePlan[ForegroundLike], images: Sequence[Tensor], targets: Sequence[Target], surface: RenderSettings
) -> Callable[[Tensor], Views]:
    """A function from candidates, float ``[C, M, P]`` in the unit cube, to their glimpses.

    Args:
        layout: M pastes.
        images: B checked images.
        targets: B checked targets.
        surface: ranges and pixel format.
    """

    @torch.no_grad()
    def glimpse(unit: Tensor) -> Views:
        frames = [(images[number].shape[-2], images[number].shape[-1]) for number in layout.image_of]
        count, pastes = unit.shape[:2]
        flat = unit.flatten(0, 1)
        geometry = _repeated(paste_geometry(layout.foregrounds, layout.mirrored, frames, unit), count)
        ranges = surface.config.ranges
        placement = place(ranges.physical(flat), geometry, ranges.keep_inside)
        middle, half_extent = placement.middle, placement.half_extent
        frame = geometry.frame_sizes
        figures = torch.cat([flat * 2 - 1, 2 * middle / frame - 1, 2 * half_extent / frame], 1)
        half_side = (half_extent.amax(1) * _WINDOW)[:, None].expand(-1, 2)
        pasted = sorted(set(layout.image_of))
        canvases = _canvases([images[number] for number in pasted], [targets[number] for number in pasted], surface)
        rows = [pasted.index(number) for number in layout.image_of]
        pictures = foreground_pictures(layout.foregrounds, [False] * pastes).to(unit)
        to_picture = FOREGROUND_FILL * 2 / geometry.cutout_sizes.amax(1)
        to_cutout = inverse_2x2(placement.matrix).mT * to_picture[:, None, None]

        views = unit.new_empty(count, pastes, *VIEW_SHAPE)

        def show(view: Tensor, points: Tensor, behind: Tensor) -> None:
            """Fill a view ``[C, M, 6, G, G]`` at points ``[C * M, G * G, 2]``; behind: ``[C or 1, M, 5, G, G]``."""
            in_cutout = (points - placement.centre[:, None]) @ to_cutout
            in_cutout = in_cutout.view(count, pastes, VIEW_SIDE * VIEW_SIDE, 1, 2).transpose(0, 1).flatten(1, 2)
            front = F.grid_sample(pictures, in_cutout, mode="bilinear", padding_mode="zeros", align_corners=False)
            front = front.view(pastes, 4, count, VIEW_SIDE, VIEW_SIDE).permute(2, 0, 1, 3, 4)
            alpha = front[:, :, 3:]
            view[:, :, :3] = torch.lerp(behind[:, :, :3], front[:, :, :3], alpha)
            view[:, :, 3:4] = alpha
            view[:, :, 4:] = behind[:, :, 3:]

        points = _grid_points(middle, half_side)
        in_image = (2 * points / frame[:, None] - 1).view(count, pastes, *_GRID)
        show(views[:, :, 0], points, _look_at_images(in_image, rows, canvases))
        reduced = F.adaptive_avg_pool2d(canvases, VIEW_SIDE).to(unit)[rows]
        show(views[:, :, 1], _grid_points(frame / 2, frame / 2), reduced[None])
        return Views(views, figures.view(count, pastes, -1))

    return glimpse


def _grid_points(middle: Tensor, half_size: Tensor) -> Tensor:
    """Centres of a view's pixels, image pixels ``[N, G * G, 2]``, for its middle and half its size, ``[N, 2]``."""
    steps = (torch.arange(VIEW_SIDE, device=middle.device, dtype=middle.dtype) + 0.5) * (2 / VIEW_SIDE) - 1
    square = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).flatten(0, 1)
    return middle[:, None] + square * half_size[:, None]


def _repeated(geometry: PasteGeometry, count: int) -> PasteGeometry:
    return PasteGeometry(
        geometry.cutout_sizes.repeat(count, 1),
        geometry.frame_sizes.repeat(count, 1),
        geometry.natural_scale.repeat(count),
        geometry.mirror.repeat(count),
        None if geometry.outlines is None else geometry.outlines.repeat(count, 1, 1),
    )


def _canvases(images: Sequence[Tensor], targets: Sequence[Target], surface: RenderSettings) -> Tensor:
    """Reduced images as RGB, a map of the objects on them, and ones: ``[B, 5, S, S]``, each filling all of it."""
    side = min(_CANVAS, max(max(image.shape[-2:]) for image in images))
    pictures = [
        background_picture(image, target, surface.pixels, side) for image, target in zip(images, targets, strict=True)
    ]
    backgrounds = torch.stack(pictures)
    return torch.cat([backgrounds, torch.ones_like(backgrounds[:, :1])], 1)


def _look_at_images(points: Tensor, image_of: Sequence[int], canvases: Tensor) -> Tensor:
    """Sample every paste's own image; zeros outside of it.

    Args:
        points: float ``[C, M, G, G, 2]`` in grid_sample's coordinates of the whole image.
        image_of: M, ascending.
        canvases: ``[B, c, S, S]``.

    Returns:
        ``[C, M, c, G, G]``.
    """
    count, channels = len(points), canvases.shape[1]
    # All pastes of an image are looked up in one row of a padded batch: one call, and no copy of a canvas.
    nth = _ranks(image_of)
    most = max(nth, default=0) + 1
    padded = points.new_full((len(canvases), most, count * VIEW_SIDE, VIEW_SIDE, 2), -2.0)
    padded[image_of, nth] = points.transpose(0, 1).flatten(1, 2)
    looked = F.grid_sample(canvases.to(points), padded.flatten(1, 2), padding_mode="zeros", align_corners=False)
    by_paste: Tensor = looked.view(-1, channels, most, count, VIEW_SIDE, VIEW_SIDE)[image_of, :, nth]
    return by_paste.permute(2, 0, 1, 3, 4)


def _ranks(image_of: Sequence[int]) -> list[int]:
    """For each paste, how many before it are on the same image."""
    seen: Counter[int] = Counter()
    ranks = []
    for image in image_of:
        ranks.append(seen[image])
        seen[image] += 1
    return ranks

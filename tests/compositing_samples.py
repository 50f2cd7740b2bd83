"""Foregrounds, plans and targets for the tests of the compositor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from terse_aug import PARAMETERS, Foreground, PasteConfig, PixelFormat, TransformRanges
from terse_aug.compositing.layers import Layer, RenderSettings
from terse_aug.compositing.patches import Patch, Rectangle, covered_rectangles
from terse_aug.compositing.plan import Decoy, PastePlan
from terse_aug.compositing.render import Rendered, render
from terse_aug.transforms import Placement

WIDE = TransformRanges(
    rotation=(-60, 60), shear=(-0.4, 0.4), scale=(0.6, 1.6), scale_x=(0.7, 1.4), scale_y=(0.7, 1.4), keep_inside=0.5
)
STILL = TransformRanges(rotation=(0, 0), shear=(0, 0), scale=(1, 1), scale_x=(1, 1), scale_y=(1, 1), keep_inside=1)


def random_rgba(height: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Noise in every channel, with holes and half transparent pixels in alpha."""
    generator = torch.Generator().manual_seed(seed)
    rgba = torch.rand(4, height, width, generator=generator, dtype=torch.float64)
    rgba[3] = (rgba[3] * 3 - 0.6).clamp(0, 1)
    return rgba.to(dtype)


def opaque_rgba(height: int, width: int) -> Tensor:
    return torch.ones(4, height, width, dtype=torch.float64)


def rectangles_of(
    foregrounds: Sequence[Tensor], matrix: Tensor, center: Tensor, size: tuple[int, int], sigma: float
) -> list[Any]:
    sizes = torch.tensor([[rgba.shape[2], rgba.shape[1]] for rgba in foregrounds], dtype=matrix.dtype)
    half_size = (matrix.abs() @ (sizes / 2)[:, :, None])[:, :, 0]
    placement = Placement(*(own.numpy() for own in (matrix, center, center, half_size)))
    return covered_rectangles(placement, [size] * len(foregrounds), sigma)


def layers_of(
    foregrounds: Sequence[Tensor], matrix: Tensor, center: Tensor, rectangles: Sequence[Rectangle]
) -> list[Layer]:
    """Layers of one image, for foregrounds ``[4, h, w]`` in [0, 1]; without a graph, such as may be all edge."""
    kind = "paste" if matrix.requires_grad else "decoy"
    made = [foreground_of(rgba) for rgba in foregrounds]
    places = zip(made, matrix.detach().cpu().numpy(), center.detach().cpu().numpy(), rectangles, strict=True)
    return [
        Layer(kind, row, 0, own, False, turned, middle, rectangle, own.rgba)
        for row, (own, turned, middle, rectangle) in enumerate(places)
    ]


def rendered_over(
    foregrounds: Sequence[Tensor],
    matrix: Tensor,
    center: Tensor,
    rectangles: Sequence[Rectangle],
    size: tuple[int, int],
    sigma: float = 1.0,
) -> Rendered:
    """Foregrounds ``[4, h, w]`` in [0, 1] in one image, with a graph where matrix or center have one."""
    placement = Placement(matrix, center, center, center) if matrix.requires_grad else None
    layers = layers_of(foregrounds, matrix, center, rectangles)
    return render(layers, placement, [size], sigma, False, matrix.device)


def patches_of(rendered: Rendered, rectangles: Sequence[Rectangle]) -> list[Patch]:
    """The layers of one image, colour in [0, 1]."""
    color, alpha = (rendered.pixels.patches(own.detach().cpu()) for own in (rendered.color / 255, rendered.alpha[None]))
    return list(map(Patch, rectangles, color, alpha))


def levels_of(rgba: Tensor) -> Tensor:
    """Values in [0, 1] rounded to 8 bits."""
    return (rgba * 255).round() / 255


def foreground_of(rgba: Tensor, relative_size: float = 0.4, keypoints: Any = None, label: int = 7) -> Foreground:
    pixels = (rgba * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return Foreground(pixels, label, "somewhere.jpg#1", relative_size, keypoints)


def settings_of(ranges: TransformRanges = WIDE, **settings: Any) -> RenderSettings:
    keypoint_flip_order = settings.pop("keypoint_flip_order", ())
    return RenderSettings(PasteConfig(ranges=ranges, **settings), PixelFormat(), keypoint_flip_order)


def plan_of(foregrounds: Sequence[Foreground], image_of: Sequence[int], decoys: Sequence[Decoy] = ()) -> PastePlan:
    count = len(foregrounds)
    flipped = [index % 2 == 1 for index in range(count)]
    return PastePlan(list(image_of), list(range(count)), list(foregrounds), flipped, list(decoys))


def target_of(boxes: Sequence[Sequence[float]] = ()) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes).view(-1, 4), "labels": torch.ones(len(boxes), dtype=torch.long)}


def units(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, len(PARAMETERS), generator=torch.Generator().manual_seed(seed))

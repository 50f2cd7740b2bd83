"""Warp foregrounds, soften their edges and blend them into backgrounds.

Pure functions, differentiable in the transform parameters. The work is proportional to the pasted area: only the
rectangle that a paste covers is computed.

Shape letters: M pastes, H and W the background, h and w a rectangle of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.transforms import Placement
from terse_aug.utils.memory import empty

_RAMP_LOW, _RAMP_HIGH = 0.25, 0.75
"""The mask clean-up maps this interval of the warped mask to [0, 1]. It is symmetric, so the area where alpha
exceeds one half is the area where the warped mask does."""


@dataclass(frozen=True)
class Rectangle:
    """A rectangle of whole background pixels: rows ``top`` to ``bottom``, columns ``left`` to ``right``.

    The lower bounds belong to it, the upper do not.
    """

    top: int
    left: int
    bottom: int
    right: int

    @property
    def empty(self) -> bool:
        """Whether it holds no pixel."""
        return self.bottom <= self.top or self.right <= self.left

    def of(self, array: Tensor) -> Tensor:
        """The view ``[..., h, w]`` of this rectangle in an array ``[..., H, W]`` over the background."""
        return array[..., self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True)
class Patch:
    """What one paste puts into a background.

    Attributes:
        rectangle: where.
        color: ``[3, h, w]``, float in the range of the background, or 8-bit RGB levels, which take a quarter of the
            memory until they are blended.
        alpha: float ``[1, h, w]`` in [0, 1].
        pixels: the background's format, for levels.
    """

    rectangle: Rectangle
    color: Tensor
    alpha: Tensor
    pixel_format: PixelFormat = field(default_factory=PixelFormat)

    @cached_property
    def mask(self) -> Tensor:
        """bool ``[h, w]``: the pixels that count as the object (alpha above one half)."""
        alpha = self.alpha.detach()[0]
        if alpha.device.type == "cpu":  # numpy compares in a quarter of the time
            return torch.from_numpy(alpha.numpy() > 0.5)
        return alpha > 0.5

    def float_color(self) -> Tensor:
        """``color`` as float ``[3, h, w]`` in the range of the background."""
        if self.color.is_floating_point():
            return self.color
        return self.pixel_format.encode(self.color.float().mul_(1 / 255))


def covered_rectangles(
    placement: Placement, frame_sizes: Sequence[tuple[int, int]], edge_sigma: float
) -> list[Rectangle]:
    """The pixels that each paste can touch, cut at the frame.

    Args:
        placement: of M pastes.
        frame_sizes: (height, width) of each paste's background.
        edge_sigma: see :func:`render`.

    Returns:
        M rectangles; an empty one where the paste lies outside the frame.
    """
    # The bilinear edge fades outside the foreground, over a fraction of one of its own pixels: many when enlarged.
    fringe = placement.matrix.abs().sum(-1) * (0.5 - _RAMP_LOW)
    reach = placement.half_size + fringe + _blur_radius(edge_sigma) + 1
    low = (placement.box_center - reach).floor().tolist()
    high = (placement.box_center + reach).ceil().tolist()
    rectangles = []
    for (left, top), (right, bottom), (height, width) in zip(low, high, frame_sizes, strict=True):
        rectangles.append(
            Rectangle(
                top=min(max(int(top), 0), height),
                left=min(max(int(left), 0), width),
                bottom=max(min(int(bottom), height), 0),
                right=max(min(int(right), width), 0),
            )
        )
    return rectangles


def render(
    foregrounds: Sequence[Tensor],
    matrix: Tensor,
    center: Tensor,
    rectangles: Sequence[Rectangle],
    edge_sigma: float,
    batched: bool = False,
) -> list[Patch]:
    """Warp foregrounds into their rectangles: bilinear, mask clean-up, Gaussian edge.

    The mask clean-up is the paper's (TERSE, CVPR 2019, section 3.1: subtract a scalar, ReLU, renormalise, blur)
    with a ramp in place of the binarisation, so that it has a gradient.

    Args:
        foregrounds: M tensors float ``[4, fh, fw]``, RGB in any range and alpha in [0, 1].
        matrix: float ``[M, 2, 2]`` from :func:`terse_aug.transforms.place`.
        center: float ``[M, 2]``.
        rectangles: M rectangles, none of them empty.
        edge_sigma: standard deviation of the edge's Gaussian in background pixels; 0 leaves the ramp.
        batched: warp all foregrounds in one padded batch (few kernel launches, for a GPU) instead of one by one
            (no wasted pixels, for a CPU). The result is the same.

    Returns:
        M patches, differentiable in ``matrix`` and ``center``.
    """
    groups = [list(range(len(foregrounds)))] if batched else [[index] for index in range(len(foregrounds))]
    groups = list(filter(None, groups))
    canvases = [_canvas([foregrounds[index] for index in group]) for group in groups]
    radius = _blur_radius(edge_sigma)
    canvas_sizes = [canvas.shape[-2:] for canvas, group in zip(canvases, groups, strict=True) for _ in group]
    own_sizes = [foreground.shape[-2:] for foreground in foregrounds]
    start, steps = sampling_lines(matrix, center, rectangles, radius, own_sizes)
    to_unit = matrix.new_tensor([[2 / width, 2 / height] for height, width in canvas_sizes]).view(-1, 2)
    start, steps = (start + 1) * to_unit - 1, steps * to_unit[:, :, None]  # in a canvas that begins with its frame
    patches: dict[int, Patch] = {}
    for group, canvas in zip(groups, canvases, strict=True):
        rows_of = slice(group[0], group[-1] + 1)
        grid = _sampling_grid(start[rows_of], steps[rows_of], rectangles[rows_of], radius)
        warped = F.grid_sample(canvas, grid, mode="bilinear", padding_mode="border", align_corners=False)
        alpha = gaussian_blur(clean_up(warped[:, 3:]), edge_sigma)
        for row, index in enumerate(group):
            rectangle = rectangles[index]
            height, width = rectangle.bottom - rectangle.top, rectangle.right - rectangle.left
            rows, columns = slice(radius, radius + height), slice(radius, radius + width)
            patches[index] = Patch(rectangle, warped[row, :3, rows, columns], alpha[row, :, :height, :width])
    return [patches[index] for index in range(len(foregrounds))]


def blend(background: Tensor, patches: Sequence[Patch]) -> Tensor:
    """Alpha-blend patches into a copy of the background, the last one in front.

    Args:
        background: float ``[3, H, W]``, left untouched.
        patches: in the range of the background.

    Returns:
        float ``[3, H, W]``, equal to the background where no patch is.
    """
    composite = empty(background.shape, background).copy_(background)
    for patch in patches:
        region = patch.rectangle.of(composite)
        color, alpha = patch.float_color().to(region.dtype), patch.alpha.to(region.dtype)
        if color.requires_grad or alpha.requires_grad:
            # A copy, because the backward wants the region as it was and later patches write over it.
            region.copy_(torch.lerp(region.clone(), color, alpha))
        else:
            region.lerp_(color, alpha)
    return composite


def clean_up(alpha: Tensor) -> Tensor:
    """The ramp of the mask clean-up, see :func:`render`: warped alpha to alpha, both in [0, 1]."""
    return (alpha - _RAMP_LOW).div_(_RAMP_HIGH - _RAMP_LOW).clamp(0, 1)


def gaussian_blur(alpha: Tensor, sigma: float) -> Tensor:
    """Blur by two passes of a sampled and normalised Gaussian, cut at two standard deviations.

    Args:
        alpha: float ``[M, 1, h + 2r, w + 2r]`` with ``r = ceil(2 sigma)``.
        sigma: standard deviation in pixels; 0 returns ``alpha``.

    Returns:
        float ``[M, 1, h, w]``: only pixels whose whole neighbourhood is known, so that an object which the frame
        cuts does not fade there.
    """
    if sigma == 0:
        return alpha
    weights = gaussian_weights(sigma)
    return _weighted_sum(_weighted_sum(alpha, weights, -2), weights, -1)


def gaussian_weights(sigma: float) -> list[float]:
    """A sampled Gaussian, cut at two standard deviations: ``2 ceil(2 sigma) + 1`` weights that add up to 1."""
    radius = _blur_radius(sigma)
    weights = [math.exp(-(offset**2) / (2 * sigma**2)) if offset else 1.0 for offset in range(-radius, radius + 1)]
    return [weight / sum(weights) for weight in weights]


def _weighted_sum(values: Tensor, weights: Sequence[float], dim: int) -> Tensor:
    """Correlate along one dimension, valid part only.

    Sums of shifted views: a convolution would be set up anew for every patch size, which costs a CPU more than
    the blur itself.
    """
    length = values.shape[dim] - len(weights) + 1
    total = values.narrow(dim, 0, length) * weights[0]
    for offset, weight in enumerate(weights[1:], start=1):
        total.add_(values.narrow(dim, offset, length), alpha=weight)  # a sum's backward does not need its terms
    return total


def _blur_radius(sigma: float) -> int:
    return math.ceil(2 * sigma)


def inverse_2x2(matrix: Tensor) -> Tensor:
    """Inverse of 2x2 matrices in closed form: no solver call, and it has a gradient on every device."""
    a, b, c, d = matrix.flatten(1).unbind(1)
    return torch.stack([d, -b, -c, a], 1).view(-1, 2, 2) / (a * d - b * c)[:, None, None]


def _canvas(foregrounds: Sequence[Tensor]) -> Tensor:
    """Stack foregrounds with a frame of transparent pixels in the colour of their border.

    The frame lets a bilinear edge fade in alpha without fading to black in colour.

    Returns:
        ``[m, 4, height + 2, width + 2]`` with the common (largest) size.
    """
    sizes = [(foreground.shape[-2], foreground.shape[-1]) for foreground in foregrounds]
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    padded = []
    for foreground, (own_height, own_width) in zip(foregrounds, sizes, strict=True):
        # The frame is made once for all four channels; then it loses its alpha.
        framed = F.pad(foreground[None], (1, width - own_width + 1, 1, height - own_height + 1), mode="replicate")
        for edge in (
            framed[:, 3, :1],
            framed[:, 3, own_height + 1 :],
            framed[:, 3, :, :1],
            framed[:, 3, :, own_width + 1 :],
        ):
            edge.zero_()
        padded.append(framed)
    return padded[0] if len(padded) == 1 else torch.cat(padded)


def sampling_lines(
    matrix: Tensor, center: Tensor, rectangles: Sequence[Rectangle], margin: int, sizes: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Where the first pixel of each rectangle samples its foreground, and how far the next ones are.

    Args:
        matrix: ``[M, 2, 2]``.
        center: ``[M, 2]``.
        rectangles: M rectangles.
        margin: pixels added around each of them.
        sizes: height, width and whatever else of each foreground.

    Returns:
        In pixels of the foreground, x before y: ``[M, 2]``, and ``[M, 2, 2]`` with a column for a step to the right and
        one for a step down.
    """
    inverse = inverse_2x2(matrix)
    corner = matrix.new_tensor([[r.left - margin + 0.5, r.top - margin + 0.5] for r in rectangles]).view(-1, 2)
    middle = matrix.new_tensor([[width / 2, height / 2] for height, width, *_ in sizes]).view(-1, 2)
    return (inverse @ (corner - center).unsqueeze(-1)).squeeze(-1) + middle, inverse


def _sampling_grid(start: Tensor, steps: Tensor, rectangles: Sequence[Rectangle], margin: int) -> Tensor:
    """Where the pixels of each rectangle look in the canvas, in grid_sample's coordinates.

    Returns:
        ``[m, h + 2 margin, w + 2 margin, 2]`` for the largest h and w.
    """
    height = max(rectangle.bottom - rectangle.top for rectangle in rectangles)
    width = max(rectangle.right - rectangle.left for rectangle in rectangles)
    columns = torch.arange(width + 2 * margin, dtype=start.dtype, device=start.device)
    rows = torch.arange(height + 2 * margin, dtype=start.dtype, device=start.device)
    along_columns = steps[:, :, 0, None] * columns
    along_rows = steps[:, :, 1, None] * rows + start[:, :, None]
    return (along_rows[:, :, :, None] + along_columns[:, :, None, :]).permute(0, 2, 3, 1)

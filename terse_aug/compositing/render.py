"""Renders all layers of a batch at once, on any device, differentiable in the transforms.

The pixels of all rectangles are one list, so that the number of kernel launches does not depend on that of the pastes.
No step waits for the device. Without a gradient a CPU has :mod:`terse_aug.compositing.render_cpu` instead.

The mask clean-up is the paper's (TERSE, CVPR 2019, section 3.1: subtract a scalar, ReLU, renormalise, blur) with a ramp
in place of the binarisation, so that it has a gradient.

Shape letters: L layers, R rows of all rectangles with their margins, N pixels of all rows, S overlaps of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from terse_aug.compositing.layers import Frames, Layer
from terse_aug.compositing.patches import RAMP_HIGH, RAMP_LOW, blur_radius, gaussian_weights
from terse_aug.compositing.photometric import Looks
from terse_aug.compositing.pixel_list import FIELDS, PixelList, SamplingLines, atlas
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.transforms import BLENDS, Placement
from terse_aug.utils.transfer import to_device

_SLOPE = 1 / (RAMP_HIGH - RAMP_LOW)
_GAUSSIAN, _ALPHA = BLENDS.index("gaussian"), BLENDS.index("alpha")


@dataclass(frozen=True)
class Rendered:
    """The pixels of all layers.

    Attributes:
        pixels: where they are.
        rows: int32 ``[len(FIELDS) + 3 S, N]``, for each pixel the values of its row.
        channels: int64 ``[3, 1]``, 0 to 2; the type of places among all values.
        zero: float ``[1]``.
        numbers: int32 ``[N]``, ascending from minus the margin.
        column: int32 ``[N]`` in its row.
        inner: bool ``[N]``, whether it is no margin.
        color: float ``[3, N]``, levels 0 to 255 in the channel order of the images.
        alpha: float ``[N]``; 0 in margins and in layers that are left out.
        mask: bool ``[N]``, whether it shows the layer's object.
        has_decoys: whether some layers are decoys.
    """

    pixels: PixelList
    rows: Tensor
    channels: Tensor
    zero: Tensor
    numbers: Tensor
    column: Tensor
    inner: Tensor
    color: Tensor
    alpha: Tensor
    mask: Tensor
    has_decoys: bool

    def row(self, name: str) -> Tensor:
        """One of ``FIELDS`` for each pixel, int32 ``[N]``."""
        return self.rows[FIELDS.index(name)]

    @property
    def overlaps(self) -> bool:
        """Whether rectangles overlap."""
        return len(self.rows) > len(FIELDS)

    @cached_property
    def _later(self) -> tuple[Tensor, Tensor]:
        """Pixels of later layers at the same place: int32 ``[S, N]`` in the list, and whether there is one."""
        low, high, distance = self.rows[len(FIELDS) :].view(-1, 3, len(self.column)).unbind(1)
        inside = (self.column >= low) & (self.column < high)
        return torch.where(inside, self.numbers + distance, 0), inside

    def of_later(self, values: Tensor) -> Tensor:
        """Values ``[N]`` of the later layers at each pixel's place, ``[S, N]``; 0 where there is none."""
        index, inside = self._later
        return values.index_select(0, index.flatten()).view(index.shape) * inside


def render(
    layers: Sequence[Layer],
    placement: Placement | None,
    frames: Frames,
    sigma: float,
    bgr: bool,
    device: torch.device,
    margin: int = 0,
) -> Rendered:
    """Warp foregrounds into their rectangles: bilinear, mask clean-up, Gaussian edge.

    Args:
        layers: L, at least one, ordered by image and in the order of pasting.
        placement: of the pastes, with a graph; ``None`` where no gradient is needed.
        frames: of the images.
        sigma: standard deviation of the edge's Gaussian in background pixels; 0 leaves the ramp.
        bgr: whether the first channel of the images is blue.
        device: of the images.
        margin: least pixels around each rectangle.
    """
    pixels = PixelList.of(layers, frames, max(blur_radius(sigma), margin))
    image, corners = atlas([layer.reduced for layer in layers], bgr)
    sampling = SamplingLines(layers, corners, image.shape[:2], pixels.margin)
    weights, known = gaussian_weights(sigma, pixels.margin), sampling.known(layers)
    parts = [
        torch.from_numpy(image),
        torch.from_numpy(pixels.rows),
        known,
        torch.tensor([weights, [_SLOPE / 255 * weight for weight in weights]], dtype=known.dtype),
        torch.arange(-pixels.margin, pixels.margin + 1, dtype=torch.int32),
        torch.arange(3),
        torch.zeros(1),
        *_kinds(layers),
        *(sampling.inputs(layers) if placement is not None else ()),
    ]
    levels, rows, lines, gaussian, taps, channels, zero, parents, is_decoy, blend, *inputs = to_device(parts, device)
    if placement is not None:
        lines = sampling.with_graph(lines, placement, inputs)
    numbers = torch.arange(-pixels.margin, pixels.count - pixels.margin, dtype=torch.int32, device=device)
    rows = rows.index_select(1, torch.repeat_interleave(rows[FIELDS.index("width")], output_size=pixels.count))
    first, widths, row, low, high, layer = rows[:6]
    column = numbers - first
    warped = _warped(levels, lines.index_select(1, layer), row, column)
    inner = (column >= low) & (column < high)
    alpha = _cleaned(warped[3], numbers, widths, taps, gaussian, blend, layer) * inner
    mask = alpha.detach() > 0.5
    shown = _shown(mask, layer, len(layers), parents, is_decoy)
    return Rendered(
        pixels,
        rows,
        channels[:, None],
        zero,
        numbers,
        column,
        inner,
        warped[:3],
        alpha * shown,
        mask & shown,
        len(is_decoy) > 0,
    )


def _warped(levels: Tensor, lines: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The atlas ``[height, width, 4]`` sampled for each pixel, float ``[4, N]``, by its line ``[10, N]``."""
    point = torch.addcmul(torch.addcmul(lines[:2], lines[2:4], column), lines[4:6], row)
    grid = point.clamp(lines[6:8], lines[8:]).t()[None, None]
    planes = levels.permute(2, 0, 1)[None].to(grid.dtype)
    return F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)[0, :, 0]


def composites(
    images: Sequence[Tensor], rendered: Rendered, pixel_format: PixelFormat, looks: Looks | None = None
) -> list[Tensor]:
    """Images with their layers blended in, views of one tensor.

    Args:
        images: of one type and device, left untouched; uint8 only where no gradient is needed.
        rendered: their layers.
        pixel_format: of float images.
        looks: of the layers, if photometric parameters are drawn.
    """
    # One more value at the end, where margins look: one of an image may be NaN.
    canvas = torch.cat([*(image.detach().flatten() for image in images), rendered.zero.to(images[0].dtype)])
    places = torch.addcmul(rendered.row("base") + rendered.column, rendered.channels, rendered.row("plane"))
    places = torch.where(rendered.inner, places, len(canvas) - 1).flatten()
    behind = canvas.index_select(0, places).view(3, -1)
    as_levels = canvas.dtype == torch.uint8 or looks is not None
    color = rendered.color if as_levels else pixel_format.encode_levels(rendered.color[:, None])[:, 0]
    if rendered.has_decoys:
        plane = rendered.row("source_plane")
        source = torch.addcmul(rendered.row("source") + rendered.column, rendered.channels, plane)
        background = canvas.index_select(0, source.clamp(0, len(canvas) - 1).flatten()).view(3, -1)
        if looks is not None and canvas.dtype != torch.uint8:
            background = pixel_format.decode_levels(background)
        color = torch.where(plane > 0, background.to(color.dtype).nan_to_num(0.0, 0.0, 0.0), color)
    if looks is not None:
        levels = behind if canvas.dtype == torch.uint8 else pixel_format.decode_levels(behind)
        color = looks.applied(rendered, color, levels.to(color.dtype).nan_to_num(0.0, 0.0, 0.0), pixel_format.bgr)
        color = color if canvas.dtype == torch.uint8 else pixel_format.encode_levels(color[:, None])[:, 0]
    # The weights of a pixel's layers and of its background add up to 1: a sum needs no order.
    added = (color - behind) * (rendered.alpha * _passed_on(rendered))
    if canvas.dtype == torch.uint8:
        total = torch.zeros(canvas.shape, dtype=added.dtype, device=canvas.device)
        total.index_put_((places,), added.flatten(), accumulate=True)
        levels = (behind + total.index_select(0, places).view(3, -1)).round_().clamp_(0, 255)
        canvas.index_put_((places,), levels.to(torch.uint8).flatten())  # layers that meet have the same value
    else:
        canvas.index_put_((places,), added.to(canvas.dtype).flatten(), accumulate=True)
    found, start = [], 0
    for image in images:
        part, start = canvas[start : start + image.numel()], start + image.numel()
        found.append(part.view(image.shape).to(image.dtype))
    return found


def _kinds(layers: Sequence[Layer]) -> tuple[Tensor, Tensor, Tensor]:
    """The layer that each occludee depends on, or its own number; whether it is a decoy; the number of its blend.

    Each is empty without occludees, without decoys, or if all edges are blurred.
    """
    blends = [BLENDS.index(layer.blend) for layer in layers]
    row_of = {layer.row: number for number, layer in enumerate(layers) if layer.kind == "paste"}
    parents = [number if layer.occluder is None else row_of[layer.occluder] for number, layer in enumerate(layers)]
    is_decoy = [layer.kind == "decoy" for layer in layers]
    return (
        torch.tensor(parents if any(layer.kind == "occludee" for layer in layers) else [], dtype=torch.long),
        torch.tensor(is_decoy if any(is_decoy) else [], dtype=torch.bool),
        torch.tensor(blends if set(blends) - {_GAUSSIAN} else [], dtype=torch.int32),
    )


def _passed_on(rendered: Rendered) -> Tensor | float:
    """How much later layers let through of each pixel."""
    if not rendered.overlaps:
        return 1.0
    opacity = rendered.of_later(rendered.alpha)
    if not opacity.requires_grad:
        return (1 - opacity).prod(0)
    # A sum of logarithms: the backward of a product synchronizes.
    return torch.log1p(-opacity.clamp(max=1 - 1e-6)).sum(0).exp()


def _shown(mask: Tensor, layer: Tensor, count: int, parents: Tensor, is_decoy: Tensor) -> Tensor:
    """For each pixel whether its layer has a visible one, and so has the paste in front of an occludee."""
    visible = torch.zeros(count, dtype=torch.int32, device=mask.device).index_add_(0, layer, mask.int()) > 0
    if len(is_decoy):
        visible = visible | is_decoy
    if len(parents):
        visible = visible & visible.index_select(0, parents)
    return visible.index_select(0, layer)


def _cleaned(
    alpha: Tensor, numbers: Tensor, widths: Tensor, taps: Tensor, gaussian: Tensor, blend: Tensor, layer: Tensor
) -> Tensor:
    """Ramp, and blur by a pass along rows and one along columns; not defined in margins.

    With blend alpha the ramp as it is, with others a step in its middle, which has no gradient.

    Args:
        alpha: float ``[N]``, warped, 0 to 255.
        numbers: int32 ``[N]``, ascending from minus half the Gaussian.
        widths: int32 ``[N]``, of the rows.
        taps: int32 ``[n]``, offsets of the Gaussian.
        gaussian: float ``[2, n]``, its weights, and the same over the ramp's length.
        blend: int32 ``[L]``, see :func:`_kinds`.
        layer: int32 ``[N]``.

    Returns:
        float ``[N]`` in [0, 1].
    """
    count, length = len(taps), len(alpha) - len(taps) + 1
    ramp = F.hardtanh(alpha, 255 * RAMP_LOW, 255 * RAMP_HIGH)
    along = ramp.unfold(0, count, 1) @ gaussian[0]
    # The numbers of the pixels above and below; ``along`` begins half a Gaussian after the list.
    near = torch.addcmul(numbers, taps[:, None], widths).clamp(0, length - 1)
    across = along.index_select(0, near.flatten()).view(count, -1)
    blurred = across.t() @ gaussian[1] - RAMP_LOW * _SLOPE
    if not len(blend):
        return blurred
    sharp, of_pixel = (ramp / 255 - RAMP_LOW) * _SLOPE, blend.index_select(0, layer)
    sharp = torch.where(of_pixel == _ALPHA, sharp, (sharp > 0.5).to(sharp.dtype))
    return torch.where(of_pixel == _GAUSSIAN, blurred, sharp)

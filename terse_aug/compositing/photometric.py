"""Changes the colors of layers before they are blended in: linear in the color, blur, noise.

What there is of each layer is drawn with its transform; the noise is that of a fixed tile, shifted. Both renderers do
the same, in float32: :func:`changed_patch` on a CPU, :meth:`Looks.applied` for the pixels of a whole batch.

Shape letters: L layers, N pixels of all rows, h and w a rectangle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terse_aug.compositing.patches import Patch
from terse_aug.config import PasteConfig
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.transforms import PHOTOMETRIC, color_matrix
from terse_aug.utils.random import generator_for
from terse_aug.utils.transfer import to_device

if TYPE_CHECKING:
    from terse_aug.compositing.layers import Layer
    from terse_aug.compositing.render import Rendered

MOST_SIGMA = 2.0
"""Standard deviation of the strongest blur, pixels."""
BLUR_RADIUS = 4
"""How far a blur reaches, pixels."""

_BLUR, _NOISE = PHOTOMETRIC.index("blur"), PHOTOMETRIC.index("noise")
_TILE = 64
_FLOOR = 24.0
"""Added for each pixel to the squared second differences: what rounding to levels leaves of smooth colors."""
_OFFSETS = np.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)


@dataclass(frozen=True)
class Look:
    """The photometric values of a layer.

    Attributes:
        values: float ``[len(PHOTOMETRIC)]``.
        shift: of the tile of noise, rows and columns.
    """

    values: NDArray[Any]
    shift: tuple[int, int]


def looks_of(unit: NDArray[Any], paste: PasteConfig) -> Sequence[Look | None]:
    """The looks of transforms float ``[n, P]`` in the unit cube; ``None`` where no photometric parameter is drawn."""
    values = paste.photometric_values(unit)
    if values is None:
        return [None] * len(unit)
    places = np.zeros(len(unit), int)
    if "noise" in paste.columns:
        # From what is drawn already, so that composing stays a pure function.
        places = (unit[:, paste.columns.index("noise")] * _TILE**2).astype(int) % _TILE**2
    return [Look(own, divmod(int(place), _TILE)) for own, place in zip(values, places, strict=True)]


@lru_cache(maxsize=1)
def noise_tile() -> NDArray[np.float32]:
    """Standard normal noise, ``[3, _TILE, _TILE]``."""
    noise: NDArray[np.float32] = torch.randn(3, _TILE, _TILE, generator=generator_for(0, 0, "noise tile")).numpy()
    return noise


# On a CPU, layer by layer.


def changed_patch(patch: Patch, look: Look, image: Tensor, paste: PasteConfig) -> Patch:
    """A patch with its look.

    Args:
        patch: rendered.
        look: of its layer.
        image: that it is for, before pasting.
        paste: which parameters are drawn.

    Returns:
        The patch with color as levels for an 8-bit image, else in the range of the image.
    """
    photometric, pixel_format = paste.photometric, patch.pixel_format
    levels = color = _levels(patch.color, pixel_format)
    if photometric.changes_color:
        matrix = color_matrix(look.values, pixel_format.bgr).astype(np.float32)
        color = (matrix[:, :3] @ color.reshape(3, -1)).reshape(color.shape)
        color += matrix[:, 3, None, None]
    if "blur" in photometric.columns:
        behind = _levels(patch.rectangle.of(image), pixel_format)
        sharpest = _variance(levels, patch.mask, MOST_SIGMA**2)
        missing = _variance(behind, None, 0.0) - sharpest
        variance = float(look.values[_BLUR]) * min(max(missing, 0.0), MOST_SIGMA**2)
        color = _blurred(color, patch.alpha.numpy()[0], variance) if variance > 0 else color
    if "noise" in photometric.columns:
        color = color + _noise(color.shape[1:], look.shift) * np.float32(255 * look.values[_NOISE])
    color = color.clip(0, 255)
    if image.dtype == torch.uint8:
        return replace(patch, color=torch.from_numpy(np.rint(color).astype(np.uint8)))
    return replace(patch, color=pixel_format.encode_levels(torch.from_numpy(color)))


def _noise(size: Sequence[int], shift: tuple[int, int]) -> NDArray[np.float32]:
    """The tile from a place on, as often as needed, ``[3, h, w]``."""
    times = [-(-(length + start) // _TILE) for length, start in zip(size, shift, strict=True)]
    (top, left), (height, width) = shift, size
    return np.tile(noise_tile(), (1, *times))[:, top : top + height, left : left + width]


def _levels(color: Tensor, pixel_format: PixelFormat) -> NDArray[np.float32]:
    """Colors ``[3, h, w]`` as levels, in the same order of channels."""
    levels = color if color.dtype == torch.uint8 else pixel_format.decode_levels(color).float().nan_to_num(0, 0, 0)
    found: NDArray[np.float32] = levels.numpy().astype(np.float32)
    return found


def _variance(levels: NDArray[np.float32], mask: NDArray[np.bool_] | None, unknown: float) -> float:
    """The variance of the Gaussian that would blur a sharp edge as much, square pixels; see :class:`_Around`."""
    counted, count = None, max(levels.shape[1] - 2, 0) * max(levels.shape[2] - 2, 0)
    if mask is not None:
        inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        counted, count = inner.astype(np.float32), int(np.count_nonzero(inner))
    if not count:
        return unknown
    first = second = 0.0
    middle = levels[:, 1:-1, 1:-1]
    for before, after in (
        (levels[:, 1:-1, :-2], levels[:, 1:-1, 2:]),
        (levels[:, :-2, 1:-1], levels[:, 2:, 1:-1]),
    ):
        step = after - middle
        bend = step + before
        bend -= middle
        if counted is not None:
            step *= counted
            bend *= counted
        first, second = first + float(np.vdot(step, step)), second + float(np.vdot(bend, bend))
    return float(first / (2 * (second + _FLOOR * count)))


def _blurred(color: NDArray[np.float32], alpha: NDArray[np.float32], variance: float) -> NDArray[np.float32]:
    """Colors ``[3, h, w]`` blurred within what alpha ``[h, w]`` shows."""
    weights = np.exp(-(_OFFSETS**2) / (2 * variance + 1e-6))
    weights = weights / weights.sum()
    shown = _filtered(alpha, weights).clip(1e-6)
    return np.stack([_filtered(plane * alpha, weights) / shown for plane in color])


def _filtered(plane: NDArray[np.float32], weights: NDArray[Any]) -> NDArray[np.float32]:
    mixed = cv2.sepFilter2D(plane, cv2.CV_32F, weights, weights, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(mixed, dtype=np.float32)


# For the pixels of all layers of a batch.


@dataclass(frozen=True)
class Looks:
    """The looks of all layers of a batch on a device.

    Attributes:
        paste: which parameters are drawn.
        values: float ``[L, len(PHOTOMETRIC)]``, with a graph where transforms have one.
        shifts: int64 ``[2, L]``.
        tile: see :func:`noise_tile`.
        offsets: float ``[2 BLUR_RADIUS + 1]``.
    """

    paste: PasteConfig
    values: Tensor
    shifts: Tensor
    tile: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, layers: Sequence[Layer], paste: PasteConfig, pastes: Tensor | None, device: torch.device) -> Looks:
        """The looks of L layers.

        Args:
            layers: with looks.
            paste: settings.
            pastes: float ``[M, P]``, the transforms of pastes with a graph; ``None`` where no gradient is needed.
            device: of the images.
        """
        looks = [layer.look for layer in layers if layer.look is not None]
        values = torch.from_numpy(np.stack([look.values for look in looks]))
        shifts = torch.tensor([look.shift for look in looks]).T
        numbers = [number for number, layer in enumerate(layers) if layer.kind == "paste"]
        rows = [layers[number].row for number in numbers]
        arrays = [values, shifts, torch.from_numpy(noise_tile()).to(values), torch.from_numpy(_OFFSETS).to(values)]
        *known, there, own = to_device([*arrays, torch.tensor(numbers), torch.tensor(rows)], device)
        if pastes is not None and numbers:
            learned = paste.photometric_values(pastes.index_select(0, own))
            assert learned is not None
            known[0] = known[0].index_copy(0, there, learned)
        return cls(paste, *known)

    def applied(self, rendered: Rendered, color: Tensor, behind: Tensor, bgr: bool) -> Tensor:
        """The colors of all layers with their looks.

        Args:
            rendered: the layers; with a margin of at least ``BLUR_RADIUS`` where they are blurred.
            color: float ``[3, N]``, levels.
            behind: float ``[3, N]``, levels of the images before pasting.
            bgr: whether the first channel is blue.

        Returns:
            float ``[3, N]``, levels 0 to 255.
        """
        drawn, layer = self.paste.photometric, rendered.row("layer")
        changed = color
        if drawn.changes_color:
            matrix = color_matrix(self.values, bgr).flatten(1).index_select(0, layer).view(-1, 3, 4)
            changed = ((matrix[:, :, :3] * color.t()[:, None]).sum(2) + matrix[:, :, 3]).t()
        if "blur" in drawn.columns:
            around = _Around(rendered)
            missing = around.variances(behind.detach(), rendered.inner, 0.0)
            missing = missing - around.variances(color.detach(), rendered.mask, MOST_SIGMA**2)
            changed = around.blurred(changed, self.values[:, _BLUR] * missing.clamp(0, MOST_SIGMA**2), self.offsets)
        if "noise" in drawn.columns:
            down, right = self.shifts.index_select(1, layer)
            margin = rendered.pixels.margin
            rows = (down + rendered.row("row") - margin) % _TILE
            columns = (right + rendered.column - margin) % _TILE
            noise = self.tile.flatten(1).index_select(1, rows * _TILE + columns)
            changed = changed + noise * (255 * self.values[:, _NOISE]).index_select(0, layer)
        return changed.clamp(0, 255)


class _Around:
    """The neighbors of each pixel in the list of a batch.

    Args:
        rendered: the layers.
    """

    def __init__(self, rendered: Rendered) -> None:
        self._rendered, self._layer = rendered, rendered.row("layer")
        self._count = len(rendered.pixels.sizes)
        self._index = rendered.numbers + rendered.pixels.margin

    @cached_property
    def _nearest(self) -> Tensor:
        """Left, up, right and down of each pixel, int ``[4, N]``."""
        width = self._rendered.row("width")
        one = torch.ones_like(width)
        return self._clamped(torch.stack([-one, -width, one, width]))

    def _clamped(self, distances: Tensor) -> Tensor:
        return (self._index + distances).clamp(0, len(self._index) - 1)

    def variances(self, levels: Tensor, mask: Tensor, unknown: float) -> Tensor:
        """The variance of the Gaussian that would blur a sharp edge as much, square pixels, float ``[L]``.

        Of a step that is blurred by a Gaussian of variance v, the integral of the squared second derivative is that of
        the squared first one over 2 v, whatever its height.

        Args:
            levels: float ``[3, N]``.
            mask: bool ``[N]``, the pixels that count.
            unknown: of a layer without pixels whose neighbors count, too.
        """
        near = self._nearest.flatten()
        before, after = levels.index_select(1, near).view(3, 2, 2, -1).unbind(1)
        counted = mask & mask.index_select(0, near).view(4, -1).all(0)
        middle = levels[:, None]
        first = (after - middle).square().sum((0, 1))
        second = (before + after - 2 * middle).square().sum((0, 1)) + _FLOOR
        sums = levels.new_zeros(self._count, 2)
        sums = sums.index_add_(0, self._layer, torch.stack([first, second], 1) * counted[:, None])
        return torch.where(sums[:, 1] > 0, sums[:, 0] / (2 * sums[:, 1].clamp(min=_FLOOR)), unknown)

    def blurred(self, color: Tensor, variances: Tensor, offsets: Tensor) -> Tensor:
        """Colors ``[3, N]`` blurred within what their alpha shows, for the variance of each layer ``[L]``."""
        weights = (-offsets.square() / (2 * variances[:, None] + 1e-6)).exp()
        of_pixel = (weights / weights.sum(1, keepdim=True)).t().index_select(1, self._layer)
        alpha = self._rendered.alpha
        planes = torch.cat([color * alpha, alpha[None]])
        whole = offsets.to(self._index.dtype)[:, None]
        for step in (torch.ones_like(self._index), self._rendered.row("width")):
            near = self._clamped(whole * step)
            planes = (planes.index_select(1, near.flatten()).view(4, *near.shape) * of_pixel).sum(1)
        return planes[:3] / planes[3:].clamp(min=1e-6)

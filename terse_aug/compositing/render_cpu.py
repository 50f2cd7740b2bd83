"""Warp and soften foregrounds on a CPU, where no gradient is needed.

The fast twin of :func:`terse_aug.compositing.render.render`: the same positions, ramp and blur, on 8-bit pixels.
Shape letters: M pastes, h and w a rectangle of the background.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from terse_aug.compositing.patches import Patch, Rectangle, clean_up, gaussian_weights
from terse_aug.structures.pixel_format import PixelFormat

_RAMP = clean_up(torch.arange(256) / 255).numpy()
"""The mask clean-up of every 8-bit alpha."""
_STEP = (_RAMP > 0.5).astype(np.float32)
"""The same without a soft edge."""


def render_8bit(
    foregrounds: Sequence[NDArray[np.uint8]],
    matrix: Sequence[Sequence[Sequence[float]]],
    center: Sequence[Sequence[float]],
    rectangles: Sequence[Rectangle],
    edge_sigma: float,
    pixel_format: PixelFormat,
    blends: Sequence[str] | None = None,
) -> list[Patch]:
    """Warp foregrounds into their rectangles: bilinear, mask clean-up, Gaussian edge.

    Warped colour and alpha are rounded to 8 bits, as the foregrounds are; the rest is float32. Against
    :func:`~terse_aug.compositing.render.render`, colours differ by up to half a level (1/510) and alpha, which the ramp
    doubles, by up to one (1/255); OpenCV 4 rounds positions to 1/32 pixel on top. Where alpha is 0 the colour means
    nothing.

    Args:
        foregrounds: M foregrounds uint8 ``[fh, fw, 4]``, RGBA.
        matrix: ``[M, 2, 2]`` from :func:`terse_aug.transforms.place`, as lists.
        center: ``[M, 2]``, likewise.
        rectangles: M rectangles, none of them empty.
        edge_sigma: as in :func:`~terse_aug.compositing.render.render`.
        pixel_format: of the background.
        blends: of each, see :class:`terse_aug.PasteConfig`; by default gaussian.

    Returns:
        M patches, colours as levels.
    """
    weights = np.array(gaussian_weights(edge_sigma))
    places = zip(foregrounds, matrix, center, rectangles, blends or ["gaussian"] * len(foregrounds), strict=True)
    return [_patch(*place, weights, pixel_format) for place in places]


def _patch(
    foreground: NDArray[np.uint8],
    matrix: Sequence[Sequence[float]],
    center: Sequence[float],
    rectangle: Rectangle,
    blend: str,
    weights: NDArray[np.float64],
    pixel_format: PixelFormat,
) -> Patch:
    """One patch.

    Args:
        foreground: uint8 ``[fh, fw, 4]``.
        matrix: 2 rows of 2.
        center: x and y.
        rectangle: of the background.
        blend: how it is blended in.
        weights: of the blur, one for each offset from ``-margin`` to ``margin``.
        pixel_format: of the background.
    """
    margin = len(weights) // 2
    height, width = rectangle.bottom - rectangle.top, rectangle.right - rectangle.left
    size = (height + 2 * margin, width + 2 * margin)
    # Plain numbers: on four of them an array costs more than the arithmetic.
    (a, b), (c, d) = matrix
    determinant = a * d - b * c
    inverse = ((d / determinant, -b / determinant), (-c / determinant, a / determinant))
    # The blur carries alpha this far out of the foreground, in its own pixels, and there has to be a colour for it.
    reach = math.ceil(margin * max(abs(x) + abs(y) for x, y in inverse)) + 2
    # From indices of the rectangle with its margin to those of the framed foreground; they are half a pixel less than
    # the positions of the pixels' centres.
    right, down = rectangle.left - margin + 0.5 - center[0], rectangle.top - margin + 0.5 - center[1]
    inverse_map = np.array(
        [
            (x, y, x * right + y * down + side / 2 + reach - 0.5)
            for (x, y), side in zip(inverse, foreground.shape[1::-1], strict=True)
        ]
    )
    warped = cv2.warpAffine(
        _framed(foreground, reach),
        inverse_map,
        size[::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
    )
    planes = np.empty((4, *size), np.uint8)
    cv2.split(warped, [planes[channel] for channel in ((2, 1, 0, 3) if pixel_format.bgr else (0, 1, 2, 3))])
    inner = np.s_[:, margin : margin + height, margin : margin + width]
    alpha = cv2.LUT(planes[3], _RAMP if blend in ("gaussian", "alpha") else _STEP)
    if margin and blend == "gaussian":
        alpha = cv2.sepFilter2D(alpha, cv2.CV_32F, weights, weights)
    return Patch(
        rectangle,
        torch.from_numpy(planes[:3][inner]),
        torch.from_numpy(alpha[None][inner]),
        pixel_format,
        blend == "poisson",
    )


def _framed(foreground: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The foreground in a frame of transparent pixels in the colour of its border, uint8 ``[fh + 2 width, ..., 4]``."""
    framed: NDArray[np.uint8] = np.asarray(
        cv2.copyMakeBorder(foreground, width, width, width, width, cv2.BORDER_REPLICATE), dtype=np.uint8
    )
    for edge in (framed[:width], framed[-width:], framed[:, :width], framed[:, -width:]):
        edge[:, :, 3] = 0
    return framed

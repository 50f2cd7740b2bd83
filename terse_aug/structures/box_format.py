"""Recognizes boxes that are not XYXY in pixels, from values on the CPU.

Shape letters: B images, N objects of an image, n of all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_REVERSED = 0.5
"""Pixels by which sides are reversed; less is rounding."""
_SMALLEST_IMAGE = 16
_ROUNDING = 1e-3
_OUTSIDE = 0.02
"""Fraction of the image by which an object may reach beyond it."""
_CONVERSIONS = {
    "xyxy": "boxes",
    **{name: f"torchvision.ops.box_convert(boxes, '{name}', 'xyxy')" for name in ("xywh", "cxcywh")},
}


def check_box_format(boxes: Sequence[NDArray[np.floating]], sizes: Sequence[tuple[int, int]]) -> dict[str, str]:
    """Refuse boxes of a batch that are relative to the image, or have sizes in place of corners.

    Valid boxes pass, with a few damaged ones among them too: sides have to be in the wrong order in at least two, and
    in half of all; or all boxes, at least two of them with an area, have to lie within the first pixel of their images
    and not begin at its corner. A single one may be a placeholder or what a crop left.

    Args:
        boxes: for each of B images float ``[N, 4]``, as they came.
        sizes: (H, W) of each image.

    Returns:
        A text to warn of once, by its kind, if a single box seems to be relative.

    Raises:
        ValueError: with the formats that these boxes may have, and the conversion.
    """
    values = np.concatenate([np.zeros((0, 4)), *boxes])
    finite = np.isfinite(values).all(1)
    values = values[finite]
    if not len(values):
        return {}
    wrong = (values[:, 2] < values[:, 0] - _REVERSED) | (values[:, 3] < values[:, 1] - _REVERSED)
    if values.min() >= -_ROUNDING and values.max() <= 1 + _ROUNDING:
        smallest = min(min(size) for own, size in zip(boxes, sizes, strict=True) if len(own))
        sides = values[:, 2:] - values[:, :2]
        values = values[(sides < 0).any(1) | (sides > 0).all(1)]  # empty ones may be placeholders
        if smallest >= _SMALLEST_IMAGE and len(values) and values[:, :2].max() > _ROUNDING:
            text = _relative_text(values)
            if len(values) > 1:
                raise ValueError(text)
            return {"box_relative": f"{text}. Ignore this if the box is a placeholder"}
    elif wrong.sum() >= max(2, len(values) / 2):
        shown = [np.tile((w, h, w, h), (len(own), 1)) for own, (h, w) in zip(boxes, sizes, strict=True)]
        if not (formats := _formats(values / np.concatenate(shown)[finite])):
            return {}
        raise ValueError(
            f"expected boxes as XYXY in pixels, got {int(wrong.sum())} of {len(values)} boxes that end before they "
            f"begin, such as {_row(values[wrong][0])}; convert them before calling Terse: "
            f"{' or '.join(_CONVERSIONS[name] for name in formats)}"
        )
    return {}


def _relative_text(values: NDArray[np.floating]) -> str:
    formats = _formats(values) or ["xyxy"]
    scaled = [f"{_CONVERSIONS[name]} * torch.tensor([width, height, width, height])" for name in formats]
    return (
        f"expected boxes as XYXY in pixels, got boxes between 0 and 1, relative to the image, such as "
        f"{_row(values[0])}; convert them before calling Terse: {' or '.join(scaled)}"
    )


def _formats(values: NDArray[np.floating]) -> list[str]:
    """Formats, as torchvision names them, in which all relative boxes ``[n, 4]`` lie in their images."""
    first, second = values[:, :2], values[:, 2:]
    if (second < 0).any():
        return []
    corner = (first + second).max() <= 1 + _OUTSIDE
    center = (first - second / 2).min() >= -_OUTSIDE and (first + second / 2).max() <= 1 + _OUTSIDE
    fits = {"xyxy": (second > first).all(), "xywh": corner, "cxcywh": center}
    return [name for name, fit in fits.items() if fit]


def _row(box: NDArray[np.floating]) -> list[float]:
    return [round(float(value), 3) for value in box]

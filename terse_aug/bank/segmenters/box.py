"""Masks for objects of which only the box is known. Pure functions; imports numpy and opencv only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.extract import RejectedObject, tight_box

Box = tuple[float, float, float, float]
"""x, y, width, height in px of the image."""
BoxMaskMethod = Callable[[NDArray[np.uint8], Box], NDArray[Any]]
"""From an image uint8 ``[H, W, 3]`` RGB and a box to a mask ``[H, W]``: bool, 0 and 1, or alpha 0 to 255."""

BOX_MASK_METHODS = ("grabcut", "ellipse", "box")
"""Names of the ways to make a mask of a box."""

_MARGIN = 0.25
_LEAST_MARGIN = 10
_LARGEST_SIDE = 256
_ITERATIONS = 5
_CORE = 0.5
_LEAST_BACKGROUND = 0.05
_LEAST_PART = 0.1
_LARGEST_HOLE = 0.02
_BINS = 8
_SOFT_SHARE = 0.15


@dataclass(frozen=True)
class BoxMasks:
    """How objects without a mask are cut out of their boxes.

    Attributes:
        way: one of ``BOX_MASK_METHODS``, or a function of image and box, such as a segmentation model.
        min_quality: in [0, 1]; GrabCut's masks of a lower :func:`grabcut_quality` are not used.
        otherwise: what is done where GrabCut fails: ``"ellipse"``, ``"box"``, or ``None`` to leave the object out.

    Raises:
        ValueError: an unknown way, or a number out of range.
    """

    way: str | BoxMaskMethod
    min_quality: float = 0.3
    fallback: str | None = None

    def __post_init__(self) -> None:
        if not callable(self.way) and self.way not in BOX_MASK_METHODS:
            raise ValueError(
                f"expected one of {', '.join(BOX_MASK_METHODS)}, or a function of image and box, got {self.way!r}"
            )
        if not 0 <= self.min_quality <= 1:
            raise ValueError(f"expected min_quality within 0 to 1, got {self.min_quality}")
        if self.fallback not in (None, "ellipse", "box"):
            raise ValueError(f"expected otherwise to be ellipse, box or None, got {self.fallback!r}")

    @property
    def name(self) -> str:
        """Of the way, for a report."""
        own = self.way if isinstance(self.way, str) else getattr(self.way, "__name__", type(self.way).__name__)
        return own if isinstance(self.way, str) else f"function {own}"

    @property
    def record(self) -> dict[str, Any]:
        """What a bank's record of how it was built says of it."""
        grabcut = {"min_quality": self.min_quality, "fallback": self.fallback} if self.way == "grabcut" else {}
        return {"boxes": self.name} | grabcut

    def alpha(self, image: NDArray[np.uint8], box: Box) -> tuple[NDArray[np.uint8], str]:
        """The object's alpha, uint8 ``[H, W]`` 0 to 255, and by which way it was made.

        Raises:
            Unusable: the box is not within the image, the way failed, or a function gave no mask of this image.
        """
        checked_box(box, image.shape)
        if not isinstance(self.way, str):
            try:
                return _checked(self.way(image, box), image.shape), self.name
            except RejectedObject:
                raise
            except Exception as error:
                raise RejectedObject(f"{self.name} failed ({type(error).__name__})") from error
        if self.way != "grabcut":
            return _SHAPES[self.way](image.shape, box), self.way
        try:
            mask = grabcut_mask(image, box)
            if grabcut_quality(image, mask, box) < self.min_quality:
                raise RejectedObject(f"GrabCut's mask is poor: quality below {self.min_quality:g} (min_quality)")
        except RejectedObject:
            if self.fallback is None:
                raise
            return _SHAPES[self.fallback](image.shape, box), self.fallback
        return mask, "grabcut"


def checked_box(box: Box, shape: tuple[int, ...]) -> None:
    """Raise ``RejectedObject`` for a box that is not finite, has no area, or lies outside an image of a shape (H, W, ...)."""
    x, y, width, height = box
    if not all(math.isfinite(value) for value in box):
        raise RejectedObject("box is not finite")
    if width <= 0 or height <= 0:
        raise RejectedObject("box has no area")
    if x >= shape[1] or y >= shape[0] or x + width <= 0 or y + height <= 0:
        raise RejectedObject("box lies outside the image")


def ellipse_alpha(shape: tuple[int, ...], box: Box) -> NDArray[np.uint8]:
    """The ellipse in a box, opaque but for a soft rim: uint8 ``[H, W]``.

    Args:
        shape: (H, W, ...) of the image.
        box: in px.
    """
    return _shaped(shape, box, lambda across, down: 1 - np.hypot(across, down))


def box_alpha(shape: tuple[int, ...], box: Box) -> NDArray[np.uint8]:
    """A whole box, opaque but for a soft rim; otherwise as :func:`ellipse_alpha`."""
    return _shaped(shape, box, lambda across, down: 1 - np.maximum(np.abs(across), np.abs(down)))


def _shaped(
    shape: tuple[int, ...],
    box: Box,
    depth: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]],
) -> NDArray[np.uint8]:
    """Alpha from the depth below the rim, a function of the place in the box, -1 to 1 across and down."""
    x, y, width, height = box
    left, top, right, bottom = _rounded(box, shape[0], shape[1])
    across = (np.arange(left, right)[None] + 0.5 - x - width / 2) / (width / 2)
    down = (np.arange(top, bottom)[:, None] + 0.5 - y - height / 2) / (height / 2)
    alpha = np.zeros(shape[:2], np.uint8)
    alpha[top:bottom, left:right] = np.rint(255 * np.clip(depth(across, down) / _SOFT_SHARE, 0, 1))
    return alpha


def grabcut_mask(image: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """What stands out in a box from its surroundings, by GrabCut (Rother, Kolmogorov and Blake, SIGGRAPH 2004).

    The middle of the box, an ellipse of half its sides, is taken for the object: without it, GrabCut finds nothing in
    most boxes of a cluttered scene. The same for the same input, whatever was cut before.

    Args:
        image: uint8 ``[H, W, 3]``, RGB.
        box: in px, partly within the image.

    Returns:
        uint8 ``[H, W]``, 0 and 255: the largest part and those of a tenth of it, without small holes.

    Raises:
        Unusable: the box leaves no surroundings to learn from, or there are too few pixels.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = _rounded(box, height, width)
    margin_x = max(_LEAST_MARGIN, round(_MARGIN * (right - left)))
    margin_y = max(_LEAST_MARGIN, round(_MARGIN * (bottom - top)))
    x0, y0 = max(left - margin_x, 0), max(top - margin_y, 0)
    x1, y1 = min(right + margin_x, width), min(bottom + margin_y, height)
    inside = (right - left) * (bottom - top)
    if 1 - inside / ((x1 - x0) * (y1 - y0)) < _LEAST_BACKGROUND:
        raise RejectedObject("box fills the image: GrabCut has no surroundings to learn from")
    crop = np.ascontiguousarray(image[y0:y1, x0:x1])
    scale = min(1.0, _LARGEST_SIDE / max(crop.shape[:2]))
    size = (max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale)))
    small = cv2.resize(crop, size, interpolation=cv2.INTER_AREA) if scale < 1 else crop
    across, down = size[0] / crop.shape[1], size[1] / crop.shape[0]
    window = np.s_[
        round((top - y0) * down) : max(round((bottom - y0) * down), 1),
        round((left - x0) * across) : max(round((right - x0) * across), 1),
    ]
    labels = np.full(small.shape[:2], cv2.GC_BGD, np.uint8)
    labels[window] = cv2.GC_PR_FGD
    rows, columns = np.ogrid[-1 : 1 : labels[window].shape[0] * 1j, -1 : 1 : labels[window].shape[1] * 1j]
    labels[window][np.hypot(rows, columns) <= _CORE] = cv2.GC_FGD
    if (labels != cv2.GC_BGD).all():
        raise RejectedObject("box fills the image: GrabCut has no surroundings to learn from")
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(
            small, labels, (0, 0, 0, 0), np.zeros((1, 65)), np.zeros((1, 65)), _ITERATIONS, cv2.GC_INIT_WITH_MASK
        )
    except cv2.error as error:  # fewer pixels than the components of its mixtures
        raise RejectedObject("GrabCut failed: too few pixels in the box or around it") from error
    found = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    found = _tidied(found)
    if scale < 1:
        found = (cv2.resize(found.astype(np.float32), crop.shape[1::-1]) > 0.5).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[y0:y1, x0:x1] = 255 * found
    return mask


def grabcut_quality(image: NDArray[np.uint8], mask: NDArray[np.uint8], box: Box) -> float:
    """How far a mask found in a box can be trusted, in [0, 1]: fit times contrast.

    Fit is the IoU of the mask's tight box with the given one. Contrast is the Hellinger distance, ``sqrt(1 - sum
    sqrt(p q))`` (Bhattacharyya 1943), of the colour histograms inside the mask and around it, within the box and
    its margin.

    Args:
        image: uint8 ``[H, W, 3]``, RGB.
        mask: uint8 ``[H, W]``.
        box: in px.
    """
    tight = tight_box(mask)
    if tight is None:
        return 0.0
    left, top, right, bottom = _rounded(box, *image.shape[:2])
    x0, y0 = min(left, tight[0]), min(top, tight[1])
    x1, y1 = max(right, tight[0] + tight[2]), max(bottom, tight[1] + tight[3])
    shared_x = min(right, tight[0] + tight[2]) - max(left, tight[0])
    shared_y = min(bottom, tight[1] + tight[3]) - max(top, tight[1])
    shared = max(shared_x, 0) * max(shared_y, 0)
    fit = shared / ((right - left) * (bottom - top) + tight[2] * tight[3] - shared)
    margin = max(_LEAST_MARGIN, round(_MARGIN * max(x1 - x0, y1 - y0)))
    window = np.s_[max(y0 - margin, 0) : y1 + margin, max(x0 - margin, 0) : x1 + margin]
    inside = mask[window] > 0
    if inside.all():
        return 0.0
    bins = (image[window] // (256 // _BINS)).astype(np.int64) @ np.array([_BINS**2, _BINS, 1])
    own, around = (np.bincount(bins[part], minlength=_BINS**3) / part.sum() for part in (inside, ~inside))
    return float(fit * math.sqrt(max(0.0, 1 - np.sqrt(own * around).sum())))


def _tidied(found: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Without specks, and with small holes filled."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(found, connectivity=8)
    if count == 1:
        return found
    areas = stats[1:, cv2.CC_STAT_AREA]
    kept = np.flatnonzero(areas >= _LEAST_PART * areas.max()) + 1
    tidy = np.isin(parts, kept).astype(np.uint8)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(1 - tidy, connectivity=4)
    small = np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] <= _LARGEST_HOLE * tidy.sum()) + 1
    tidy[np.isin(parts, small)] = 1
    return tidy


def _rounded(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in whole px within the image, at least one px."""
    left = min(max(math.floor(box[0]), 0), width - 1)
    top = min(max(math.floor(box[1]), 0), height - 1)
    right = min(max(math.ceil(box[0] + box[2]), left + 1), width)
    bottom = min(max(math.ceil(box[1] + box[3]), top + 1), height)
    return left, top, right, bottom


def _checked(mask: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A mask of the user's as alpha."""
    array = np.asarray(mask.detach().cpu() if hasattr(mask, "detach") else mask)  # a tensor, of any device
    if array.shape != shape[:2] or array.dtype not in (bool, np.uint8):
        raise RejectedObject("the function gave no mask of the image's size, bool or uint8")
    alpha = array.astype(np.uint8)
    return alpha if alpha.max(initial=0) > 1 else 255 * alpha


_SHAPES = {"ellipse": ellipse_alpha, "box": box_alpha}

"""Masks of objects that are annotated with a box only. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.extract import Box, RejectedObject, box_iou, tight_box
from terse_aug.bank.segmenters.cutter import (
    SOLID,
    as_mask,
    check_healthy,
    checked_alpha,
    cutter_name,
    cutter_record,
    fingerprint_of,
    tidy_alpha,
)
from terse_aug.bank.segmenters.operations import grabcut, remove_specks

BoxMaskMethod = Callable[[NDArray[np.uint8], Box], NDArray[Any]]
"""From an image uint8 ``[H, W, 3]`` RGB and a box to a mask ``[H, W]``: bool, 0 and 1, or alpha 0 to 255.

One with an attribute ``fingerprint``, a text that is another for other masks, is a cutter: builds with it can be
resumed, and uint8 is always alpha 0 to 255.
"""

BOX_MASK_METHODS = ("grabcut", "ellipse", "box")
"""Names of the built-in methods."""

_MARGIN = 0.25
_MIN_MARGIN = 10
_WORKING_SIDE = 256
_GRABCUT_ITERATIONS = 5
_CORE = 0.5
_MIN_SURROUNDINGS = 0.05
_HISTOGRAM_BINS = 8
_SOFT_RIM = 0.15
_MIN_SHRINKAGE = 0.65
"""Of a box's sides: masks that are much smaller are little more than the middle that was marked as object."""
_MIN_WITHIN_BOX = 0.5
_NO_SURROUNDINGS = "box fills the image: GrabCut has no surroundings to learn from"


@dataclass(frozen=True)
class BoxMasks:
    """How masks are made of boxes.

    Attributes:
        method: one of ``BOX_MASK_METHODS``, or a function of image and box, such as a cutter.
        min_quality: in [0, 1]; GrabCut's masks of a lower :func:`grabcut_quality` are not used.
        fallback: used where GrabCut fails, or a function finds nothing in the box, or more beside it: ``"ellipse"``,
            ``"box"``, or ``None`` to reject the object.
        accept_unhealthy: use a cutter that is marked as collapsed.

    Raises:
        ValueError: an unknown method, a number out of range, or a collapsed cutter.
    """

    method: str | BoxMaskMethod
    min_quality: float = 0.35
    fallback: str | None = None
    accept_unhealthy: bool = False

    def __post_init__(self) -> None:
        if not callable(self.method) and self.method not in BOX_MASK_METHODS:
            raise ValueError(
                f"expected one of {', '.join(BOX_MASK_METHODS)}, or a function of image and box, got {self.method!r}"
            )
        if not 0 <= self.min_quality <= 1:
            raise ValueError(f"expected min_quality within 0 to 1, got {self.min_quality}")
        if self.fallback not in (None, "ellipse", "box"):
            raise ValueError(f"expected fallback to be ellipse, box or None, got {self.fallback!r}")
        check_healthy(self.method, self.accept_unhealthy)

    @property
    def name(self) -> str:
        """Name of the method, for a report."""
        if isinstance(self.method, str):
            return self.method
        if self.is_reproducible:
            return cutter_name(self.method)
        return f"function {getattr(self.method, '__name__', type(self.method).__name__)}"

    @property
    def is_reproducible(self) -> bool:
        """Whether :attr:`record` determines the masks, as it does not for functions without a fingerprint."""
        return isinstance(self.method, str) or fingerprint_of(self.method) is not None

    @property
    def record(self) -> dict[str, Any]:
        """These settings in a bank's record of how it was built."""
        if self.method == "grabcut":
            return {"boxes": self.name, "min_quality": self.min_quality, "fallback": self.fallback}
        if isinstance(self.method, str):
            return {"boxes": self.name}
        cutter = cutter_record(self.method) if self.is_reproducible else {}
        return {"boxes": self.name, "fallback": self.fallback} | cutter

    def alpha(self, image: NDArray[np.uint8], box: Box) -> tuple[NDArray[np.uint8], str]:
        """The object's alpha, uint8 ``[H, W]`` 0 to 255, and the name of the method that made it; or it is rejected."""
        _check_box(box, image.shape)
        if isinstance(self.method, str) and self.method != "grabcut":
            return _SHAPES[self.method](image.shape, box), self.method
        try:
            return (self._grabcut_alpha if self.method == "grabcut" else self._function_alpha)(image, box), self.name
        except _FunctionFailed:
            raise
        except RejectedObject:
            if self.fallback is None:
                raise
            return _SHAPES[self.fallback](image.shape, box), self.fallback

    def _grabcut_alpha(self, image: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
        mask = grabcut_mask(image, box)
        if grabcut_quality(image, mask, box) < self.min_quality:
            raise RejectedObject(f"GrabCut's mask is poor: quality below {self.min_quality:g} (min_quality)", mask)
        return mask

    def _function_alpha(self, image: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
        """It may be smaller than the box, but has to be in it."""
        assert callable(self.method)
        try:
            made = self.method(image, box)
        except RejectedObject:
            raise
        except Exception as error:
            raise _FunctionFailed(f"{self.name} failed ({type(error).__name__})") from error
        is_cutter = self.is_reproducible
        try:
            alpha = checked_alpha(made, image.shape) if is_cutter else as_mask(made, image.shape).astype(np.uint8)
        except RejectedObject as reason:
            raise _FunctionFailed(str(reason)) from reason
        alpha = tidy_alpha(alpha) if is_cutter else alpha
        left, top, right, bottom = _pixel_corners(box, image.shape)
        solid = (alpha >= (SOLID if is_cutter else 1)).astype(np.uint8)
        within = np.count_nonzero(solid[top:bottom, left:right])
        if within < _MIN_WITHIN_BOX * np.count_nonzero(solid):
            raise RejectedObject("most of the function's mask lies outside the box", solid)
        if not within:
            raise RejectedObject(f"{self.name} found nothing in the box", solid)
        return alpha if is_cutter or alpha.max() > 1 else 255 * alpha


class _FunctionFailed(RejectedObject):
    """A function of the user's raised an error, or returned no mask: no fallback hides that."""


def ellipse_alpha(shape: tuple[int, ...], box: Box) -> NDArray[np.uint8]:
    """The ellipse in a box (px), opaque with a soft rim: uint8 ``[H, W]`` of an image of shape (H, W, ...)."""
    return _shape_alpha(shape, box, lambda across, down: 1 - np.hypot(across, down))


def box_alpha(shape: tuple[int, ...], box: Box) -> NDArray[np.uint8]:
    """A whole box, opaque with a soft rim; otherwise as :func:`ellipse_alpha`."""
    return _shape_alpha(shape, box, lambda across, down: 1 - np.maximum(np.abs(across), np.abs(down)))


_SHAPES = {"ellipse": ellipse_alpha, "box": box_alpha}


def _shape_alpha(
    shape: tuple[int, ...], box: Box, depth: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
) -> NDArray[np.uint8]:
    """Alpha from the depth below the rim, a function of the position in the box, -1 to 1 across and down."""
    x, y, width, height = box
    left, top, right, bottom = _pixel_corners(box, shape)
    across = (np.arange(left, right)[None] + 0.5 - x - width / 2) / (width / 2)
    down = (np.arange(top, bottom)[:, None] + 0.5 - y - height / 2) / (height / 2)
    alpha = np.zeros(shape[:2], np.uint8)
    alpha[top:bottom, left:right] = np.rint(255 * np.clip(depth(across, down) / _SOFT_RIM, 0, 1))
    return alpha


def grabcut_mask(image: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """What stands out in a box from its surroundings, by GrabCut.

    An ellipse of half the box's sides is marked as object: without it, GrabCut finds nothing in most boxes of a
    cluttered image.

    Args:
        image: uint8 ``[H, W, 3]``, RGB.
        box: in px, partly within the image.

    Returns:
        uint8 ``[H, W]``, 0 and 255: the largest part and those of at least a tenth of it, without small holes.

    Raises:
        RejectedObject: the box leaves no surroundings to learn from, or there are too few pixels.
    """
    left, top, right, bottom = _pixel_corners(box, image.shape)
    margin_x = max(_MIN_MARGIN, round(_MARGIN * (right - left)))
    margin_y = max(_MIN_MARGIN, round(_MARGIN * (bottom - top)))
    x0, y0 = max(left - margin_x, 0), max(top - margin_y, 0)
    crop = image[y0 : bottom + margin_y, x0 : right + margin_x]
    if 1 - (right - left) * (bottom - top) / (crop.shape[0] * crop.shape[1]) < _MIN_SURROUNDINGS:
        raise RejectedObject(_NO_SURROUNDINGS)
    scale = min(1.0, _WORKING_SIDE / max(crop.shape[:2]))
    size = (max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale)))
    small = np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA) if scale < 1 else crop, dtype=np.uint8)
    across, down = size[0] / crop.shape[1], size[1] / crop.shape[0]
    rows = slice(round((top - y0) * down), max(round((bottom - y0) * down), 1))
    columns = slice(round((left - x0) * across), max(round((right - x0) * across), 1))
    try:
        mask = remove_specks(grabcut(small, _initial_labels(small.shape, rows, columns), _GRABCUT_ITERATIONS))
    except cv2.error as error:  # fewer pixels than the components of its mixtures
        raise RejectedObject("GrabCut failed: too few pixels in the box or around it") from error
    if scale < 1:
        mask = (cv2.resize(mask.astype(np.float32), crop.shape[1::-1]) > 0.5).astype(np.uint8)
    whole = np.zeros(image.shape[:2], np.uint8)
    whole[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = 255 * mask
    return whole


def _initial_labels(shape: tuple[int, ...], rows: slice, columns: slice) -> NDArray[np.uint8]:
    """GrabCut's labels: background outside the box, object in the middle, probably object between them."""
    labels = np.full(shape[:2], cv2.GC_BGD, np.uint8)
    window = labels[rows, columns]
    window[:] = cv2.GC_PR_FGD
    down, across = np.ogrid[-1 : 1 : window.shape[0] * 1j, -1 : 1 : window.shape[1] * 1j]
    window[np.hypot(down, across) <= _CORE] = cv2.GC_FGD
    if (labels != cv2.GC_BGD).all():
        raise RejectedObject(_NO_SURROUNDINGS)
    return labels


def grabcut_quality(image: NDArray[np.uint8], mask: NDArray[np.uint8], box: Box) -> float:
    """Quality of a mask that GrabCut found in a box, in [0, 1]: the product of :func:`grabcut_fit_and_contrast`."""
    return math.prod(grabcut_fit_and_contrast(image, mask, box))


def grabcut_fit_and_contrast(image: NDArray[np.uint8], mask: NDArray[np.uint8], box: Box) -> tuple[float, float]:
    """How well a mask, uint8 ``[H, W]``, fits the box (px) of an image, and how it differs from what is around it.

    Fit is the IoU of the mask's tight box with the given one, shrunk about its centre to the same area (to 0.65 of
    its sides at most): boxes may be loose, above all about small objects, but leave similar room on all sides.
    Contrast is the Hellinger distance, ``sqrt(1 - sum sqrt(p q))`` (Bhattacharyya 1943), of the colour histograms
    inside the mask and around it, within the box and its margin. Both are in [0, 1], and 0 for an empty mask.
    """
    tight = tight_box(mask)
    if tight is None:
        return 0.0, 0.0
    left, top, right, bottom = _pixel_corners(box, image.shape)
    fit = box_iou(_shrunk((left, top, right - left, bottom - top), tight[2] * tight[3]), tight)
    x0, y0 = min(left, tight[0]), min(top, tight[1])
    x1, y1 = max(right, tight[0] + tight[2]), max(bottom, tight[1] + tight[3])
    margin = max(_MIN_MARGIN, round(_MARGIN * max(x1 - x0, y1 - y0)))
    window = np.s_[max(y0 - margin, 0) : y1 + margin, max(x0 - margin, 0) : x1 + margin]
    inside = mask[window] > 0
    if inside.all():
        return fit, 0.0
    weights = np.array([_HISTOGRAM_BINS**2, _HISTOGRAM_BINS, 1])
    bins = (image[window] // (256 // _HISTOGRAM_BINS)).astype(np.int64) @ weights
    own, around = (np.bincount(bins[part], minlength=_HISTOGRAM_BINS**3) / part.sum() for part in (inside, ~inside))
    return fit, math.sqrt(max(0.0, 1 - float(np.sqrt(own * around).sum())))


def _shrunk(box: Box, area: float) -> Box:
    """A box shrunk about its centre to an area in px, to 0.65 of its sides at most."""
    x, y, width, height = box
    factor = min(max(math.sqrt(area / (width * height)), _MIN_SHRINKAGE), 1.0)
    return x + width * (1 - factor) / 2, y + height * (1 - factor) / 2, width * factor, height * factor


def _check_box(box: Box, shape: tuple[int, ...]) -> None:
    x, y, width, height = box
    if not all(math.isfinite(value) for value in box):
        raise RejectedObject("box is not finite")
    if width <= 0 or height <= 0:
        raise RejectedObject("box has no area")
    if x >= shape[1] or y >= shape[0] or x + width <= 0 or y + height <= 0:
        raise RejectedObject("box lies outside the image")


def _pixel_corners(box: Box, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in whole px within the image, at least one px."""
    height, width = shape[:2]
    left = min(max(math.floor(box[0]), 0), width - 1)
    top = min(max(math.floor(box[1]), 0), height - 1)
    right = min(max(math.ceil(box[0] + box[2]), left + 1), width)
    bottom = min(max(math.ceil(box[1] + box[3]), top + 1), height)
    return left, top, right, bottom

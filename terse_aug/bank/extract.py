"""Extracts one object from its image. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.inputs.deep_images import Levels, check_levels
from terse_aug.structures.foreground import MAX_SIDE, Foreground

Box = tuple[float, float, float, float]
"""x, y, width, height in px of the image."""

FAINT_ALPHA = 0.03
"""Alpha, 0 to 1, below which a pixel is invisible."""

_MAX_SIDE_HELP = "foregrounds whose longer side exceeds it, in px, are scaled down to it; 0 keeps the size"


class RejectedObject(Exception):
    """An object that is left out; the message is the reason, the same for all objects of its kind.

    Attributes:
        mask: uint8 ``[H, W]``, 0 outside the object, if one was made for it; to be drawn.
    """

    def __init__(self, reason: str, mask: NDArray[np.uint8] | None = None):
        super().__init__(reason)
        self.mask = mask


@dataclass(frozen=True)
class ExtractionRules:
    """Which objects are kept, and how large.

    Attributes:
        min_area: smallest number of visible px (alpha above 0); smaller objects are rejected.
        min_side: smallest height and width of the tight box in px; smaller objects are rejected.
        max_side: foregrounds whose longer side exceeds it, in px, are scaled down to it; their relative size does not
            change. ``None`` keeps the size.
        min_box_agreement: smallest IoU of an annotated mask's tight box with the annotated box, where there is one;
            objects below it are rejected. A mask that was made of the box may be much smaller.
        drop_truncated: reject objects that touch the border of their image and so are probably truncated by it.
        black_16bit: value of 16-bit images that is black.
        white_16bit: value of 16-bit images that is white: 4095 for 12 bits, 16383 for 14.

    Raises:
        ValueError: a number is out of range.
    """

    min_area: int = 100
    min_side: int = 8
    max_side: int | None = field(default=512, metadata={"help": _MAX_SIDE_HELP})
    min_box_agreement: float = 0.5
    drop_truncated: bool = False
    black_16bit: int = 0
    white_16bit: int = 65535

    def __post_init__(self) -> None:
        if self.min_area < 1 or self.min_side < 1:
            raise ValueError(
                f"expected min_area and min_side of at least 1 px, got {self.min_area} and {self.min_side}"
            )
        if self.max_side is not None and self.max_side < max(self.min_side, 2):
            raise ValueError(f"expected max_side of at least min_side and 2 px, got {self.max_side}")
        if self.max_side is not None and self.max_side > MAX_SIDE:
            raise ValueError(f"expected max_side of at most {MAX_SIDE} px, got {self.max_side}")
        if not 0 <= self.min_box_agreement <= 1:
            raise ValueError(f"expected min_box_agreement within 0 to 1, got {self.min_box_agreement}")
        check_levels(*self.levels)

    @property
    def levels(self) -> Levels:
        """Black and white of 16-bit images."""
        return Levels(self.black_16bit, self.white_16bit)


DEFAULT_RULES = ExtractionRules()


@dataclass(frozen=True)
class Annotation:
    """What is known of an object beside its pixels.

    Attributes:
        label: category id.
        source: where the object is found: file name and object.
        box: annotated box that the mask has to agree with, or ``None``.
        keypoints: float32 ``[k, 3]`` in px of the image, or ``None``.
    """

    label: int
    source: str
    box: Box | None = None
    keypoints: NDArray[np.float32] | None = None


def extract_from_image(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    annotation: Annotation,
    rules: ExtractionRules,
    soft: bool = False,
) -> Foreground:
    """Extract the object under a mask from its image. Its edge is soft where it was scaled down.

    Args:
        image: uint8 ``[H, W, 3]``, RGB.
        mask: uint8 ``[H, W]``, 0 outside the object.
        annotation: the object.
        rules: what is kept.
        soft: use the mask's values as alpha; else alpha is 0 or 255.

    Raises:
        RejectedObject: the rules exclude it.
    """
    tight = tight_box(mask)
    if tight is None:
        raise RejectedObject("mask is empty")
    _check_box_agreement(tight, annotation.box, mask.shape, rules.min_box_agreement)
    left, top, width, height = tight
    if rules.drop_truncated and (
        left == 0 or top == 0 or left + width == mask.shape[1] or top + height == mask.shape[0]
    ):
        raise RejectedObject("touches the border of its image (drop_truncated)")
    window = np.s_[top : top + height, left : left + width]
    alpha = mask[window] if soft else np.where(mask[window] > 0, np.uint8(255), np.uint8(0))
    rgba = np.dstack([image[window], alpha])
    relative_size = max(width, height) / math.sqrt(mask.shape[0] * mask.shape[1])
    keypoints = None if annotation.keypoints is None else _shift(annotation.keypoints, -left, -top)
    center = ((left + width / 2) / mask.shape[1], (top + height / 2) / mask.shape[0])
    foreground = Foreground(rgba, annotation.label, annotation.source, relative_size, keypoints, center)
    return finish_foreground(foreground, rules)


def finish_foreground(foreground: Foreground, rules: ExtractionRules) -> Foreground:
    """Check the size of a foreground, scale it down if it is too large, and replace the background's colour.

    Raises:
        RejectedObject: it is too small, or larger than a bank stores.
    """
    height, width = foreground.rgba.shape[:2]
    if np.count_nonzero(foreground.rgba[..., 3]) < rules.min_area:
        raise RejectedObject(f"fewer than {rules.min_area} px visible (min_area)")
    if min(height, width) < rules.min_side:
        raise RejectedObject(f"a side shorter than {rules.min_side} px (min_side)")
    if rules.max_side is not None and max(height, width) > rules.max_side:
        foreground = _downscale(foreground, rules.max_side)
    elif max(height, width) > MAX_SIDE:
        raise RejectedObject(f"a side longer than {MAX_SIDE} px (give max_side)")
    return replace(foreground, rgba=spread_object_color(foreground.rgba))


def spread_object_color(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give pixels with alpha below 128 the colour of the nearest pixel above it, if there is one.

    A soft edge shows some colour from beyond the outline: the old background, or black in an image with transparency.

    Args:
        rgba: uint8 ``[h, w, 4]``.

    Returns:
        uint8 ``[h, w, 4]``, with the alpha and the object's own colours of ``rgba``.
    """
    object_pixels = rgba[..., 3] >= 128
    if object_pixels.all() or not object_pixels.any():
        return rgba
    outside = (~object_pixels).astype(np.uint8)
    _, nearest = cv2.distanceTransformWithLabels(outside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    # Moving four bytes at a time is faster than indexing colours.
    pixels = np.ascontiguousarray(rgba).view(np.uint32)[..., 0]
    pixel_of = np.zeros(int(nearest.max()) + 1, np.uint32)
    pixel_of[nearest[object_pixels]] = pixels[object_pixels]
    spread: NDArray[np.uint8] = pixel_of[nearest][..., None].view(np.uint8)
    spread[..., 3] = rgba[..., 3]
    return spread


def remove_faint_alpha(alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Set invisible alpha to 0, so that JPEG ringing and traces of background removers do not enlarge a crop."""
    return np.where(alpha < 255 * FAINT_ALPHA, np.uint8(0), alpha)


def tight_box(mask: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
    """Left, top, width, height in px of the pixels above 0; ``None`` if there is none."""
    left, top, width, height = cv2.boundingRect(mask)
    return (left, top, width, height) if width and height else None


def box_iou(first: Box, second: Box) -> float:
    """IoU of two boxes; NaN if a coordinate is."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    overlap = max(width, 0.0) * max(height, 0.0)
    return overlap / (first[2] * first[3] + second[2] * second[3] - overlap)


def _check_box_agreement(
    tight: tuple[int, int, int, int], box: Box | None, shape: tuple[int, ...], min_iou: float
) -> None:
    if box is None:
        return
    # Annotated boxes may reach beyond the image, masks cannot.
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    right, bottom = min(box[0] + box[2], shape[1]), min(box[1] + box[3], shape[0])
    inside = (left, top, max(right - left, 0.0), max(bottom - top, 0.0))
    if not box_iou(inside, tight) >= min_iou:  # a box of NaN agrees with nothing
        raise RejectedObject(f"mask and box disagree: IoU below {min_iou:g} (min_box_agreement)")


def _downscale(foreground: Foreground, max_side: int) -> Foreground:
    height, width = foreground.rgba.shape[:2]
    scale = max_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    rgba = _resize(foreground.rgba, size)
    # A thin tip may round to alpha 0, and the crop must stay tight.
    tight = tight_box(np.ascontiguousarray(rgba[..., 3]))
    if tight is None:
        raise RejectedObject(f"nothing visible is left at {max_side} px (max_side)")
    left, top = tight[:2]
    rgba = np.ascontiguousarray(rgba[top : top + tight[3], left : left + tight[2]])
    keypoints = foreground.keypoints
    if keypoints is not None:
        factors = np.array([size[0] / width, size[1] / height, 1.0], dtype=np.float32)
        keypoints = _shift(keypoints * factors, -left, -top)
    return replace(foreground, rgba=rgba, keypoints=keypoints)


def _resize(rgba: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize by area averaging; colour is weighted by alpha, so that colours outside the object do not bleed in."""
    pixels = rgba.astype(np.float32)
    alpha = cv2.resize(pixels[..., 3], size, interpolation=cv2.INTER_AREA)[..., None]
    weighted = cv2.resize(pixels[..., :3] * pixels[..., 3:], size, interpolation=cv2.INTER_AREA)
    unweighted = cv2.resize(pixels[..., :3], size, interpolation=cv2.INTER_AREA)
    color = np.where(alpha > 0, weighted / np.maximum(alpha, 1e-6), unweighted)
    resized: NDArray[np.uint8] = np.rint(np.concatenate([color, alpha], axis=2)).clip(0, 255).astype(np.uint8)
    return resized


def _shift(keypoints: NDArray[np.float32], right: int, down: int) -> NDArray[np.float32]:
    """Keypoints shifted by whole px; unlabelled ones (visibility 0) stay at the origin, as in COCO."""
    shifted = keypoints.astype(np.float32)
    shifted[:, :2] += np.array([right, down], dtype=np.float32)
    shifted[shifted[:, 2] == 0] = 0
    return shifted

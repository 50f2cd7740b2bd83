"""Cuts one object out of its image. Pure functions; imports numpy and opencv only."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.structures.foreground import MAX_SIDE, Foreground


class RejectedObject(Exception):
    """An object that is left out; the message is the reason, the same for all objects of its kind."""


@dataclass(frozen=True)
class ExtractionRules:
    """Which objects are worth keeping, and how large.

    Attributes:
        min_area: smallest number of visible px (alpha above 0).
        min_side: smallest height and width of the tight box in px.
        max_side: cut-outs whose larger side exceeds it, in px, are scaled down to it; ``None`` keeps all as
            they are. The natural size (``relative_size``) stays that of the original.
        min_box_agreement: smallest IoU of the mask's tight box with the annotated box, where there is one;
            below it the annotation contradicts itself.
        drop_truncated: leave out objects that touch the border of their image, and so are probably cut off
            by it.

    Raises:
        ValueError: a number is out of range.
    """

    min_area: int = 100
    min_side: int = 8
    max_side: int | None = 512
    min_box_agreement: float = 0.5
    drop_truncated: bool = False

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


@dataclass(frozen=True)
class Annotation:
    """What is known of an object beside its pixels.

    Attributes:
        label: category id.
        source: where it is found, for a person.
        box: annotated box: x, y, width, height in px of the image; ``None`` if there is none.
        keypoints: float32 ``[k, 3]`` in px of the image, or ``None``.
    """

    label: int
    source: str
    box: tuple[float, float, float, float] | None = None
    keypoints: NDArray[np.float32] | None = None


def extract_from_image(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    annotation: Annotation,
    rules: ExtractionRules,
    soft: bool = False,
) -> Foreground:
    """Cut the object under ``mask`` out of ``image``.

    Args:
        image: uint8 ``[H, W, 3]``, RGB.
        mask: uint8 ``[H, W]``, 0 outside the object.
        annotation: the object.
        rules: what is kept.
        soft: take the mask's values for alpha; else alpha is 0 or 255.

    Returns:
        The cut-out; its edge is softened where it is scaled down.

    Raises:
        Unusable: the rules leave it out.
    """
    tight = tight_box(mask)
    if tight is None:
        raise RejectedObject("mask is empty")
    check_box_agreement(tight, annotation.box, mask.shape, rules.min_box_agreement)
    left, top, width, height = tight
    if rules.drop_truncated and (
        left == 0 or top == 0 or left + width == mask.shape[1] or top + height == mask.shape[0]
    ):
        raise RejectedObject("touches the border of its image (drop_truncated)")
    window = np.s_[top : top + height, left : left + width]
    alpha = mask[window] if soft else np.where(mask[window] > 0, np.uint8(255), np.uint8(0))
    rgba = np.dstack([image[window], alpha])
    relative_size = max(width, height) / math.sqrt(mask.shape[0] * mask.shape[1])
    keypoints = None if annotation.keypoints is None else _moved(annotation.keypoints, -left, -top)
    center = ((left + width / 2) / mask.shape[1], (top + height / 2) / mask.shape[0])
    return finish(Foreground(rgba, annotation.label, annotation.source, relative_size, keypoints, center), rules)


def finish(foreground: Foreground, rules: ExtractionRules) -> Foreground:
    """Drop a cut-out that is too small, scale down one that is too large, and clear its surroundings.

    Raises:
        Unusable: it is too small, or larger than a bank holds.
    """
    height, width = foreground.rgba.shape[:2]
    if np.count_nonzero(foreground.rgba[..., 3]) < rules.min_area:
        raise RejectedObject(f"fewer than {rules.min_area} px visible (min_area)")
    if min(height, width) < rules.min_side:
        raise RejectedObject(f"a side shorter than {rules.min_side} px (min_side)")
    if rules.max_side is not None and max(height, width) > rules.max_side:
        foreground = _scaled_down(foreground, rules.max_side)
    elif max(height, width) > MAX_SIDE:
        raise RejectedObject(f"a side longer than {MAX_SIDE} px (give max_side)")
    return replace(foreground, rgba=with_spread_color(foreground.rgba))


def with_spread_color(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give pixels that are less than half opaque the colour of the nearest one that is more.

    A soft edge shows a little of what lies beyond the outline. That would be the old background, or the black
    that a drawing program leaves where nothing is drawn.

    Args:
        rgba: uint8 ``[h, w, 4]``; a cut-out without any pixel of alpha 128 or more comes back as it is.

    Returns:
        uint8 ``[h, w, 4]``, alpha and the colour of the object untouched.
    """
    object_pixels = rgba[..., 3] >= 128
    if object_pixels.all() or not object_pixels.any():
        return rgba
    outside = (~object_pixels).astype(np.uint8)
    _, nearest = cv2.distanceTransformWithLabels(outside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    # Four bytes are moved at a time, which is faster than colours by themselves.
    pixels = np.ascontiguousarray(rgba).view(np.uint32)[..., 0]
    pixel_of = np.zeros(int(nearest.max()) + 1, np.uint32)
    pixel_of[nearest[object_pixels]] = pixels[object_pixels]
    spread: NDArray[np.uint8] = pixel_of[nearest][..., None].view(np.uint8)
    spread[..., 3] = rgba[..., 3]
    return spread


UNSEEN = 0.03
"""Alpha, 0 to 1, below which nothing is seen."""


def what_is_seen(alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Alpha that is 0 where nothing is seen: ringing of JPEG and traces of background removers enlarge no crop."""
    return np.where(alpha < 255 * UNSEEN, np.uint8(0), alpha)


def tight_box(mask: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
    """Left, top, width, height in px of the pixels above 0; ``None`` if there is none."""
    left, top, width, height = cv2.boundingRect(mask)
    return (left, top, width, height) if width and height else None


def check_box_agreement(
    tight: tuple[int, int, int, int],
    box: tuple[float, float, float, float] | None,
    shape: tuple[int, ...],
    least: float,
) -> None:
    """Raise ``RejectedObject`` where the IoU of a mask's tight box and the annotated box is below ``least``."""
    if box is None:
        return
    # Annotated boxes may stick out of the image, masks cannot.
    right, bottom = min(box[0] + box[2], shape[1]), min(box[1] + box[3], shape[0])
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    overlap_width = min(right, tight[0] + tight[2]) - max(left, tight[0])
    overlap_height = min(bottom, tight[1] + tight[3]) - max(top, tight[1])
    overlap = max(overlap_width, 0.0) * max(overlap_height, 0.0)
    union = max(right - left, 0.0) * max(bottom - top, 0.0) + tight[2] * tight[3] - overlap
    if not overlap / union >= least:  # a box of NaN agrees with nothing
        raise RejectedObject(f"mask and box disagree: IoU below {least:g} (min_box_agreement)")


def _scaled_down(foreground: Foreground, max_side: int) -> Foreground:
    height, width = foreground.rgba.shape[:2]
    scale = max_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    rgba = _resized(foreground.rgba, size)
    # A thin tip may round to alpha 0, and the crop must stay tight.
    tight = tight_box(np.ascontiguousarray(rgba[..., 3]))
    if tight is None:
        raise RejectedObject(f"nothing visible is left at {max_side} px (max_side)")
    left, top = tight[:2]
    rgba = np.ascontiguousarray(rgba[top : top + tight[3], left : left + tight[2]])
    keypoints = foreground.keypoints
    if keypoints is not None:
        factors = np.array([size[0] / width, size[1] / height, 1.0], dtype=np.float32)
        keypoints = _moved(keypoints * factors, -left, -top)
    return replace(foreground, rgba=rgba, keypoints=keypoints)


def _resized(rgba: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Area-averaged; colour is weighted by alpha, so that what lies outside the object does not bleed in."""
    pixels = rgba.astype(np.float32)
    alpha = cv2.resize(pixels[..., 3], size, interpolation=cv2.INTER_AREA)[..., None]
    weighted = cv2.resize(pixels[..., :3] * pixels[..., 3:], size, interpolation=cv2.INTER_AREA)
    plain = cv2.resize(pixels[..., :3], size, interpolation=cv2.INTER_AREA)
    colour = np.where(alpha > 0, weighted / np.maximum(alpha, 1e-6), plain)
    resized: NDArray[np.uint8] = np.rint(np.concatenate([colour, alpha], axis=2)).clip(0, 255).astype(np.uint8)
    return resized


def _moved(keypoints: NDArray[np.float32], right: int, down: int) -> NDArray[np.float32]:
    """Keypoints shifted by whole px; unlabelled ones (visibility 0) stay at the origin, as COCO has them."""
    moved = keypoints.astype(np.float32)
    moved[:, :2] += np.array([right, down], dtype=np.float32)
    moved[moved[:, 2] == 0] = 0
    return moved

"""Image operations that several segmenters use. Pure functions."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.extract import FAINT_ALPHA

_COLOR_BLUR = 1.0
_EDGE_BLUR = 0.8
_HALO_WIDTH = 0.006
_MIN_PART_AREA = 0.1
_MAX_HOLE_AREA = 0.02


def disc(radius: int) -> NDArray[np.uint8]:
    """A disc as a structuring element, uint8 ``[2 radius + 1, 2 radius + 1]``."""
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(element, dtype=np.uint8)


def blurred_lab(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """CIE L*a*b* (1976) of an RGB image, L* 0 to 100, slightly blurred against noise: float32 ``[H, W, 3]``."""
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return np.asarray(cv2.GaussianBlur(lab, (0, 0), _COLOR_BLUR), dtype=np.float32)


def grabcut(image: NDArray[np.uint8], labels: NDArray[np.uint8], iterations: int) -> NDArray[np.uint8]:
    """GrabCut (Rother, Kolmogorov and Blake, SIGGRAPH 2004), deterministic: uint8 ``[H, W]``, 1 for foreground.

    Args:
        image: uint8 ``[H, W, 3]``, RGB.
        labels: uint8 ``[H, W]``, OpenCV's ``GC_BGD``, ``GC_FGD``, ``GC_PR_BGD`` and ``GC_PR_FGD``; changed in place.
        iterations: of the algorithm.

    Raises:
        cv2.error: there are fewer pixels than components of its mixtures.
    """
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(image), labels, (0, 0, 0, 0), *models, iterations, cv2.GC_INIT_WITH_MASK)
    foreground: NDArray[np.uint8] = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    return foreground


def remove_halo(mask: NDArray[np.uint8], distance: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Move the edge of a mask, uint8 ``[H, W]``, to where the colour is half-way between background and object.

    ``distance`` is that of the colour from the background's, float32 ``[H, W]``; masks begin where the colour changes.
    """
    reach = disc(max(3, round(_HALO_WIDTH * max(mask.shape))))
    near_edge = cv2.erode(mask, reach) < mask
    half_way = 0.5 * cv2.dilate(distance, reach)
    return np.where(near_edge & (distance < half_way), np.uint8(0), mask)


def remove_specks(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A mask, uint8 ``[H, W]``, 0 and 1, without parts below a tenth of the largest, and with small holes filled."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count == 1:
        return mask
    areas = stats[1:, cv2.CC_STAT_AREA]
    kept = np.flatnonzero(areas >= _MIN_PART_AREA * areas.max()) + 1
    tidy = np.isin(parts, kept).astype(np.uint8)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(1 - tidy, connectivity=4)
    small = np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] <= _MAX_HOLE_AREA * tidy.sum()) + 1
    tidy[np.isin(parts, small)] = 1
    return tidy


def connected_parts(mask: NDArray[np.uint8]) -> list[tuple[int, NDArray[np.bool_]]]:
    """Area in px and mask, bool ``[H, W]``, of the connected parts of a mask, from left to right."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    numbers = sorted(range(1, count), key=lambda part: (stats[part, cv2.CC_STAT_LEFT], stats[part, cv2.CC_STAT_TOP]))
    return [(int(stats[number, cv2.CC_STAT_AREA]), parts == number) for number in numbers]


def soft_alpha(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Alpha of a mask, soft at the edge, at another size (width, height): uint8, 0 to 255."""
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), _EDGE_BLUR)
    if soft.shape[1::-1] != size:
        soft = cv2.resize(soft, size, interpolation=cv2.INTER_LINEAR)
    soft = np.where(soft < FAINT_ALPHA, 0, soft)  # before rounding, unlike remove_faint_alpha
    alpha: NDArray[np.uint8] = np.rint(255 * soft.clip(0, 1)).astype(np.uint8)
    return alpha

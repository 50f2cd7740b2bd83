"""Masks of objects photographed in front of a plain background. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.extract import RejectedObject
from terse_aug.bank.segmenters.operations import blurred_lab, connected_parts, disc, grabcut, remove_halo, soft_alpha

_WORKING_SIDE = 768
_BORDER_WIDTH = 0.03
_MAX_SAMPLES = 20_000
_FIRST_DISTANCE = 25.0
_FITS = 4
_MIN_BACKGROUND = 0.6
_MIN_DISTANCE, _MAX_DISTANCE = 5.0, 25.0
_DISTANCE_PER_SPREAD = 4.0
_CLOSED_GAP = 0.008
_HOLE_DISTANCE = 0.6
_MIN_HOLE_AREA = 0.002
_MIN_PART_AREA = 0.05
_REFINED_BAND = 0.02
_GRABCUT_ITERATIONS = 3
_LOWER_THRESHOLD = 0.5
_NOTHING = "nothing stands out from the background"
_POOR = "mask is poor: quality below {:g} (min_quality), since parts of the object have the background's colour"


@dataclass(frozen=True)
class PlainBackground:
    """How objects are separated from a plain background.

    Attributes:
        max_spread: images whose background colour at the border deviates more from a smooth fit (standard deviation in
            L*a*b*, where about 2 is just visible) are rejected.
        refine: refine outlines by GrabCut.
        split: parts that do not touch are separate objects; else they are one object, without specks.
        min_quality: in [0, 1]; images are rejected whose mask depends more on the least difference of colours that
            counts as object, as those of white objects on white, of which only scraps differ from the background.

    Raises:
        ValueError: ``max_spread`` is not above 0, or ``min_quality`` is not within 0 to 1.
    """

    max_spread: float = 5.0
    refine: bool = False
    split: bool = False
    min_quality: float = 0.7

    def __post_init__(self) -> None:
        if not self.max_spread > 0:
            raise ValueError(f"expected max_spread above 0, got {self.max_spread}")
        if not 0 <= self.min_quality <= 1:
            raise ValueError(f"expected min_quality within 0 to 1, got {self.min_quality}")

    def alphas(self, image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """The objects of an image, from left to right, as alpha: uint8 ``[H, W]`` each, 0 to 255, soft at the edge.

        The background's colour is a quadratic function of the position, fitted to the border without outliers.
        Background is what has that colour and is connected to the border through gaps of at least a hundredth of the
        image, and holes in an object that clearly have that colour. A shadow has another colour than the
        background, and is part of its object.

        Args:
            image: uint8 ``[H, W, 3]``, RGB.

        Raises:
            RejectedObject: the background is not plain, nothing stands out from it, or the mask is poor.
        """
        height, width = image.shape[:2]
        small = _working_size(image)
        distance, spread = background_distance(small)
        if spread > self.max_spread:
            raise RejectedObject(
                f"background is not plain: spread of its colour above {self.max_spread:g} (max_spread)"
            )
        mask = _foreground_mask(distance, spread)
        if mask_stability(distance, spread) < self.min_quality:
            poor = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
            raise RejectedObject(_POOR.format(self.min_quality), np.asarray(poor, np.uint8))
        if self.refine:
            mask = _refine(small, mask)
        masks = _without_specks(mask)
        if not self.split:
            masks = [np.logical_or.reduce(masks)]
        return [soft_alpha(part, (width, height)) for part in masks]

    def alphas_of_mask(self, image: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """The objects of a given mask, refined and split as the settings say; else the mask as it is.

        Args:
            image: uint8 ``[H, W, 3]``, RGB.
            alpha: uint8 ``[H, W]``, 0 to 255.

        Returns:
            As :meth:`alphas`.

        Raises:
            RejectedObject: nothing is left of the mask.
        """
        if self.refine:
            small = _working_size(image)
            masks = _without_specks(_refine(small, _solid(cv2.resize(alpha, small.shape[1::-1]))))
            alpha = soft_alpha(np.logical_or.reduce(masks), image.shape[1::-1])
        if not self.split:
            return [alpha]
        solid = _solid(alpha)
        # Soft edges of two objects may touch: what is not solid belongs to the nearest part.
        _, nearest = cv2.distanceTransformWithLabels(1 - solid, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP)
        return [np.where(nearest == nearest[part][0], alpha, np.uint8(0)) for part in _without_specks(solid)]


def _solid(alpha: Any) -> NDArray[np.uint8]:
    return np.asarray(alpha > 127, np.uint8)


def _working_size(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image scaled down to the side that it is segmented at, 8 px at least."""
    height, width = image.shape[:2]
    scale = min(1.0, _WORKING_SIDE / max(height, width))
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    return image if size == (width, height) else np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def _without_specks(mask: NDArray[np.uint8]) -> list[NDArray[np.bool_]]:
    """The connected parts of a mask, from left to right, of at least a twentieth of the largest."""
    parts = connected_parts(mask)
    if not parts:
        raise RejectedObject(_NOTHING)
    largest = max(area for area, _ in parts)
    return [part for area, part in parts if area >= _MIN_PART_AREA * largest]


def background_distance(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    """Distance of every pixel's colour from the background's at its position, and the background's spread, in L*a*b*.

    Args:
        image: uint8 ``[H, W, 3]``, RGB.

    Returns:
        float32 ``[H, W]``; and the root mean square of the border's distances.

    Raises:
        RejectedObject: most of the border does not have one colour.
    """
    lab = blurred_lab(image)
    height, width = lab.shape[:2]
    strip = max(2, round(_BORDER_WIDTH * min(height, width)))
    border = np.ones((height, width), bool)
    border[strip:-strip, strip:-strip] = False
    rows, columns = np.nonzero(border)
    every = max(1, len(rows) // _MAX_SAMPLES)
    terms, colors = _quadratic_terms(rows[::every] / height, columns[::every] / width), lab[border][::every]
    inliers = np.linalg.norm(colors - np.median(colors, 0), axis=1) < _FIRST_DISTANCE
    for _ in range(_FITS):
        if inliers.mean() < _MIN_BACKGROUND:
            raise RejectedObject("background is not plain: its colour at the border varies")
        weights = np.linalg.lstsq(terms[inliers], colors[inliers], rcond=None)[0]
        residual = np.linalg.norm(colors - terms @ weights, axis=1)
        spread = float(np.sqrt(np.mean(residual[inliers] ** 2)))
        inliers = residual < min(max(_DISTANCE_PER_SPREAD * spread, _MIN_DISTANCE), _FIRST_DISTANCE)
    down, across = np.indices((height, width))
    background = _quadratic_terms(down / height, across / width) @ weights
    distance: NDArray[np.float32] = np.linalg.norm(lab - background, axis=2).astype(np.float32)
    return distance, spread


def _quadratic_terms(down: NDArray[np.float64], across: NDArray[np.float64]) -> NDArray[np.float64]:
    """Terms of a quadratic function of the position, last axis."""
    return np.stack([np.ones_like(down), down, across, down * down, down * across, across * across], -1)


def _foreground_mask(distance: NDArray[np.float32], spread: float) -> NDArray[np.uint8]:
    """0 and 1: what is not background; rejects an image that is all background."""
    threshold = _threshold(spread)
    like_background = (distance < threshold).astype(np.uint8)
    mask = 1 - _connected_to_border(like_background)
    if not mask.any():
        raise RejectedObject(_NOTHING)
    count, holes, stats, _ = cv2.connectedComponentsWithStats(like_background & mask, connectivity=4)
    for number in range(1, count):
        hole = holes == number
        if stats[number, cv2.CC_STAT_AREA] >= _MIN_HOLE_AREA * mask.sum() and (
            float(distance[hole].mean()) < _HOLE_DISTANCE * threshold
        ):
            mask[hole] = 0
    return _tidy(mask, distance)


def mask_stability(distance: NDArray[np.float32], spread: float) -> float:
    """How little the mask depends on the least distance of colours that counts as object, in [0, 1].

    It is the IoU of the masks at that distance and at half of it, without holes. Where an object has nearly the
    colour of the background, the second is much larger.

    Args:
        distance: float32 ``[H, W]``, from :func:`background_distance`.
        spread: likewise.
    """
    first, second = (
        _tidy(1 - _connected_to_border((distance < factor * _threshold(spread)).astype(np.uint8)), distance) > 0
        for factor in (1.0, _LOWER_THRESHOLD)
    )
    return float((first & second).sum() / max((first | second).sum(), 1))


def _threshold(spread: float) -> float:
    return min(max(_DISTANCE_PER_SPREAD * spread, _MIN_DISTANCE), _MAX_DISTANCE)


def _tidy(mask: NDArray[np.uint8], distance: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Without a halo and specks."""
    return np.asarray(cv2.morphologyEx(remove_halo(mask, distance), cv2.MORPH_OPEN, disc(1)), dtype=np.uint8)


def _connected_to_border(like_background: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What is connected to the border by a path of a disc's width, so that a gap in an outline does not leak."""
    radius = max(1, round(_CLOSED_GAP * max(like_background.shape) / 2))
    padded = np.pad(like_background, 2 * radius + 1, constant_values=1)
    passable = cv2.erode(padded, disc(radius))
    _, parts = cv2.connectedComponents(passable, connectivity=4)
    flooded = (parts == parts[0, 0]).astype(np.uint8)
    reached = np.asarray(cv2.dilate(flooded, disc(radius + 1)), dtype=np.uint8) & padded
    inner = slice(2 * radius + 1, -2 * radius - 1)
    return np.ascontiguousarray(reached[inner, inner])


def _refine(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mask after GrabCut in a band about its outline."""
    band = disc(max(2, round(_REFINED_BAND * max(mask.shape) / 2)))
    labels = np.where(mask > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[cv2.erode(mask, band) > 0] = cv2.GC_FGD
    labels[cv2.dilate(mask, band) == 0] = cv2.GC_BGD
    try:
        return grabcut(image, labels, _GRABCUT_ITERATIONS)
    except cv2.error:  # too few pixels for the components of its mixtures
        return mask

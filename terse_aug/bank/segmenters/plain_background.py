"""Objects photographed before a plain ground. Pure functions; imports numpy and opencv only."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.extract import UNSEEN, RejectedObject

_LARGEST_SIDE = 768
_BORDER = 0.03
_BLUR = 1.0
_FIRST_GUESS = 25.0
_FITS = 4
_LEAST_GROUND = 0.6
_LEAST_DISTANCE = 5.0
_LARGEST_DISTANCE = 25.0
_SPREADS = 4.0
_GAP = 0.008
_CLEARLY = 0.6
_LEAST_HOLE = 0.002
_LEAST_PART = 0.05
_HALO = 0.006
_BAND = 0.02
_ITERATIONS = 3
_SOFTNESS = 0.8


@dataclass(frozen=True)
class PlainBackground:
    """How objects are told from a plain ground.

    Attributes:
        max_spread: standard deviation of the ground's colour at the border about its smooth course, as a distance in
            L*a*b* (about 2 can just be seen); pictures with more are left out.
        refine: whether the outline is refined by GrabCut, in a band about it.
        split: whether parts that do not touch are objects of their own; else they are one, without specks.

    Raises:
        ValueError: ``max_spread`` is not above 0.
    """

    max_spread: float = 5.0
    refine: bool = False
    split: bool = False

    def __post_init__(self) -> None:
        if not self.max_spread > 0:
            raise ValueError(f"expected max_spread above 0, got {self.max_spread}")

    def alphas(self, image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """The objects of a picture, from left to right.

        The ground's colour is a quadratic function of the place, fitted to the border without what stands out there.
        Ground is what has that colour and hangs together with the border, through gaps no narrower than a hundredth
        of the picture; and within an object, holes of clearly that colour. A shadow has another colour than the
        ground, and is taken for a part of its object.

        Args:
            image: uint8 ``[H, W, 3]``, RGB.

        Returns:
            uint8 ``[H, W]`` each, alpha 0 to 255, soft at the edge.

        Raises:
            Unusable: the ground is not plain, or nothing stands out from it.
        """
        height, width = image.shape[:2]
        scale = min(1.0, _LARGEST_SIDE / max(height, width))
        size = (max(8, round(width * scale)), max(8, round(height * scale)))
        small = image if size == (width, height) else np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        small = small.astype(np.uint8, copy=False)
        distance, spread = ground_distance(small)
        if spread > self.max_spread:
            raise RejectedObject(f"ground is not plain: spread of its colour above {self.max_spread:g} (max_spread)")
        found = _objects(distance, spread)
        if self.refine:
            found = _refined(small, found)
        parts = _parts(found)
        masks = parts if self.split else [np.maximum.reduce(parts)]
        return [softened(mask, (width, height)) for mask in masks]


def blurred_lab(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """CIE L*a*b* (1976), L* 0 to 100, with a little less noise: float32 ``[H, W, 3]``.

    Args:
        image: uint8 ``[H, W, 3]``, RGB.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return np.asarray(cv2.GaussianBlur(lab, (0, 0), _BLUR), dtype=np.float32)


def ground_distance(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    """How far the colour of each pixel is from the ground's in its place, and the ground's own spread.

    Args:
        image: uint8 ``[H, W, 3]``, RGB.

    Returns:
        float32 ``[H, W]``, distance in L*a*b*; and the root of the mean square of that of the border.

    Raises:
        Unusable: there is no colour that most of the border has.
    """
    lab = blurred_lab(image)
    height, width = lab.shape[:2]
    strip = max(2, round(_BORDER * min(height, width)))
    border = np.ones((height, width), bool)
    border[strip:-strip, strip:-strip] = False
    rows, columns = np.nonzero(border)
    every = max(1, len(rows) // 20_000)
    places, colors = _powers(rows[::every] / height, columns[::every] / width), lab[border][::every]
    kept = np.linalg.norm(colors - np.median(colors, 0), axis=1) < _FIRST_GUESS
    for _ in range(_FITS):
        if kept.mean() < _LEAST_GROUND:
            raise RejectedObject("ground is not plain: its colour at the border varies")
        course = np.linalg.lstsq(places[kept], colors[kept], rcond=None)[0]
        residual = np.linalg.norm(colors - places @ course, axis=1)
        spread = float(np.sqrt(np.mean(residual[kept] ** 2)))
        kept = residual < min(max(_SPREADS * spread, _LEAST_DISTANCE), _FIRST_GUESS)
    ground = _powers(*(grid / side for grid, side in zip(np.indices((height, width)), (height, width), strict=True)))
    distance: NDArray[np.float32] = np.linalg.norm(lab - ground @ course, axis=2).astype(np.float32)
    return distance, spread


def _powers(down: NDArray[np.float64], across: NDArray[np.float64]) -> NDArray[np.float64]:
    """Terms of a quadratic function of the place, last axis."""
    return np.stack([np.ones_like(down), down, across, down * down, down * across, across * across], -1)


def _objects(distance: NDArray[np.float32], spread: float) -> NDArray[np.uint8]:
    """0 and 1: what is not ground.

    Raises:
        Unusable: all is ground.
    """
    least = min(max(_SPREADS * spread, _LEAST_DISTANCE), _LARGEST_DISTANCE)
    like_ground = (distance < least).astype(np.uint8)
    ground = _from_border(like_ground)
    found = 1 - ground
    if not found.any():
        raise RejectedObject("nothing stands out from the ground")
    count, holes, stats, _ = cv2.connectedComponentsWithStats(like_ground & found, connectivity=4)
    for number in range(1, count):
        inside = holes == number
        if stats[number, cv2.CC_STAT_AREA] >= _LEAST_HOLE * found.sum() and (
            float(distance[inside].mean()) < _CLEARLY * least
        ):
            found[inside] = 0
    opened: NDArray[np.uint8] = cv2.morphologyEx(without_halo(found, distance), cv2.MORPH_OPEN, disc(1)).astype(
        np.uint8
    )
    return opened


def without_halo(found: NDArray[np.uint8], distance: NDArray[np.float32]) -> NDArray[np.uint8]:
    """An edge is where the colour is half-way from the ground's to the object's, not where it begins to change.

    Args:
        found: uint8 ``[H, W]``, 0 and 1.
        distance: float32 ``[H, W]``, of the colour from the ground's.
    """
    reach = disc(max(3, round(_HALO * max(found.shape))))
    near_ground = cv2.erode(found, reach) < found
    half_way = 0.5 * cv2.dilate(distance, reach)
    return np.where(near_ground & (distance < half_way), np.uint8(0), found)


def _from_border(like_ground: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What hangs together with the border. A disc has to pass, so that a gap in an outline does not let all out."""
    radius = max(1, round(_GAP * max(like_ground.shape) / 2))
    room = np.pad(like_ground, 2 * radius + 1, constant_values=1)
    passable = cv2.erode(room, disc(radius))
    _, parts = cv2.connectedComponents(passable, connectivity=4)
    flooded = (parts == parts[0, 0]).astype(np.uint8)
    reached = np.asarray(cv2.dilate(flooded, disc(radius + 1)), dtype=np.uint8) & room
    inner = slice(2 * radius + 1, -2 * radius - 1)
    return np.ascontiguousarray(reached[inner, inner])


def _refined(image: NDArray[np.uint8], found: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """By GrabCut (Rother, Kolmogorov and Blake, SIGGRAPH 2004) in a band about the outline."""
    band = disc(max(2, round(_BAND * max(found.shape) / 2)))
    labels = np.where(found > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[cv2.erode(found, band) > 0] = cv2.GC_FGD
    labels[cv2.dilate(found, band) == 0] = cv2.GC_BGD
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(
            np.ascontiguousarray(image),
            labels,
            (0, 0, 0, 0),
            np.zeros((1, 65)),
            np.zeros((1, 65)),
            _ITERATIONS,
            cv2.GC_INIT_WITH_MASK,
        )
    except cv2.error:  # too few pixels for the components of its mixtures
        return found
    refined: NDArray[np.uint8] = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    return refined


def _parts(found: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """What hangs together, without specks, from left to right.

    Raises:
        Unusable: there is nothing.
    """
    count, parts, stats, _ = cv2.connectedComponentsWithStats(found, connectivity=8)
    if count == 1:
        raise RejectedObject("nothing stands out from the ground")
    areas = stats[1:, cv2.CC_STAT_AREA]
    kept = [number + 1 for number in np.flatnonzero(areas >= _LEAST_PART * areas.max())]
    kept.sort(key=lambda number: (int(stats[number, cv2.CC_STAT_LEFT]), int(stats[number, cv2.CC_STAT_TOP])))
    return [(parts == number).astype(np.uint8) for number in kept]


def softened(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Alpha of a mask of 0 and 1, soft at the edge, at another size (width, height)."""
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), _SOFTNESS)
    if soft.shape[1::-1] != size:
        soft = cv2.resize(soft, size, interpolation=cv2.INTER_LINEAR)
    soft = np.where(soft < UNSEEN, 0, soft)  # before rounding, unlike what_is_seen
    alpha: NDArray[np.uint8] = np.rint(255 * soft.clip(0, 1)).astype(np.uint8)
    return alpha


def disc(radius: int) -> NDArray[np.uint8]:
    """A disc as a structuring element, uint8 ``[2 radius + 1, 2 radius + 1]``."""
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(element, dtype=np.uint8)

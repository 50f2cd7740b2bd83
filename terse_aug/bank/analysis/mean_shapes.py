"""Mean shapes of the silhouettes of a class."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_ITERATIONS = 40
_ATTEMPTS = 3
_STOP = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, _ITERATIONS, 1e-3)


@dataclass(frozen=True)
class MeanShapes:
    """Groups of silhouettes, the largest first.

    Attributes:
        means: float32 ``[k, side, side]``, the mean mask of each group, 0 to 1.
        counts: int64 ``[k]``, number of silhouettes of each group.
    """

    means: NDArray[np.float32]
    counts: NDArray[np.int64]


def unit_mask(mask: NDArray[np.uint8], side: int = 32) -> NDArray[np.uint8]:
    """A silhouette, its bounding box scaled to a square.

    Args:
        mask: uint8 ``[h, w]``, 0 or 1, tight.
        side: of the square in px.

    Returns:
        uint8 ``[side, side]``, 0 to 255: how much of each px is covered.
    """
    return np.asarray(cv2.resize(255 * mask, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def mean_shapes(masks: NDArray[np.uint8], generator: np.random.Generator, clusters: int = 5) -> MeanShapes:
    """Mean shapes of a class: k-means of its masks, as in BigDatasetGAN (Li et al., CVPR 2022, supplement).

    There, k = 5 and masks have 32 x 32 px. The best of three attempts, each started with centers drawn by k-means++
    (Arthur & Vassilvitskii 2007).

    Args:
        masks: uint8 ``[n, side, side]``, 0 to 255, see :func:`unit_mask`.
        generator: draws the first centers.
        clusters: number of groups, k.

    Returns:
        k groups; fewer where there are fewer different masks.

    Raises:
        ValueError: there are fewer masks than clusters, or ``clusters`` is below 1.
    """
    if not 1 <= clusters <= len(masks):
        raise ValueError(f"expected 1 to {len(masks)} clusters of {len(masks)} masks, got {clusters}")
    flat: NDArray[np.float32] = masks.reshape(len(masks), -1).astype(np.float32) / np.float32(255)
    best, labels = np.inf, np.zeros(0, np.int32)
    for _ in range(_ATTEMPTS):
        first = _nearest(flat, _drawn_centers(flat, generator, clusters))
        used, numbers = np.unique(first, return_inverse=True)
        # Given labels and one attempt, OpenCV draws nothing from its global generator.
        start = numbers.astype(np.int32).reshape(-1, 1)
        cost, found, _ = cv2.kmeans(flat, len(used), start, _STOP, 1, cv2.KMEANS_USE_INITIAL_LABELS)
        if cost < best:
            best, labels = cost, np.asarray(found, np.int32)[:, 0]
    counts = np.bincount(labels)
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    means = np.stack([flat[labels == group].mean(0) for group in order])
    return MeanShapes(means.reshape(-1, *masks.shape[1:]), counts[order])


def _drawn_centers(flat: NDArray[np.float32], generator: np.random.Generator, clusters: int) -> NDArray[np.float32]:
    """Each next center is drawn with a probability in proportion to the squared distance from those before."""
    chosen = [int(generator.integers(len(flat)))]
    squares = _squares(flat, flat[chosen[0]])
    while len(chosen) < clusters and squares.any():
        chosen.append(int(generator.choice(len(flat), p=squares / squares.sum())))
        squares = np.minimum(squares, _squares(flat, flat[chosen[-1]]))
    return flat[chosen]


def _nearest(flat: NDArray[np.float32], centers: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.asarray(np.stack([_squares(flat, center) for center in centers]).argmin(0))


def _squares(flat: NDArray[np.float32], center: NDArray[np.float32]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.square(flat - center).sum(1, dtype=np.float64)
    return squares

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

    There, k = 5 and masks have 32 x 32 px. The best of three attempts, each started by k-means++ (Arthur &
    Vassilvitskii 2007). OpenCV's global random state is set.

    Args:
        masks: uint8 ``[n, side, side]``, 0 to 255, see :func:`unit_mask`.
        generator: draws the seed.
        clusters: number of groups, k.

    Returns:
        k groups; fewer where there are fewer different masks.

    Raises:
        ValueError: there are fewer masks than clusters, or ``clusters`` is below 1.
    """
    if not 1 <= clusters <= len(masks):
        raise ValueError(f"expected 1 to {len(masks)} clusters of {len(masks)} masks, got {clusters}")
    flat: NDArray[np.float32] = masks.reshape(len(masks), -1).astype(np.float32) / np.float32(255)
    clusters = min(clusters, len(np.unique(flat, axis=0)))
    cv2.setRNGSeed(int(generator.integers(2**31)))
    unset = np.zeros((len(flat), 1), np.int32)
    _, labels, means = cv2.kmeans(flat, clusters, unset, _STOP, _ATTEMPTS, cv2.KMEANS_PP_CENTERS)
    counts = np.bincount(np.asarray(labels)[:, 0], minlength=clusters)
    order = np.argsort(-counts, kind="stable")
    return MeanShapes(np.asarray(means, np.float32)[order].reshape(-1, *masks.shape[1:]), counts[order])

"""How much the shapes of a class differ: distance of its outlines, mean shapes of its silhouettes."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_PAIRS_AT_ONCE = 8  # fits into the cache: 64 take three times as long
_ITERATIONS = 40
_ATTEMPTS = 3
_STOP = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, _ITERATIONS, 1e-3)


@dataclass(frozen=True)
class Diversity:
    """Mean distance of the outlines of a class from each other.

    Attributes:
        mean: mean Chamfer distance of two outlines, in sides of the bounding box.
        deviation: standard deviation of the distances.
        pairs: number of pairs that were measured.
        is_complete: whether these are all pairs of the outlines.
    """

    mean: float
    deviation: float
    pairs: int
    is_complete: bool


def chamfer_distance(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Chamfer distance of two sets of points: mean distance of a point of one to the nearest of the other.

    ``d(P, Q) = (mean_p min_q |p - q| + mean_q min_p |p - q|) / 2``. Barrow et al. (1977) average the
    distances in one direction; Fan et al. (2017) take both directions. Symmetric, 0 for equal sets, in the unit of
    the points.

    Args:
        first: float32 ``[..., p, 2]``.
        second: float32 ``[..., q, 2]``.

    Returns:
        float32 ``[...]``, 0 or more.
    """
    across = first[..., :, None, 0] - second[..., None, :, 0]
    down = first[..., :, None, 1] - second[..., None, :, 1]
    squares = across * across + down * down
    there = np.sqrt(squares.min(-1)).mean(-1)
    back = np.sqrt(squares.min(-2)).mean(-1)
    distance: NDArray[np.float32] = (there + back) / 2
    return distance


def drawn_pairs(count: int, limit: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Different pairs of ``count`` items, the first the larger: all, or ``limit`` drawn uniformly; int64 ``[m, 2]``."""
    total = count * (count - 1) // 2
    number = np.arange(total) if total <= limit else np.sort(generator.choice(total, limit, replace=False))
    # Pairs are numbered (1, 0), (2, 0), (2, 1), (3, 0), ...; the root is exact for fewer than 40 million items.
    first = ((1 + np.sqrt(1 + 8 * number.astype(np.float64))) / 2).astype(np.int64)
    return np.stack([first, number - first * (first - 1) // 2], axis=1)


def shape_diversity(points: NDArray[np.float32], generator: np.random.Generator, limit: int = 1000) -> Diversity | None:
    """Mean Chamfer distance between the outlines of a class (BigDatasetGAN, Li et al., CVPR 2022, supplement).

    Args:
        points: float32 ``[n, p, 2]``, points along unit outlines, see :func:`even_points`.
        generator: draws pairs where there are more than ``limit``.
        limit: largest number of pairs that are measured.

    Returns:
        ``None`` for fewer than two outlines.
    """
    if len(points) < 2:
        return None
    pairs = drawn_pairs(len(points), limit, generator)
    starts = range(0, len(pairs), _PAIRS_AT_ONCE)
    chunks = [pairs[start : start + _PAIRS_AT_ONCE] for start in starts]
    distances = np.concatenate([chamfer_distance(points[chunk[:, 0]], points[chunk[:, 1]]) for chunk in chunks])
    is_complete = len(pairs) == len(points) * (len(points) - 1) // 2
    return Diversity(float(distances.mean()), float(distances.std()), len(pairs), is_complete)


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

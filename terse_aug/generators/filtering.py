"""Which samples are kept, after BigDatasetGAN: by how much the heads disagree, and by a classifier.

Shape letters: K heads, B samples, H and W of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats of Bernoulli distributions."""
    rest = 1 - probabilities
    nats: Tensor = -torch.xlogy(probabilities, probabilities) - torch.xlogy(rest, rest)
    return nats


def jensen_shannon(probabilities: Tensor) -> Tensor:
    """Jensen-Shannon divergence of the heads at each pixel, H(mean p) - mean H(p), in nats.

    Args:
        probabilities: of foreground, ``[K, B, H, W]``, 0 to 1.

    Returns:
        ``[B, H, W]``, 0 to ln 2; 0 where all heads agree.
    """
    return (entropy(probabilities.mean(0)) - entropy(probabilities).mean(0)).clamp_min(0)


def uncertainty(probabilities: Tensor, pixels: float = 1.0) -> Tensor:
    """How uncertain the heads are about each image.

    Args:
        probabilities: ``[K, B, H, W]``, 0 to 1.
        pixels: fraction of the pixels, the most uncertain ones, that the mean is over: all (BigDatasetGAN), or 0.1
            (DatasetGAN).

    Returns:
        ``[B]``, mean divergence in nats.
    """
    if not 0 < pixels <= 1:
        raise ValueError(f"uncertain pixels: expected a fraction above 0, at most 1, got {pixels}")
    divergence = jensen_shannon(probabilities).flatten(1)
    count = max(1, math.ceil(pixels * divergence.shape[1]))
    return divergence.topk(count, dim=1).values.mean(1)


def mode_mask(probabilities: Tensor, min_region: int) -> NDArray[np.bool_]:
    """What more than half of the heads call foreground, without connected regions below ``min_region`` px.

    Args:
        probabilities: of one sample, ``[K, H, W]``.
        min_region: in px; 30 in DatasetGAN, whose images have sides of 256 px and more.

    Returns:
        bool ``[H, W]``.
    """
    votes = (probabilities > 0.5).float().mean(0) > 0.5
    mask = votes.cpu().numpy()
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    small = [part for part in range(1, count) if stats[part, cv2.CC_STAT_AREA] < min_region]
    kept: NDArray[np.bool_] = mask & ~np.isin(parts, small)
    return kept


def highest(values: Sequence[float], fraction: float) -> set[int]:
    """Places of the highest values, as many as the fraction rounds to, but not all; of equal ones the last."""
    count = max(min(round(fraction * len(values)), len(values) - 1), 0)
    return set(sorted(range(len(values)), key=lambda place: (values[place], place))[len(values) - count :])

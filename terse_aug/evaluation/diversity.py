"""Diversity of transforms and composites: a policy may make everything hard by one and the same transform.

Shape letters: n pastes or images, P transform parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from terse_aug.training.metrics import std_ratios
from terse_aug.transforms import PARAMETERS

REDUCED_SIDE = 32
"""Side of the reduced images that are compared, pixels."""


def std_ratios_by_class(
    unit: Tensor, labels: Tensor, columns: Sequence[str] = PARAMETERS
) -> dict[int, dict[str, float]]:
    """Standard deviation of the transforms of each class, relative to uniform: 1 as diverse as random, 0 collapsed.

    A policy with one transform for each class looks diverse over all classes; here it does not.

    Args:
        unit: float ``[n, P]``, transforms in the unit cube.
        labels: int ``[n]``.
        columns: names of the P columns.

    Returns:
        By label and by name of the parameter; biased low for a class with few pastes, 0 for a single one.

    Raises:
        ValueError: not as many labels as transforms.
    """
    if len(unit) != len(labels):
        raise ValueError(f"labels: expected {len(unit)}, one for each transform, got {len(labels)}")
    return {label: std_ratios(unit[labels == label], columns) for label in sorted(set(labels.tolist()))}


def nearest_neighbour_distances(images: Tensor, labels: Tensor | None = None) -> Tensor:
    """Distance of each image to its nearest neighbour.

    The root mean squared difference of the images, reduced to at most 32 pixels a side, in the units of the images; 0
    is a duplicate. It falls with n: compare equal numbers of images.

    Args:
        images: float ``[n, C, H, W]``, at least 2.
        labels: int ``[n]``; neighbours are then searched within the class.

    Returns:
        Float ``[n]``, on the CPU; NaN for an image that is alone in its class.

    Raises:
        ValueError: another shape, or not as many labels as images.
    """
    if images.ndim != 4 or len(images) < 2:
        raise ValueError(f"images: expected [n, C, H, W] with n of at least 2, got {list(images.shape)}")
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(f"labels: expected [{len(images)}], one for each image, got {list(labels.shape)}")
    size = (min(images.shape[-2], REDUCED_SIDE), min(images.shape[-1], REDUCED_SIDE))
    flat = F.adaptive_avg_pool2d(images.detach().float(), size).cpu().double().flatten(1)
    groups = [torch.arange(len(images))]
    if labels is not None:
        groups = [(labels.cpu() == label).nonzero()[:, 0] for label in sorted(set(labels.tolist()))]
    nearest = torch.full((len(images),), float("nan"), dtype=torch.float64)
    for rows in groups:
        if len(rows) > 1:
            distances = torch.cdist(flat[rows], flat[rows], compute_mode="donot_use_mm_for_euclid_dist")
            nearest[rows] = distances.fill_diagonal_(torch.inf).amin(1)
    per_pixel: Tensor = nearest / math.sqrt(flat.shape[1])
    return per_pixel

"""Fréchet distance (FID) of two banks, in the features of a network of the user's. Needs torchmetrics."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import suppress

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from terse_aug.bank import Foreground, ForegroundBank
from terse_aug.bank.analysis import FeatureDistance
from terse_aug.utils.packages import optional_module

MAX_IMAGES = 10_000
"""Foregrounds of a bank that are used; of more, so many are drawn."""
_BATCH = 32
_GRAY = 127.5


def feature_distance(
    first: ForegroundBank,
    second: ForegroundBank,
    network: nn.Module,
    name: str,
    *,
    side: int = 128,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> FeatureDistance:
    """Fréchet distance of the features of two banks (Heusel et al., 2017, "FID" with features of Inception).

    Each foreground is put on gray and scaled to fill a square.

    Args:
        first: a bank.
        second: a bank.
        network: from images float32 ``[n, 3, side, side]``, RGB, 0 to 1, to features ``[n, num_features]``; used as it
            is, on its own device, in evaluation mode and without gradients.
        name: of the network, for the page.
        side: of the images in px.
        seed: of the foregrounds that are drawn from a bank of more than ``MAX_IMAGES``.
        progress: called with what is done, how much of it, and the total.

    Raises:
        MissingPackageError: torchmetrics is not installed.
        ValueError: a bank has one foreground only, the network has no ``num_features``, or other features than
            finite ones of this number.
    """
    metrics = optional_module("torchmetrics.image.fid", "learn")
    count = _feature_count(network, name)
    if side < 1:
        raise ValueError(f"expected images of at least 1 px a side, got {side}")
    metric = metrics.FrechetInceptionDistance(feature=_Checked(network.eval(), name, count))
    device = next((own.device for own in network.parameters()), torch.device("cpu"))
    used = []
    for number, bank in enumerate((first, second)):
        if len(bank) < 2:
            raise ValueError(f"{bank.path}: expected at least 2 foregrounds for FID, found {len(bank)}")
        drawn = np.arange(len(bank))
        if len(bank) > MAX_IMAGES:
            drawn = np.sort(np.random.default_rng([seed, number]).choice(len(bank), MAX_IMAGES, replace=False))
        for done, images in enumerate(_batches(bank, drawn, side), 1):
            with torch.no_grad():
                metric.to(device).update(images.to(device), real=number == 0)
            if progress is not None:
                progress("features", min(done * _BATCH, len(drawn)), len(drawn))
        used.append(len(drawn))
    return FeatureDistance(float(metric.compute()), name, count, (used[0], used[1]), side)


def _feature_count(network: nn.Module, name: str) -> int:
    given = getattr(network, "num_features", None)
    count = 0
    with suppress(TypeError):  # of what is no whole number
        count = 0 if isinstance(given, bool) else operator.index(given)  # type: ignore[arg-type]  # may be anything
    if count < 1:
        raise ValueError(f"{name}: expected a network with num_features, the number of its features, got {given!r}")
    return count


class _Checked(nn.Module):
    """A user's network; what it returns is checked."""

    def __init__(self, network: nn.Module, name: str, num_features: int):
        super().__init__()
        self.network, self.name, self.num_features = network, name, num_features

    def forward(self, images: Tensor) -> Tensor:
        """Features double ``[n, num_features]`` of images float32 ``[n, 3, side, side]``."""
        try:
            features = self.network(images)
        except Exception as error:  # whatever a user's network raises
            reason = str(error).strip().splitlines() or [""]
            raise ValueError(
                f"{self.name} failed on {list(images.shape)}: {type(error).__name__} {reason[-1]}"
            ) from error
        wanted = [len(images), self.num_features]
        if not isinstance(features, Tensor) or list(features.shape) != wanted:
            got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"{self.name}: expected features {wanted} ([n, num_features]), got {got}")
        if not features.isfinite().all():
            raise ValueError(f"{self.name}: its features are not finite")
        return features.double()


def _batches(bank: ForegroundBank, positions: NDArray[np.int64], side: int) -> Iterator[Tensor]:
    for start in range(0, len(positions), _BATCH):
        images = [on_gray(bank[int(position)], side) for position in positions[start : start + _BATCH]]
        yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def on_gray(foreground: Foreground, side: int) -> NDArray[np.float32]:
    """A foreground in the middle of a gray square that it fills: float32 ``[side, side, 3]``, RGB, 0 to 1."""
    rgba = foreground.rgba.astype(np.float32)
    alpha = rgba[..., 3:] / 255
    pixels = alpha * rgba[..., :3] + (1 - alpha) * _GRAY
    height, width = pixels.shape[:2]
    larger = max(height, width)
    square = np.full((larger, larger, 3), _GRAY, np.float32)
    top, left = (larger - height) // 2, (larger - width) // 2
    square[top : top + height, left : left + width] = pixels
    scaled = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA if larger > side else cv2.INTER_LINEAR)
    return np.asarray(scaled / 255, np.float32)

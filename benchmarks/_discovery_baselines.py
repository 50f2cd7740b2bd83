"""Ways to find the foreground of an image without labels, for comparison. Each gives bool ``[H, W]``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
_BORDER = 0.08
_PROBABLE, _CORE, _RIM = 0.5, 0.1, 0.03
_ITERATIONS = 5


def everything(image: Image) -> Mask:
    """The whole image."""
    return np.ones(image.shape[:2], bool)


def border_color(image: Image) -> Mask:
    """Mahalanobis distance in CIELAB from the colors along the border, split by Otsu's threshold."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float64)
    height, width = image.shape[:2]
    rim = np.ones((height, width), bool)
    depth = max(round(_BORDER * min(height, width)), 1)
    rim[depth : height - depth, depth : width - depth] = False
    mean, covariance = lab[rim].mean(0), np.cov(lab[rim].T) + np.eye(3)
    offset = lab - mean
    distance = np.sqrt(np.einsum("hwc,cd,hwd->hw", offset, np.linalg.inv(covariance), offset))
    return _split(distance)


def otsu(image: Image) -> Mask:
    """Otsu's threshold of grey; foreground is the side that is rarer along the border."""
    bright = _split(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64))
    rim = np.concatenate([bright[0], bright[-1], bright[:, 0], bright[:, -1]])
    return ~bright if rim.mean() > 0.5 else bright


def grabcut_center(image: Image) -> Mask:
    """GrabCut, seeded with a disk in the center as foreground, one around it as probable, and a rim as background."""
    height, width = image.shape[:2]
    y, x = np.ogrid[:height, :width]
    radius = np.hypot((y - (height - 1) / 2) / height, (x - (width - 1) / 2) / width)
    trimap = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
    trimap[radius < _PROBABLE] = cv2.GC_PR_FGD
    trimap[radius < _CORE] = cv2.GC_FGD
    rim = max(round(_RIM * min(height, width)), 1)
    for edge in (trimap[:rim], trimap[-rim:], trimap[:, :rim], trimap[:, -rim:]):
        edge[:] = cv2.GC_BGD
    models = np.zeros((2, 1, 65))
    cv2.setRNGSeed(0)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    cv2.grabCut(bgr, trimap, None, models[0], models[1], _ITERATIONS, cv2.GC_INIT_WITH_MASK)
    return np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD))


def best_disk(masks: Sequence[Mask], ignored: Sequence[Mask]) -> Callable[[Image], Mask]:
    """The centered disk of the radius that agrees best with the true masks: a prior that knows their size."""

    def disk(height: int, width: int, radius: float) -> Mask:
        y, x = np.ogrid[:height, :width]
        return np.hypot(y - (height - 1) / 2, x - (width - 1) / 2) <= radius * min(height, width)

    def mean_iou(radius: float) -> float:
        ious = []
        for mask, left_out in zip(masks, ignored, strict=True):
            found = disk(*mask.shape, radius) & ~left_out
            ious.append((found & mask).sum() / max((found | mask).sum(), 1))
        return float(np.mean(ious))

    best = max(np.arange(0.1, 0.71, 0.02).tolist(), key=mean_iou)
    return lambda image: disk(*image.shape[:2], best)


def _split(values: NDArray[np.float64]) -> Mask:
    scaled = np.rint(255 * (values - values.min()) / max(np.ptp(values), 1e-9)).astype(np.uint8)
    return cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1] > 0

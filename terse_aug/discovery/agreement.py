"""Agreement of a cutter with masks that it never saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.build.report import BuildLog
from terse_aug.bank.inputs.folders import check_folders, find_images
from terse_aug.bank.inputs.image_list import ImageList
from terse_aug.bank.inputs.images import read_image, read_mask

MaskedImage = tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]
"""An image uint8 ``[H, W, 3]`` RGB, its foreground bool ``[H, W]``, and the pixels that are not counted."""


@dataclass(frozen=True)
class Agreement:
    """IoU of found and true masks; the two ways of averaging differ where objects differ in size.

    Where both masks of an image are empty, they agree: its IoU is 1.

    Attributes:
        pooled: intersections of all images over their unions.
        per_image: mean over the images.
        images: their number.
    """

    pooled: float
    per_image: float
    images: int

    def plain(self) -> dict[str, Any]:
        """As values for JSON."""
        return {"pooled": self.pooled, "per_image": self.per_image, "images": self.images}


def agreement(cut: Callable[[NDArray[np.uint8]], NDArray[Any]], images: Iterable[MaskedImage]) -> Agreement:
    """Measure a way to cut out.

    Args:
        cut: from an image to a mask bool ``[H, W]``, or alpha 0 to 255, which counts from 128.
        images: with their true masks.

    Raises:
        ValueError: there is no image.
    """
    counts = []
    for pixels, true, ignored in images:
        found = cut(pixels)
        found = (found if found.dtype == bool else found >= 128) & ~ignored
        counts.append((np.count_nonzero(found & true), np.count_nonzero(found | (true & ~ignored))))
    if not counts:
        raise ValueError("expected images with masks, found none")
    common, union = np.array(counts, np.float64).T
    ious = np.where(union > 0, common / np.maximum(union, 1), 1.0)
    pooled = common.sum() / union.sum() if union.any() else 1.0
    return Agreement(float(pooled), float(ious.mean()), len(counts))


def masked_images(images: Path, masks: Path, ignored_value: int | None = None) -> Iterable[MaskedImage]:
    """Images of a folder that have a mask of their name in another, grey and 128 or more for foreground.

    Args:
        images: folder of images.
        masks: folder of masks.
        ignored_value: of pixels of the masks that are not counted.

    Raises:
        FileNotFoundError: one of the folders does not exist.
        ValueError: an image or mask is damaged, or they differ in size; the message names the file.
    """
    check_folders(images, content="images")
    check_folders(masks, content="masks")
    for found in find_images(images, masks, ImageList(None), BuildLog())[0]:
        if found.mask is None:
            continue
        pixels, mask = read_image(found.path), read_mask(found.mask)
        if pixels.shape[:2] != mask.shape:
            raise ValueError(f"{found.mask}: expected a mask of {pixels.shape[:2]}, as its image, got {mask.shape}")
        ignored = mask == ignored_value if ignored_value is not None else np.zeros(mask.shape, bool)
        yield pixels, (mask >= 128) & ~ignored, ignored

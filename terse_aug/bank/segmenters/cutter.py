"""Cutters: what has learned to make masks, known by a fingerprint. A cutter may need torch; this module does not."""

from __future__ import annotations

from contextlib import suppress
from importlib import metadata
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.extract import RejectedObject, remove_faint_alpha, tight_box
from terse_aug.bank.segmenters.operations import remove_specks

SOLID = 128
"""Alpha of what belongs to an object; a mask without such a pixel shows nothing."""
_RIM = 0.01
_MIN_RIM_PX = 2.0


class UnhealthyCutterError(ValueError):
    """A cutter is marked as collapsed."""


class ImageCutter(Protocol):
    """Cuts the object out of a whole photograph, as :class:`terse_aug.discovery.Cutter` does.

    Attributes:
        fingerprint: equal for cutters that make equal masks.
        collapsed: names of the health checks of its training that failed; empty for a healthy one.
    """

    @property
    def fingerprint(self) -> str:
        """See above."""

    @property
    def collapsed(self) -> tuple[str, ...]:
        """See above."""

    def cut(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """From an image uint8 ``[H, W, 3]`` RGB to a mask ``[H, W]``: bool, or alpha uint8 0 to 255."""


def fingerprint_of(method: object) -> str | None:
    """The fingerprint of a cutter; ``None`` for anything without one."""
    fingerprint = getattr(method, "fingerprint", None)
    return fingerprint if isinstance(fingerprint, str) and fingerprint else None


def cutter_name(method: object) -> str:
    """Name of a cutter in a report."""
    return f"cutter {(fingerprint_of(method) or type(method).__name__)[:12]}"


def cutter_record(method: object) -> dict[str, Any]:
    """A cutter in a bank's record of how it was built, with the health checks that it failed.

    Masks of a network depend on the version of torch, which is read without importing it.
    """
    failed = failed_checks(method)
    record = {"cutter": fingerprint_of(method)} | ({"cutter_collapsed": failed} if failed else {})
    with suppress(metadata.PackageNotFoundError):
        record["torch"] = metadata.version("torch")
    return record


def failed_checks(method: object) -> list[str]:
    """Names of the health checks that a cutter failed."""
    collapsed = getattr(method, "collapsed", ())
    return [collapsed] * bool(collapsed) if isinstance(collapsed, str) else list(map(str, collapsed))


def check_healthy(method: object, accept_unhealthy: bool) -> None:
    """Raise :class:`UnhealthyCutterError` for a cutter whose training collapsed, unless such a one is accepted."""
    if (failed := failed_checks(method)) and not accept_unhealthy:
        raise UnhealthyCutterError(
            f"this cutter is marked as collapsed ({', '.join(failed)}): train it again with other settings, or use it "
            "as it is with accept_unhealthy=True (--accept-unhealthy)"
        )


def checked_alpha(mask: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """What a cutter returned as alpha uint8 ``[H, W]``, without what is too faint to be seen.

    Raises:
        RejectedObject: it is no mask of an image of this shape (H, W, ...).
    """
    array = as_mask(mask, shape)
    return 255 * array.astype(np.uint8) if array.dtype == bool else remove_faint_alpha(array)


def tidy_alpha(alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Alpha uint8 ``[H, W]`` of the solid parts, and of a rim about them of 1 % of their larger side.

    Networks give much of an image a low alpha, which would enlarge the foreground, and find specks: solid parts of less
    than a tenth of the largest are left out.
    """
    solid = remove_specks((alpha >= SOLID).astype(np.uint8))
    tight = tight_box(solid)
    if tight is None:
        return np.zeros_like(alpha)
    distance = cv2.distanceTransform(1 - solid, cv2.DIST_L2, cv2.DIST_MASK_5)
    return np.where(distance <= max(_RIM * max(tight[2:]), _MIN_RIM_PX), alpha, np.uint8(0))


def as_mask(mask: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """What a function returned as an array ``[H, W]``, bool or uint8.

    Raises:
        RejectedObject: it is no mask of an image of this shape (H, W, ...).
    """
    array = np.asarray(mask.detach().cpu() if hasattr(mask, "detach") else mask)  # a tensor, of any device
    if array.shape != shape[:2] or array.dtype not in (bool, np.uint8):
        raise RejectedObject("the function returned no mask of the image's size, bool or uint8")
    return array

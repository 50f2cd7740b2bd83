"""Keyword arguments that the builders from annotations have in common."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from terse_aug.bank.build.pipeline import BuildOptions
from terse_aug.bank.segmenters.box import BoxMaskMethod, BoxMasks


@dataclass(frozen=True)
class AnnotationOptions(BuildOptions):
    """Keyword arguments that builders from annotations have in common, beside those of :class:`BuildOptions`.

    Attributes:
        categories: names of the categories to keep; all by default.
        boxes: how masks of objects that have a box only are made: ``"grabcut"``, ``"ellipse"``, ``"box"``, a function
            of image and box such as a segmentation model, or :class:`BoxMasks`. By default these objects are rejected.
            With a function, ``jobs`` is 1 by default, and each of more processes has a copy of it.

    Raises:
        ValueError: a category or a method is unknown.
    """

    categories: Collection[str] | None = None
    boxes: BoxMasks | str | BoxMaskMethod | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.box_masks  # an unknown method is an error at once

    @property
    def box_masks(self) -> BoxMasks | None:
        """``boxes`` as :class:`BoxMasks`."""
        return self.boxes if self.boxes is None or isinstance(self.boxes, BoxMasks) else BoxMasks(self.boxes)


def check_relative_size(relative_size: float) -> None:
    """Raise ``ValueError`` unless a relative size is finite and above 0."""
    if not (math.isfinite(relative_size) and relative_size > 0):
        raise ValueError(f"expected a finite relative_size above 0, got {relative_size!r}")

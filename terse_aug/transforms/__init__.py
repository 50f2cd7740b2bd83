"""The transform of a paste: its parameters, their allowed ranges, and what they stand for."""

from terse_aug.transforms.affine import (
    PARAMETERS,
    PasteGeometry,
    Placement,
    TransformRanges,
    center_range,
    place,
)
from terse_aug.transforms.arrays import Array, arrays_like, library_of
from terse_aug.transforms.photometric import PHOTOMETRIC, Photometric, color_matrix

__all__ = [
    "PARAMETERS",
    "PHOTOMETRIC",
    "Array",
    "PasteGeometry",
    "Photometric",
    "Placement",
    "TransformRanges",
    "arrays_like",
    "center_range",
    "color_matrix",
    "library_of",
    "place",
]

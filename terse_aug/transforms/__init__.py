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
from terse_aug.transforms.blends import BLENDS, blend_number, checked_blends
from terse_aug.transforms.columns import EVERY_COLUMN, TransformColumns, loaded_columns, saved_columns
from terse_aug.transforms.photometric import PHOTOMETRIC, Photometric, color_matrix

__all__ = [
    "BLENDS",
    "EVERY_COLUMN",
    "PARAMETERS",
    "PHOTOMETRIC",
    "Array",
    "PasteGeometry",
    "Photometric",
    "Placement",
    "TransformColumns",
    "TransformRanges",
    "arrays_like",
    "blend_number",
    "center_range",
    "checked_blends",
    "color_matrix",
    "library_of",
    "loaded_columns",
    "place",
    "saved_columns",
]

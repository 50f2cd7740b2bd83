"""What the shapes and looks of cut-outs are like: pure functions of masks, outlines and pixels.

The shape measures are those that BigDatasetGAN (Li et al., CVPR 2022, supplement) describes data sets by. Imports
numpy and OpenCV.
"""

from terse_aug.bank.analysis.mean_shapes import MeanShapes, mean_shapes, unit_mask
from terse_aug.bank.analysis.near_duplicates import CERTAIN_DISTANCE, Alike, Look, groups_alike, look_of
from terse_aug.bank.analysis.outline import (
    Outline,
    even_points,
    outline_length,
    parts_and_holes,
    shape_complexity,
    silhouette,
    simplified,
    unit_outline,
)
from terse_aug.bank.analysis.shape_diversity import Diversity, chamfer_distance, drawn_pairs, shape_diversity

__all__ = [
    "CERTAIN_DISTANCE",
    "Alike",
    "Diversity",
    "Look",
    "MeanShapes",
    "Outline",
    "chamfer_distance",
    "drawn_pairs",
    "even_points",
    "groups_alike",
    "look_of",
    "mean_shapes",
    "outline_length",
    "parts_and_holes",
    "shape_complexity",
    "shape_diversity",
    "silhouette",
    "simplified",
    "unit_mask",
    "unit_outline",
]

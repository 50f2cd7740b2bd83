"""Composites on disk: images with corrected labels as a COCO or YOLO data set, for trainers elsewhere."""

from terse_aug.export.report import ExportReport
from terse_aug.export.settings import ExportSettings
from terse_aug.export.write import write_composites

__all__ = ["ExportReport", "ExportSettings", "write_composites"]

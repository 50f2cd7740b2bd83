"""Pictures of what would enter the model: samples with their labels drawn in, and contact sheets of them.

The parts of `terse-aug preview`, for use in reports and training logs. Imports torch, OpenCV, pillow and jinja2.
"""

from terse_aug.preview.batch import batch_picture
from terse_aug.preview.data import LabelledImages, Sample, SkippedImage, resize_sample
from terse_aug.preview.page import Facts, render_html, render_png
from terse_aug.preview.readers import open_coco, open_masks
from terse_aug.preview.record import Pair, PasteRecord, Preview, preview_samples
from terse_aug.preview.saved_policy import STATE_KEY, SavedPolicy
from terse_aug.viz.contact_sheet import contact_sheet
from terse_aug.viz.drawing import ORIGINAL_COLOR, PASTED_COLOR, draw_sample

__all__ = [
    "ORIGINAL_COLOR",
    "PASTED_COLOR",
    "STATE_KEY",
    "Facts",
    "LabelledImages",
    "Pair",
    "PasteRecord",
    "Preview",
    "Sample",
    "SavedPolicy",
    "SkippedImage",
    "batch_picture",
    "contact_sheet",
    "draw_sample",
    "open_coco",
    "open_masks",
    "preview_samples",
    "render_html",
    "render_png",
    "resize_sample",
]

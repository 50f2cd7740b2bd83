"""Shows what a model would be trained on: composites with their annotations, beside the originals.

The parts of ``terse-aug preview``, for reports and training logs.
"""

from terse_aug.preview.batch import draw_batch
from terse_aug.preview.composites import Pair, PasteNote, Preview, learn_boxes, preview_samples
from terse_aug.preview.data import LabelledImages, RejectionCounts, Sample, resize_sample
from terse_aug.preview.page import Facts, render_html, render_png
from terse_aug.preview.readers import open_annotations, open_coco, open_masks
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
    "PasteNote",
    "Preview",
    "RejectionCounts",
    "Sample",
    "SavedPolicy",
    "contact_sheet",
    "draw_batch",
    "draw_sample",
    "learn_boxes",
    "open_annotations",
    "open_coco",
    "open_masks",
    "preview_samples",
    "render_html",
    "render_png",
    "resize_sample",
]

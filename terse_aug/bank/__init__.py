"""Cut-out objects on disk: the store, and the builders that fill it from annotated images.

Imports numpy, opencv, pillow, lmdb and pycocotools; never torch, so that a bank can be built anywhere.
"""

from terse_aug.bank._bank import ForegroundBank
from terse_aug.bank._box_masks import WAYS, BoxMasks, MaskOfBox
from terse_aug.bank._coco import build_from_coco
from terse_aug.bank._cut import CutRules
from terse_aug.bank._foreground import Foreground
from terse_aug.bank._images import NoAlphaError, read_image, read_rgba
from terse_aug.bank._masks import build_from_masks
from terse_aug.bank._plain_ground import PlainGround
from terse_aug.bank._products import build_from_products
from terse_aug.bank._report import BuildReport
from terse_aug.bank._rgba import build_from_rgba
from terse_aug.bank._segmentation import segmentation_as_json
from terse_aug.bank._video import build_from_video
from terse_aug.bank._writer import BankWriter
from terse_aug.bank.formats import (
    build_from_labelme,
    build_from_panoptic,
    build_from_via,
    build_from_voc,
    build_from_yolo,
)

__all__ = [
    "WAYS",
    "BankWriter",
    "BoxMasks",
    "BuildReport",
    "CutRules",
    "Foreground",
    "ForegroundBank",
    "MaskOfBox",
    "NoAlphaError",
    "PlainGround",
    "build_from_coco",
    "build_from_labelme",
    "build_from_masks",
    "build_from_panoptic",
    "build_from_products",
    "build_from_rgba",
    "build_from_via",
    "build_from_video",
    "build_from_voc",
    "build_from_yolo",
    "read_image",
    "read_rgba",
    "segmentation_as_json",
]

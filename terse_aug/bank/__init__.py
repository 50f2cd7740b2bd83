"""Foregrounds on disk: the bank, and the builders that fill it from annotated images.

They do not need torch, so that a bank can be built anywhere.
"""

from terse_aug.bank.bank import ForegroundBank
from terse_aug.bank.build.pipeline import BuildOptions
from terse_aug.bank.build.report import BuildReport
from terse_aug.bank.extract import ExtractionRules
from terse_aug.bank.inputs.images import NoAlphaError, read_image, read_rgba
from terse_aug.bank.inputs.masks import segmentation_as_json
from terse_aug.bank.merge import MergeReport, merge_banks
from terse_aug.bank.meshes.views import ViewSettings
from terse_aug.bank.readers.annotated_images import AnnotationOptions
from terse_aug.bank.readers.coco import build_from_coco
from terse_aug.bank.readers.cvat import build_from_cvat
from terse_aug.bank.readers.instance_masks import build_from_masks
from terse_aug.bank.readers.label_studio import build_from_label_studio
from terse_aug.bank.readers.labelme import build_from_labelme
from terse_aug.bank.readers.mesh import build_from_mesh
from terse_aug.bank.readers.object_masks import build_from_object_masks
from terse_aug.bank.readers.panoptic import build_from_panoptic
from terse_aug.bank.readers.products import build_from_products
from terse_aug.bank.readers.rgba import build_from_rgba
from terse_aug.bank.readers.sa1b import build_from_sa1b
from terse_aug.bank.readers.unlabelled import build_from_unlabelled
from terse_aug.bank.readers.via import build_from_via
from terse_aug.bank.readers.video import build_from_video
from terse_aug.bank.readers.voc import build_from_voc
from terse_aug.bank.readers.yolo import build_from_yolo
from terse_aug.bank.segmenters.box import BOX_MASK_METHODS, BoxMaskMethod, BoxMasks
from terse_aug.bank.segmenters.cutter import ImageCutter
from terse_aug.bank.segmenters.plain_background import PlainBackground
from terse_aug.bank.selection import UnknownClassesError
from terse_aug.bank.storage.writer import BankWriter
from terse_aug.structures.foreground import Foreground

__all__ = [
    "BOX_MASK_METHODS",
    "AnnotationOptions",
    "BankWriter",
    "BoxMaskMethod",
    "BoxMasks",
    "BuildOptions",
    "BuildReport",
    "ExtractionRules",
    "Foreground",
    "ForegroundBank",
    "ImageCutter",
    "MergeReport",
    "NoAlphaError",
    "PlainBackground",
    "UnknownClassesError",
    "ViewSettings",
    "build_from_coco",
    "build_from_cvat",
    "build_from_label_studio",
    "build_from_labelme",
    "build_from_masks",
    "build_from_mesh",
    "build_from_object_masks",
    "build_from_panoptic",
    "build_from_products",
    "build_from_rgba",
    "build_from_sa1b",
    "build_from_unlabelled",
    "build_from_via",
    "build_from_video",
    "build_from_voc",
    "build_from_yolo",
    "merge_banks",
    "read_image",
    "read_rgba",
    "segmentation_as_json",
]

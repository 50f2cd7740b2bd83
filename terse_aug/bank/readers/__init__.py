"""One file for each source of foregrounds, each with its function ``build_from_<source>``.

To add a source, write a file here and add a line to :data:`READERS`:

- ``build_from_<source>(..., out, *, ..., **options)`` reads the user's files and builds a bank. The command line
  (``terse-aug bank build <source>``) takes its flags and their help from the signature and the docstring.
- Annotations go to an :class:`~terse_aug.bank.readers.annotation_collector.AnnotationCollector`, or, if they are
  similar to COCO's, to :func:`~terse_aug.bank.readers.annotated_images.build_from_annotations`.
- Decorated with :func:`~terse_aug.bank.readers.several_parts.takes_several`, it takes several folders.
- For anything else, write an extractor, which yields the foregrounds of one image, and call the ``build`` of
  :class:`~terse_aug.bank.BuildOptions`; ``rgba.py`` is the shortest example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from terse_aug.bank.build.pipeline import BuildOptions
from terse_aug.bank.build.report import BuildReport
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


class Reader(NamedTuple):
    """A source of foregrounds.

    Attributes:
        build: the function that builds a bank from it.
        options: what its ``**options`` are; ``None`` if it has none.
        unused_rules: settings of :class:`~terse_aug.bank.ExtractionRules` without effect on it.
    """

    build: Callable[..., BuildReport]
    options: type[BuildOptions] | None
    unused_rules: tuple[str, ...] = ()


_NO_BOXES = ("min_box_agreement",)
READERS = {
    "coco": Reader(build_from_coco, AnnotationOptions),
    "masks": Reader(build_from_masks, BuildOptions, _NO_BOXES),
    "object-masks": Reader(build_from_object_masks, BuildOptions, _NO_BOXES),
    "rgba": Reader(build_from_rgba, BuildOptions, (*_NO_BOXES, "drop_truncated")),
    "products": Reader(build_from_products, BuildOptions, _NO_BOXES),
    "mesh": Reader(build_from_mesh, BuildOptions, (*_NO_BOXES, "drop_truncated", "black_16bit", "white_16bit")),
    "unlabelled": Reader(build_from_unlabelled, BuildOptions, _NO_BOXES),
    "video": Reader(build_from_video, None, _NO_BOXES),
    "voc": Reader(build_from_voc, AnnotationOptions),
    "yolo": Reader(build_from_yolo, AnnotationOptions),
    "labelme": Reader(build_from_labelme, AnnotationOptions),
    "label-studio": Reader(build_from_label_studio, AnnotationOptions),
    "cvat": Reader(build_from_cvat, AnnotationOptions),
    "via": Reader(build_from_via, AnnotationOptions),
    "sa1b": Reader(build_from_sa1b, BuildOptions),
    "panoptic": Reader(build_from_panoptic, AnnotationOptions),
}
"""Sources by their names on the command line."""

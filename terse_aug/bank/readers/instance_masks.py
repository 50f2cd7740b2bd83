"""Images and masks of the same names, as in Penn-Fudan: numbers, colours, or black and white."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.pipeline import BuildOptions
from terse_aug.bank.build.report import BuildLog, BuildReport, RejectedSample
from terse_aug.bank.extract import Annotation, ExtractionRules, RejectedObject, extract_from_image
from terse_aug.bank.inputs.folders import ListedImage, check_folders, class_labels, find_images
from terse_aug.bank.inputs.image_list import ImageList
from terse_aug.bank.inputs.images import is_file, read_image_like, why_unreadable
from terse_aug.bank.inputs.label_map import LabelMap
from terse_aug.bank.inputs.mask_files import ObjectNumbers, most_are_dark, read_object_numbers
from terse_aug.bank.inputs.masks import segmentation_as_json
from terse_aug.bank.inputs.repair import Repairs
from terse_aug.bank.readers.annotation_collector import AnnotationCollector
from terse_aug.bank.readers.other_formats import names_other_formats
from terse_aug.bank.readers.several_parts import Paths, as_path, takes_several
from terse_aug.structures.foreground import Foreground

NO_CLASSES = (
    *("train", "training", "val", "valid", "validation", "test", "testing", "all", "data", "default"),
    *("images", "image", "imgs", "img", "jpegimages", "pngimages", "photos", "photographs", "masks", "mask"),
)
"""Names of folders that are no classes."""
_UNNAMED = "object"


@takes_several()
@names_other_formats
def build_from_masks(
    images: Paths,
    masks: Paths,
    out: str | Path,
    *,
    category: str | None = None,
    split: bool = False,
    label_map: Paths | None = None,
    class_masks: Paths | None = None,
    names: Sequence[str] | None = None,
    **options: Any,
) -> BuildReport:
    """Build a bank from a folder of images and one of instance masks of the same names (Penn-Fudan).

    Both folders may be the same if masks have the ``_mask``; masks may lie in the same subfolders or in none. In a
    mask, 0 or black is background, and every other number or colour one object. In a mask of two values the object may
    be dark on white: what has most of the border is background, as in most masks of the folder.
    ``rules.min_box_agreement`` has no effect.

    Args:
        images: folder of images NAME.png, of any image format.
        masks: folder of masks NAME_mask.png or NAME.png: one integer channel, a palette whose indices count, or RGB.
        out: the bank to write.
        category: class of all objects; by default that of the label map, or else the subfolder that an image lies in
            (of other names than train, val, test or images), or else object.
        split: make connected parts of a number or colour objects of their own, as for semantic masks.
        label_map: text file of the classes of colours or numbers, which makes the masks semantic: lines NAME:R,G,B as
            in CVAT's labelmap.txt, or names with numbers. It is found by itself beside a folder SegmentationClass.
        class_masks: folder of semantic masks of the same names, for the classes of objects; by default
            SegmentationClass beside SegmentationObject.
        names: classes of the label map to use, labelled 1, 2, ... in this order; by default all.
        options: see :class:`BuildOptions`.

    Raises:
        FileNotFoundError: a folder or the label map does not exist.
        ValueError: label map or class masks are missing or wrong, or lack a class of `names`; as :class:`BuildOptions`.
    """
    settings = BuildOptions.checked(out, options)
    image_folder, mask_folder = as_path(images), as_path(masks)
    class_folder, map_path = _find_classes(mask_folder, class_masks, label_map, category)
    check_folders(image_folder, mask_folder, class_folder, content="images")
    if map_path is None and (class_folder is not None or names is not None):
        raise ValueError("expected a label map (--label-map) with class masks or names, which it gives the classes of")
    classes = None if map_path is None else LabelMap.read(map_path)
    log, rules = BuildLog(), settings.rules
    found, all_images = find_images(image_folder, mask_folder, ImageList.of(settings.image_list), log)
    label_of: dict[Path, int] = {}
    if category is not None:
        label_of, categories = dict.fromkeys(all_images, 1), {1: category}
    elif classes is None:
        label_of, categories = class_labels(image_folder, all_images, _UNNAMED, NO_CLASSES)
    else:
        categories = _chosen(classes, names, map_path)
    items = list(_items(found, label_of, mask_folder, class_folder, log))
    dark = most_are_dark([image.mask for image in found if image.mask is not None])
    record = {"from": "masks", "images": image_folder.name, "split": split, "dark": dark, **vars(rules)}
    known = None if classes is None else _Classes(classes, {name: label for label, name in categories.items()})
    extractor = _Extractor(rules, known, known is not None and class_folder is None, split, dark)
    source = Source(items, extractor, record | {"classes": classes and sorted(classes.names.items())}, log)
    return settings.build(out, source, record, categories)


def _find_classes(
    masks: Path, class_masks: Paths | None, label_map: Paths | None, category: str | None
) -> tuple[Path | None, Path | None]:
    """The folder of class masks and the label map, as given or, in the layout of Pascal VOC, as found."""
    folder, path = (None if given is None else as_path(given) for given in (class_masks, label_map))
    if category is not None:
        if folder or path:
            raise ValueError("expected category or label_map, got both: the label map names the classes")
        return None, None
    beside, by_class = masks.parent / "labelmap.txt", masks.with_name("SegmentationClass")
    if path is None and beside.is_file() and (folder or masks.name.startswith("Segmentation")):
        path = beside
    if path is None or folder is not None or masks.name.startswith("SegmentationClass"):
        return folder, path
    if masks.name.startswith("SegmentationObject") and by_class.is_dir():
        return by_class, path
    if label_map is None:
        raise ValueError(
            f"expected class masks at {by_class}, with the colors of {beside}, found none; give their folder "
            "(--class-masks), or the class of all objects (--category)"
        )
    return None, path


def _chosen(classes: LabelMap, names: Sequence[str] | None, path: Path | None) -> dict[int, str]:
    """The classes of a label map, or the chosen ones, by their labels."""
    known = classes.class_names()
    chosen = AnnotationCollector.with_names(names).names or {name: label for label, name in enumerate(known, 1)}
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"expected names of classes in {path}, which are {', '.join(known)}; got {unknown}")
    return {label: name for name, label in chosen.items()}


def _items(
    images: Sequence[ListedImage], label_of: Mapping[Path, int], masks: Path, class_masks: Path | None, log: BuildLog
) -> Iterator[_Item]:
    """Images with their class or class mask; those without are counted."""
    for image in images:
        assert image.mask is not None
        class_mask = None if class_masks is None else class_masks / image.mask.relative_to(masks)
        if class_mask is None or is_file(class_mask):
            yield _Item(image, label_of.get(image.path), class_mask)
        else:
            reason = "image without a class mask of its name"
            log.drop(reason, image.name, shown=RejectedSample(image.path, image.name))


class _Item(NamedTuple):
    """An image with its mask, its class if all its objects have one, and its semantic mask."""

    image: ListedImage
    label: int | None
    class_mask: Path | None


@dataclass(frozen=True)
class _Classes:
    """Classes by numbers of semantic masks."""

    map: LabelMap
    labels: dict[str, int]

    def label(self, number: int) -> int:
        """The label of a number; rejects one without."""
        name = self.map.names.get(number)
        if self.map.is_background(number):
            raise RejectedObject("class mask shows background")
        if name is None:
            raise RejectedObject("number or colour is not in the label map")
        if name not in self.labels:
            raise RejectedObject("class is not in `names`")
        return self.labels[name]


@dataclass(frozen=True)
class _Extractor:
    """Extracts the objects of pairs of image and mask.

    Masks are ``semantic`` if their numbers are classes, not objects.
    """

    rules: ExtractionRules
    classes: _Classes | None
    semantic: bool
    split: bool
    dark: bool

    def files(self, item: _Item) -> list[Path]:
        """The image and its masks."""
        return [path for path in (item.image.path, item.image.mask, item.class_mask) if path is not None]

    def objects(self, item: _Item, log: BuildLog) -> Iterator[Foreground]:
        """The foregrounds of an image."""
        path, name = item.image.path, item.image.name
        try:
            notes: Repairs = set()
            image, mask, semantic = self._read(item, log, notes)
            log.repair(notes, name)
        except ValueError as error:
            log.drop(why_unreadable(error, "image or mask cannot be read"), str(error))
            return
        except RejectedObject as reason:
            where = str(reason.__cause__ or name)
            log.drop(str(reason), where, shown=RejectedSample(path, where))
            return
        objects = list(self._parts(mask))
        if not objects:
            where = item.image.mask.name if item.image.mask is not None else name
            log.drop("mask has no object", where, shown=RejectedSample(path, where))
        for number, own_name, part in objects:
            source = f"{name}#{own_name}"
            try:
                label = self._label(item, number, part, semantic)
                yield extract_from_image(image, part, Annotation(label, source), self.rules)
            except RejectedObject as reason:
                shown = RejectedSample(path, source, segmentation=segmentation_as_json(part))
                log.drop(str(reason), source, shown=shown)

    def _read(
        self, item: _Item, log: BuildLog, notes: Repairs
    ) -> tuple[NDArray[np.uint8], ObjectNumbers, NDArray[np.int32] | None]:
        """Pixels, mask, and semantic mask."""
        assert item.image.mask is not None
        if self.classes is not None and self.semantic:
            mask = ObjectNumbers(self.classes.map.read_mask(item.image.mask))
        else:
            mask, repair = read_object_numbers(item.image.mask).with_object_white(self.dark)
            log.repair([repair] if repair else [], item.image.name)
        height, width = mask.numbers.shape
        image = read_image_like(item.image.path, height, width, self.rules.levels, notes)
        semantic = None
        if self.classes is not None and item.class_mask is not None:
            semantic = self.classes.map.read_mask(item.class_mask)
        for other in (mask.numbers, semantic):
            if other is not None and image.shape[:2] != other.shape:
                sizes = "image {}x{}, mask {}x{}".format(*image.shape[:2], *other.shape)
                raise RejectedObject("image and mask differ in size") from ValueError(f"{item.image.name}: {sizes}")
        return image, mask, semantic

    def _parts(self, mask: ObjectNumbers) -> Iterator[tuple[int, str, NDArray[np.uint8]]]:
        """Number, name and mask, uint8 0 and 1, of each object."""
        for number in np.unique(mask.numbers).tolist():
            if self.classes.map.is_background(number) if self.classes and self.semantic else number == 0:
                continue
            whole = (mask.numbers == number).astype(np.uint8)
            if not self.split:
                yield number, str(number), whole
                continue
            count, parts = cv2.connectedComponents(whole, connectivity=8)
            for part in range(1, count):
                yield number, f"{number}.{part}", (parts == part).astype(np.uint8)

    def _label(self, item: _Item, number: int, part: NDArray[np.uint8], semantic: NDArray[np.int32] | None) -> int:
        if self.classes is None:
            assert item.label is not None
            return item.label
        if semantic is not None:
            found, counts = np.unique(semantic[part > 0], return_counts=True)
            number = int(found[counts.argmax()])
        return self.classes.label(number)

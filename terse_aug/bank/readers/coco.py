"""Builds a bank from COCO annotations. Imports numpy only, beside the parts of this package."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.build.chunks import Source
from terse_aug.bank.build.contact_sheets import check_target
from terse_aug.bank.build.pipeline import build_from_source
from terse_aug.bank.build.report import BY_MASK, BuildLog, BuildReport, Progress
from terse_aug.bank.build.workers import check_jobs
from terse_aug.bank.extract import Annotation, ExtractionRules, RejectedObject, extract_from_image
from terse_aug.bank.inputs.coco_json import Coco, exhibit, file_name, side_of
from terse_aug.bank.inputs.file_names import Files
from terse_aug.bank.inputs.image_list import ImageList
from terse_aug.bank.inputs.images import read_image_like
from terse_aug.bank.inputs.masks import NO_MASK, MaskInFile, has_mask, segmentation_to_mask
from terse_aug.bank.inputs.repair import Notes, clipped_box, mended_object
from terse_aug.bank.segmenters.box import BoxMaskMethod, BoxMasks
from terse_aug.bank.storage.writer import BankWriter
from terse_aug.structures.foreground import Foreground


def build_from_coco(
    annotations: str | Path | Mapping[str, Any],
    images: str | Path,
    out: str | Path,
    *,
    categories: Collection[str] | None = None,
    image_list: Iterable[str] | str | Path | None = None,
    boxes: BoxMasks | str | BoxMaskMethod | None = None,
    rules: ExtractionRules | None = None,
    rejected_sheet: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    jobs: int | None = None,
) -> BuildReport:
    """Build a bank from a COCO JSON with masks (polygons or RLE), or of objects with boxes only where a way is given.

    Labels are the JSON's category ids, whatever gaps they have; :meth:`ForegroundBank.relabel` gives them the
    detector's numbers. Keypoints come along where the JSON has them. Left out, and counted by reason: crowds, boxes
    without mask (unless ``boxes`` says how they are cut out), broken masks, masks that disagree with their box,
    objects too small, images missing, unreadable or of another size than the JSON says. Mended, and counted: what is
    odd but can mean one thing only, such as numbers and ids written as text, and file names of another spelling than
    the disk's.

    A build that was stopped (Ctrl-C, a kill, a power cut) leaves what it has in a hidden file beside ``out``, and the
    same build goes on from there; see ``docs/banks.md``.

    Args:
        annotations: the JSON file, or what such a file holds.
        images: folder that the JSON's file names are relative to.
        out: the bank to write.
        categories: names to keep; all by default.
        include: image names to use, see :class:`ImageList`; all by default.
        boxes: how objects of which only the box is known are cut out: ``"grabcut"``, ``"ellipse"``, ``"box"``, a
            function of image and box such as a segmentation model, or :class:`BoxMasks` for more. By default they
            are left out.
        rules: what is kept, see :class:`ExtractionRules`.
        drops: where to draw pictures of what was left out, by reason, and of some that were kept: ``NAME.png`` for
            one sheet, or a folder for a file of each reason.
        overwrite: replace an existing bank, and pictures.
        progress: called with images done and in total.
        jobs: processes that cut objects out. By default as many as there are cores, at most 8, once it has shown that
            the build takes longer than they take to start; one where ``boxes`` is a function, which each process has a
            copy of where a number is given. The bank is the same whatever their number.

    Raises:
        FileNotFoundError: the JSON or the folder does not exist.
        FileExistsError: ``out`` or ``rejected_sheet`` exists and ``overwrite`` is false.
        ValueError: the file is no COCO JSON of instances, a name in ``categories`` is unknown, the
            categories have different keypoints, or nothing was kept.
        OSError: the disk is full or cannot be written, or a process died (``ChildProcessError``).
    """
    folder = Path(images)
    if isinstance(annotations, Mapping):
        data, name = Coco.in_memory(annotations, "the annotations"), _described(annotations)
    else:
        data, name = Coco.read(Path(annotations)), Path(annotations).name
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder of images at {folder}, found none")
    chosen = Choice(categories, image_list, boxes, rules, rejected_sheet, overwrite, progress, jobs)
    return build_annotated(data, folder, out, {"from": "coco", "annotations": name}, chosen)


@dataclass(frozen=True)
class Choice:
    """What builders from annotations have in common; see :func:`build_from_coco`."""

    categories: Collection[str] | None = None
    image_list: Iterable[str] | str | Path | None = None
    boxes: BoxMasks | str | BoxMaskMethod | None = None
    rules: ExtractionRules | None = None
    rejected_sheet: str | Path | None = None
    overwrite: bool = False
    progress: Progress | None = None
    jobs: int | None = None

    def __post_init__(self) -> None:
        check_jobs(self.jobs)

    @property
    def box_masks(self) -> BoxMasks | None:
        """How boxes are cut out."""
        return self.boxes if self.boxes is None or isinstance(self.boxes, BoxMasks) else BoxMasks(self.boxes)

    def check(self, out: Path) -> None:
        """What can be said of it before anything is read.

        Raises:
            FileNotFoundError: the list of images to include does not exist.
            FileExistsError: ``out`` or ``rejected_sheet`` exists and is not to be replaced.
            ValueError: a way to cut out boxes that there is not, or a list that is none.
        """
        if self.image_list is None or isinstance(self.image_list, str | Path):  # else it may be read once only
            ImageList(self.image_list)
        _ = self.box_masks
        if out.exists() and not self.overwrite:
            raise FileExistsError(f"{out} exists; give overwrite=True (--overwrite) to replace it")
        if self.rejected_sheet is not None:
            check_target(Path(self.rejected_sheet), self.overwrite)


def build_annotated(
    data: Coco,
    folder: Path,
    out: str | Path,
    built: dict[str, Any],
    choice: Choice,
    before: BuildLog | None = None,
) -> BuildReport:
    """Build a bank from annotations that were read.

    Args:
        data: the annotations.
        folder: of the images.
        out: the bank to write.
        built: how, for the bank's own record.
        choice: what to take, and how.
        before: what was left out and mended in reading.

    Raises:
        FileExistsError, ValueError, OSError: as :func:`build_from_coco`.
    """
    rules, included = choice.rules or ExtractionRules(), ImageList(choice.image_list)
    boxes = choice.box_masks
    wanted = data.categories if choice.categories is None else data.chosen(choice.categories)
    keypoint_names = data.keypoint_names(wanted)
    writer = BankWriter(out, wanted, keypoint_names=keypoint_names, overwrite=choice.overwrite)
    files = Files(folder, [file_name(image) for image in data.images.values()])
    ledger = BuildLog()
    for known in (before, data.ledger):
        if known is not None:
            ledger.merge(known)
    groups = data.eligible(wanted, included, boxes is not None, ledger)
    how = built | {"images": folder.name} | ({} if boxes is None else boxes.record) | vars(rules)
    source = Source(
        groups,
        _Extractor(folder, rules, boxes, len(keypoint_names)),
        None if boxes is not None and callable(boxes.way) else how,
        ledger,
        prepare=lambda group: _Picture.of(group[0], group[1], files),
        object_count=lambda group: len(group[1]),
    )
    return build_from_source(
        writer,
        source,
        how,
        jobs=choice.jobs,
        rejected_sheet=choice.rejected_sheet,
        progress=choice.progress,
        locate=lambda name: folder / files.find(str(name))[0],
    )


def _described(content: Mapping[str, Any]) -> str:
    info = content.get("info")
    return str(info.get("description", "")) if isinstance(info, Mapping) else ""


class _Picture(NamedTuple):
    """An image to cut objects out of.

    Attributes:
        image: as the annotations have it.
        objects: of it.
        name: of its file; ``None`` where it is not clear which is meant.
        difference: between that and the name in the annotations, if there is one.
    """

    image: dict[str, Any]
    objects: list[dict[str, Any]]
    name: str | None
    difference: str | None

    @classmethod
    def of(cls, image: dict[str, Any], objects: list[dict[str, Any]], files: Files) -> _Picture:
        """With its file."""
        try:
            return cls(image, objects, *files.find(file_name(image)))
        except LookupError as error:
            return cls(image, objects, None, str(error))


@dataclass(frozen=True)
class _Extractor:
    """Cuts the objects of one image after the other.

    Attributes:
        folder: of the images.
        rules: what is kept.
        boxes: how boxes are cut out.
        keypoint_count: of each object.
    """

    folder: Path
    rules: ExtractionRules
    boxes: BoxMasks | None
    keypoint_count: int

    def files(self, unit: _Picture) -> Iterator[Path]:
        """The image, and masks of objects that are in files of their own."""
        if unit.name is not None:
            yield self.folder / unit.name
        masks = (entry.get("segmentation") for entry in unit.objects)
        yield from dict.fromkeys(mask.path for mask in masks if isinstance(mask, MaskInFile))

    def objects(self, unit: _Picture, ledger: BuildLog) -> Iterator[Foreground]:
        """The cut-outs of an image."""
        image, said = unit.image, file_name(unit.image)
        notes: Notes = set()
        try:
            name, pixels = self._read(unit, notes)
        except RejectedObject as reason:
            shown = exhibit(image, unit.objects[0])
            ledger.drop(str(reason), str(reason.__cause__ or said), len(unit.objects), shown=shown)
            return
        ledger.repair(notes, said)
        for entry in unit.objects:
            source = f"{name}#{entry.get('id')}"
            notes = set()
            try:
                cut, way = self._cut(mended_object(entry, notes), pixels, source, notes)
            except RejectedObject as reason:
                ledger.drop(str(reason), source, shown=exhibit(image, entry))
                continue
            ledger.repair(notes, source)
            ledger.mask_sources[way] += 1
            yield cut

    def _read(self, unit: _Picture, notes: Notes) -> tuple[str, NDArray[np.uint8]]:
        """The name of an image on disk, and its pixels."""
        if unit.name is None:
            raise RejectedObject(f"image file is missing, and it is not clear which other is meant ({unit.difference})")
        notes |= {unit.difference} if unit.difference else set()
        sides = (side_of(unit.image, side, notes) for side in ("height", "width"))
        return unit.name, _read(self.folder / unit.name, *sides)

    def _cut(
        self, entry: dict[str, Any], pixels: NDArray[np.uint8], source: str, notes: Notes
    ) -> tuple[Foreground, str]:
        """A cut-out, and the way it was made."""
        annotation = _annotation(entry, source, self.keypoint_count, notes)
        if annotation.box is not None:
            annotation = replace(annotation, box=clipped_box(annotation.box, pixels.shape, notes))
        if self.boxes is None or has_mask(entry.get("segmentation")):
            mask = segmentation_to_mask(entry.get("segmentation"), *pixels.shape[:2])
            return extract_from_image(pixels, mask, annotation, self.rules), BY_MASK
        if annotation.box is None:
            raise RejectedObject(NO_MASK)
        mask, way = self.boxes.alpha(pixels, annotation.box)
        return extract_from_image(pixels, mask, annotation, self.rules, soft=True), way


def _read(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    try:
        pixels = read_image_like(path, height, width)
    except FileNotFoundError as error:
        raise RejectedObject("image file is missing") from error
    except ValueError as error:
        raise RejectedObject("image file cannot be read") from error
    if height and width and pixels.shape[:2] != (height, width):
        raise RejectedObject("image file has another size than the JSON says") from ValueError(
            f"{path.name}: file {pixels.shape[0]}x{pixels.shape[1]}, JSON {height}x{width}"
        )
    return pixels


def _annotation(entry: dict[str, Any], source: str, keypoint_count: int, notes: Notes) -> Annotation:
    box = entry.get("bbox")
    if box is not None:
        try:
            x, y, width, height = box
            box = (float(x), float(y), float(width), float(height))
        except (TypeError, ValueError, OverflowError) as error:
            raise RejectedObject("box is not x, y, width, height") from error
    keypoints = entry.get("keypoints")
    if keypoints and not keypoint_count:
        notes.add("keypoints of a category that names none were left out")
    if not keypoints or not keypoint_count:
        return Annotation(int(entry["category_id"]), source, box)
    try:
        points = np.asarray(keypoints, dtype=np.float64).reshape(keypoint_count, 3)
    except (ValueError, TypeError, OverflowError) as error:
        raise RejectedObject("keypoints are not x, y, visibility for each name of the category") from error
    if not (np.abs(points) <= np.finfo(np.float32).max).all():
        raise RejectedObject("keypoints are not finite")
    return Annotation(int(entry["category_id"]), source, box, points.astype(np.float32))

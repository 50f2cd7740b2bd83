"""Builds a bank from COCO annotations. Imports numpy only, beside the parts of this package."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terse_aug.bank._box_masks import BoxMasks, MaskOfBox
from terse_aug.bank._cut import Annotation, CutRules, Unusable, cut_from_image
from terse_aug.bank._foreground import Foreground
from terse_aug.bank._images import read_image_like
from terse_aug.bank._include import Include
from terse_aug.bank._report import BY_MASK, BuildReport, Dropped, Ledger, Progress, build
from terse_aug.bank._segmentation import NO_MASK, has_mask, segmentation_to_mask
from terse_aug.bank._selection import listed
from terse_aug.bank._writer import BankWriter


def build_from_coco(
    annotations: str | Path | Mapping[str, Any],
    images: str | Path,
    out: str | Path,
    *,
    categories: Collection[str] | None = None,
    include: Iterable[str] | str | Path | None = None,
    boxes: BoxMasks | str | MaskOfBox | None = None,
    rules: CutRules | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Build a bank from a COCO JSON with masks (polygons or RLE), or of objects with boxes only where a way is given.

    Labels are the JSON's category ids, whatever gaps they have; :meth:`ForegroundBank.relabel` gives them the
    detector's numbers. Keypoints come along where the JSON has them. Left out, and counted by reason: crowds, boxes
    without mask (unless ``boxes`` says how they are cut out), broken masks, masks that disagree with their box,
    objects too small, images missing, unreadable or of another size than the JSON says.

    Args:
        annotations: the JSON file, or what such a file holds.
        images: folder that the JSON's file names are relative to.
        out: the bank to write.
        categories: names to keep; all by default.
        include: image names to use, see :class:`Include`; all by default.
        boxes: how objects of which only the box is known are cut out: ``"grabcut"``, ``"ellipse"``, ``"box"``, a
            function of image and box such as a segmentation model, or :class:`BoxMasks` for more. By default they
            are left out.
        rules: what is kept, see :class:`CutRules`.
        overwrite: replace an existing bank.
        progress: called with images done and in total.

    Raises:
        FileNotFoundError: the JSON or the folder does not exist.
        FileExistsError: ``out`` exists and ``overwrite`` is false.
        ValueError: the file is no COCO JSON of instances, a name in ``categories`` is unknown, the
            categories have different keypoints, or nothing was kept.
        OSError: the disk is full or cannot be written.
    """
    folder = Path(images)
    if isinstance(annotations, Mapping):
        data, name = Coco.of(annotations, "the annotations"), _described(annotations)
    else:
        data, name = Coco.read(Path(annotations)), Path(annotations).name
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder of images at {folder}, found none")
    chosen = Choice(categories, include, boxes, rules, overwrite, progress)
    return build_annotated(data, folder, out, {"from": "coco", "annotations": name}, chosen)


@dataclass(frozen=True)
class Choice:
    """What builders from annotations have in common; see :func:`build_from_coco`."""

    categories: Collection[str] | None = None
    include: Iterable[str] | str | Path | None = None
    boxes: BoxMasks | str | MaskOfBox | None = None
    rules: CutRules | None = None
    overwrite: bool = False
    progress: Progress | None = None

    @property
    def box_masks(self) -> BoxMasks | None:
        """How boxes are cut out."""
        return self.boxes if self.boxes is None or isinstance(self.boxes, BoxMasks) else BoxMasks(self.boxes)

    def check(self, out: Path) -> None:
        """What can be said of it before anything is read.

        Raises:
            FileNotFoundError: the list of images to include does not exist.
            FileExistsError: ``out`` exists and is not to be replaced.
            ValueError: a way to cut out boxes that there is not, or a list that is none.
        """
        if self.include is None or isinstance(self.include, str | Path):  # else it may be read once only
            Include(self.include)
        _ = self.box_masks
        if out.exists() and not self.overwrite:
            raise FileExistsError(f"{out} exists; give overwrite=True (--overwrite) to replace it")


def build_annotated(
    data: Coco,
    folder: Path,
    out: str | Path,
    built: dict[str, Any],
    choice: Choice,
    before: Dropped | None = None,
) -> BuildReport:
    """Build a bank from annotations that were read.

    Args:
        data: the annotations.
        folder: of the images.
        out: the bank to write.
        built: how, for the bank's own record.
        choice: what to take, and how.
        before: what was left out in reading.

    Raises:
        FileExistsError, ValueError, OSError: as :func:`build_from_coco`.
    """
    rules, included = choice.rules or CutRules(), Include(choice.include)
    boxes = choice.box_masks
    wanted = data.categories if choice.categories is None else data.chosen(choice.categories)
    keypoint_names = data.keypoint_names(wanted)
    writer = BankWriter(out, wanted, keypoint_names=keypoint_names, overwrite=choice.overwrite)

    def cut_outs(ledger: Ledger) -> Iterator[Foreground]:
        if before is not None:
            ledger.take(before)
        groups = data.eligible(wanted, included, boxes is not None, ledger)
        for done, (image, objects) in enumerate(groups, 1):
            yield from _objects(folder, image, objects, rules, boxes, ledger, len(keypoint_names))
            if choice.progress is not None:
                choice.progress(done, len(groups))

    ways = {} if boxes is None else boxes.record
    return build(writer, cut_outs, wanted, built | {"images": folder.name} | ways | vars(rules))


def _described(content: Mapping[str, Any]) -> str:
    info = content.get("info")
    return str(info.get("description", "")) if isinstance(info, Mapping) else ""


@dataclass(frozen=True)
class Coco:
    """The parts of a COCO JSON that a bank needs."""

    images: dict[Any, dict[str, Any]]
    objects: list[dict[str, Any]]
    raw_categories: dict[int, dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Coco:
        if not path.is_file():
            raise FileNotFoundError(f"expected a COCO JSON file at {path}, found none")
        try:
            content = json.loads(path.read_bytes())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"expected a COCO JSON file, got {path}, which is not JSON ({error})") from error
        return cls.of(content, str(path))

    @classmethod
    def of(cls, content: Any, path: str) -> Coco:
        """What a JSON holds; messages call it by the path."""
        lists = [content.get(key) if isinstance(content, Mapping) else None for key in _LISTS]
        if not all(
            isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries) for entries in lists
        ):
            raise ValueError(
                f"expected a COCO JSON with lists of {', '.join(_LISTS)} (an instances or keypoints file), got {path}"
            )
        images, objects, categories = lists
        try:
            return cls(
                {image["id"]: image for image in images or ()},
                objects or [],
                {int(category["id"]): category for category in categories or () if str(category["name"])},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: an image or category lacks its id or name ({error!r})") from error

    @property
    def categories(self) -> dict[int, str]:
        return {label: str(category["name"]) for label, category in self.raw_categories.items()}

    def chosen(self, names: Collection[str]) -> dict[int, str]:
        names = [names] if isinstance(names, str) else list(names)
        known = self.categories
        unknown = [name for name in names if name not in known.values()]
        if unknown or not names:
            raise ValueError(
                f"no such categories: {listed(unknown) or '(none asked for)'}; "
                f"the JSON has {listed(sorted(known.values()))}"
            )
        return {label: name for label, name in known.items() if name in names}

    def keypoint_names(self, wanted: dict[int, str]) -> tuple[str, ...]:
        named_by = {
            tuple(str(name) for name in self.raw_categories[label]["keypoints"]): wanted[label]
            for label in wanted
            if self.raw_categories[label].get("keypoints")
        }
        if len(named_by) > 1:
            raise ValueError(
                f"the categories {listed(list(named_by.values()))} have different keypoints; "
                "build one bank each, choosing by categories (--category)"
            )
        return next(iter(named_by), ())

    def eligible(
        self, wanted: dict[int, str], include: Include, boxes: bool, dropped: Dropped
    ) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Images with the objects worth a look, in the JSON's order; the others are counted."""
        included = {key: str(image.get("file_name", "")) in include for key, image in self.images.items()}
        groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for entry in self.objects:
            image_id, category_id = entry.get("image_id"), entry.get("category_id")
            reason = self._reason_against(entry, wanted, included, boxes)
            if reason is None:
                groups[image_id].append(entry)
            else:
                dropped.add(reason, f"annotation {entry.get('id')} (image {image_id}, category {category_id})")
        include.report_unmatched(dropped)
        return [(image, groups[key]) for key, image in self.images.items() if key in groups]

    def _reason_against(
        self, entry: dict[str, Any], wanted: dict[int, str], included: dict[Any, bool], boxes: bool
    ) -> str | None:
        if not isinstance(entry.get("image_id"), int | float | str) or entry["image_id"] not in self.images:
            return "image is not in the JSON"
        category = entry.get("category_id")
        if not isinstance(category, int | float) or category not in self.raw_categories:
            return "category is not in the JSON"
        if entry["category_id"] not in wanted:
            return "category is not in `categories`"
        if not included[entry["image_id"]]:
            return "image is not in `include`"
        if entry.get("iscrowd"):
            return "crowd region, not one object (iscrowd)"
        return None if has_mask(entry.get("segmentation")) or (boxes and entry.get("bbox")) else NO_MASK


_LISTS = ("images", "annotations", "categories")


def _objects(
    folder: Path,
    image: dict[str, Any],
    objects: list[dict[str, Any]],
    rules: CutRules,
    boxes: BoxMasks | None,
    ledger: Ledger,
    keypoint_count: int,
) -> Iterator[Foreground]:
    """The cut-outs of one image."""
    name = str(image.get("file_name", ""))
    try:
        pixels = _read(folder / name, image)
    except Unusable as reason:
        ledger.add(str(reason), str(reason.__cause__ or name), len(objects))
        return
    for entry in objects:
        source = f"{name}#{entry.get('id')}"
        try:
            annotation = _annotation(entry, source, keypoint_count)
            if from_box := boxes is not None and not has_mask(entry.get("segmentation")):
                assert boxes is not None
                assert annotation.box is not None
                mask, way = boxes.alpha(pixels, annotation.box)
            else:
                mask, way = segmentation_to_mask(entry.get("segmentation"), *pixels.shape[:2]), BY_MASK
            cut = cut_from_image(pixels, mask, annotation, rules, soft=from_box)
        except Unusable as reason:
            ledger.add(str(reason), source)
            continue
        ledger.cut_by[way] += 1
        yield cut


def _read(path: Path, image: dict[str, Any]) -> NDArray[np.uint8]:
    height, width = image.get("height"), image.get("width")
    try:
        pixels = read_image_like(path, height or 0, width or 0)
    except FileNotFoundError as error:
        raise Unusable("image file is missing") from error
    except ValueError as error:
        raise Unusable("image file cannot be read") from error
    if height and width and pixels.shape[:2] != (height, width):
        raise Unusable("image file has another size than the JSON says") from ValueError(
            f"{path.name}: file {pixels.shape[0]}x{pixels.shape[1]}, JSON {height}x{width}"
        )
    return pixels


def _annotation(entry: dict[str, Any], source: str, keypoint_count: int) -> Annotation:
    box = entry.get("bbox")
    if box is not None:
        try:
            x, y, width, height = box
            box = (float(x), float(y), float(width), float(height))
        except (TypeError, ValueError, OverflowError) as error:
            raise Unusable("box is not x, y, width, height") from error
    keypoints = entry.get("keypoints")
    if not keypoints:
        return Annotation(int(entry["category_id"]), source, box)
    try:
        points = np.asarray(keypoints, dtype=np.float32).reshape(keypoint_count, 3)
    except (ValueError, TypeError) as error:
        raise Unusable("keypoints are not x, y, visibility for each name of the category") from error
    if not np.isfinite(points).all():
        raise Unusable("keypoints are not finite")
    return Annotation(int(entry["category_id"]), source, box, points)

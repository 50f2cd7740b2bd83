"""Collects annotations of formats that identify classes by name, and converts shapes to COCO's form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from terse_aug.bank.build.report import BuildLog, BuildReport
from terse_aug.bank.extract import RejectedObject, tight_box
from terse_aug.bank.inputs.coco_json import CocoAnnotations, rejected_sample
from terse_aug.bank.inputs.masks import segmentation_to_mask
from terse_aug.bank.inputs.repair import Malformed, as_number
from terse_aug.bank.readers.annotated_images import EMBEDDED, AnnotationOptions, build_from_annotations

SHARED_IMAGE = "image belongs to another annotation file"
"""Reason to reject the objects of an annotation file."""
SHOWS_NO_OBJECT = "shape is a line or a point, which shows no object"
"""Reason to reject a shape."""


@dataclass
class AnnotationCollector:
    """Collects images and objects.

    Attributes:
        names: label of each class name; ``None`` to label the classes that occur 1, 2, ... in the order of the names.
        log: what was rejected and repaired.
    """

    names: Mapping[str, int] | None = None
    log: BuildLog = field(default_factory=BuildLog)
    _images: list[dict[str, Any]] = field(default_factory=list)
    _objects: list[dict[str, Any]] = field(default_factory=list)
    _groups: dict[Any, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def with_names(cls, names: Sequence[str] | None) -> AnnotationCollector:
        """A collector for classes labelled 1, 2, ... in the order of ``names``, each once, or for those that occur."""
        if names is None:
            return cls()
        if isinstance(names, str) or not all(names) or len(set(names)) < len(names):
            raise ValueError(f"expected a list of class names, each once, got {names!r}")
        return cls({name: label for label, name in enumerate(names, 1)})

    def add_image(
        self, name: str, height: int | None = None, width: int | None = None, embedded_in: Path | None = None
    ) -> int:
        """Add an image, which may be in a JSON file as ``imageData``; returns its number."""
        size = {"height": height, "width": width} if height and width else {}
        place = {} if embedded_in is None else {EMBEDDED: embedded_in}
        self._images.append({"id": len(self._images), "file_name": name, **size, **place})
        return len(self._images) - 1

    def add_object(self, image: int, category: str, number: int | str, **shape: Any) -> None:
        """Add an object of an image: ``segmentation`` and ``bbox`` as in a COCO JSON, or one of them, or neither."""
        if self.names is not None and category not in self.names:
            self.log.drop("class is not in `names`", f"{category} in {self._images[image]['file_name']}")
            return
        known = {key: value for key, value in shape.items() if value is not None}
        self._objects.append({"id": number, "image_id": image, "category": category, "iscrowd": 0} | known)

    def add_part(self, image: int, category: str, group: Any, number: int | str, **shape: Any) -> None:
        """Add an object, or a part of it if one of its image and category has the same group; ``None`` for no group.

        Polygons and masks of a group are its mask. A box that holds all of them is the box of the object; another box
        beside them is a part of its mask.
        """
        if group is None or (self.names is not None and category not in self.names):
            self.add_object(image, category, number, **shape)
        elif (known := self._groups.get((image, category, group))) is None:
            self.add_object(image, category, number, parts=[shape])
            self._groups[image, category, group] = self._objects[-1]
        else:
            known["parts"].append(shape)

    def reject(self, reason: str, where: str, image: int, **shape: Any) -> None:
        """Count an object of an image that cannot be used; ``bbox`` and ``segmentation`` as far as they are known."""
        shown = rejected_sample(self._images[image], {"id": where} | shape)
        self.log.drop(reason, where, shown=replace(shown, caption=where))

    def reject_images(self, images: Mapping[int, str], reason: str) -> None:
        """Reject the objects of images, by number; with the files that annotate them."""
        for entry in self._objects:
            if entry["image_id"] in images:
                self.reject(reason, f"{images[entry['image_id']]}, object {entry['id']}", entry["image_id"])
        self._objects = [entry for entry in self._objects if entry["image_id"] not in images]

    def reject_shared_images(self, files_of_image: Mapping[str, Sequence[tuple[int, Path]]]) -> None:
        """Reject images that annotation files of several subfolders share because their own are missing.

        ``files_of_image`` has, by image, the number of each and the file that annotates it.
        """
        used = self.images_with_objects()
        shared: dict[int, str] = {}
        for files in files_of_image.values():
            with_objects = [(number, file) for number, file in files if number in used]
            if len({file.parent for _, file in with_objects}) > 1:
                shared |= {number: file.as_posix() for number, file in with_objects}
        self.reject_images(shared, SHARED_IMAGE)

    def images_with_objects(self) -> set[int]:
        """Numbers of the images that have objects."""
        return {entry["image_id"] for entry in self._objects}

    def build(self, kind: str, name: str, folder: Path, out: str | Path, options: AnnotationOptions) -> BuildReport:
        """Build a bank from the collected annotations.

        Args:
            kind: name of the format, for the bank's record.
            name: of the data set, likewise.
            folder: of the images.
            out: the bank to write.
            options: of the user.

        Raises:
            ValueError: there is no object; and as :class:`AnnotationOptions`.
        """
        if not self._objects:
            count = len(self._images)
            nothing = f"the annotations of {count} images are empty" if count else "there is none in any file"
            why = "; ".join(line.strip() for line in self.log.rejected.lines()) or nothing
            raise ValueError(f"{name}: expected annotated objects, found none that can be read: {why}")
        for entry in self._groups.values():
            entry.update(join_parts(entry.pop("parts")))
        self._groups.clear()
        labels = self.names
        if labels is None:
            labels = {own: label for label, own in enumerate(sorted({own["category"] for own in self._objects}), 1)}
        content = {
            "images": self._images,
            "annotations": [entry | {"category_id": labels[entry["category"]]} for entry in self._objects],
            "categories": [{"id": label, "name": own} for own, label in labels.items()],
        }
        data = CocoAnnotations.parse(content, name)
        record = {"from": kind, "annotations": name}
        return build_from_annotations(data, folder, out, record, options, self.log)


def join_parts(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One ``segmentation``, ``bbox``, or both, of the parts of an object, which have one of them each."""
    masks: list[Any] = []
    for part in parts:
        own = part.get("segmentation") or []
        masks += own if isinstance(own, list) else [own]
    boxes = [part["bbox"] for part in parts if part.get("bbox") is not None]
    if not masks:
        return {"bbox": _around(boxes)} if boxes else {}
    if not boxes:
        return {"segmentation": masks}
    extents = [extent for mask in masks if (extent := _extent(mask)) is not None]
    around = _around(extents) if extents else None
    holding = [box for box in boxes if around is not None and _holds(box, around)]
    masks += [box_to_polygon(*box) for box in boxes if box not in holding]
    return {"segmentation": masks} | ({"bbox": holding[0]} if len(holding) == len(boxes) == 1 else {})


def _extent(mask: Any) -> list[float] | None:
    """The box of a polygon or of a mask in run lengths; ``None`` if it is broken or empty."""
    if isinstance(mask, list):
        return around_points(mask) if len(mask) > 1 else None
    try:
        tight = tight_box(segmentation_to_mask(mask, *mask["size"]))
    except RejectedObject:
        return None
    return None if tight is None else [*map(float, tight)]


def around_points(points: Sequence[float]) -> list[float]:
    """The box, x, y, width, height, around points x, y, x, y, ..."""
    xs, ys = points[::2], points[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _around(boxes: Sequence[Sequence[float]]) -> list[float]:
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, bottom = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    return [left, top, right - left, bottom - top]


def _holds(outer: Sequence[float], inner: Sequence[float]) -> bool:
    """Whether a box holds another, up to two pixels, as drawn by hand."""
    both = _around([outer, inner])
    return both[2] <= outer[2] + 2 and both[3] <= outer[3] + 2


def box_to_polygon(x: float, y: float, width: float, height: float, angle: float = 0.0) -> list[float]:
    """The corners of a box: x, y, width, height in px, and its rotation about its centre in radians, clockwise."""
    across, down = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    points: list[float] = []
    for right, below in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        for middle, along, other in zip((x + width / 2, y + height / 2), across, down, strict=True):
            points.append(middle + right * width / 2 * along + below * height / 2 * other)
    return points


def points_to_polygon(points: Any) -> list[float]:
    """Pairs of coordinates as a polygon of COCO: x, y, x, y, ...; raises :class:`Malformed` for anything else."""
    if not isinstance(points, Sequence) or isinstance(points, str):
        raise Malformed("points are no list")
    flat: list[float] = []
    for point in points:
        if not isinstance(point, Sequence) or isinstance(point, str) or len(point) != 2:
            raise Malformed("a point is not x, y")
        flat += [as_number(point[0]), as_number(point[1])]
    return flat


def ellipse_to_polygon(x: float, y: float, radius_x: float, radius_y: float, angle: float = 0.0) -> list[float]:
    """64 points of an ellipse: its centre and half axes in px, and its rotation in radians, clockwise in an image."""
    points: list[float] = []
    for step in range(64):
        turn = 2 * math.pi * step / 64
        right, down = radius_x * math.cos(turn), radius_y * math.sin(turn)
        points += [
            x + right * math.cos(angle) - down * math.sin(angle),
            y + right * math.sin(angle) + down * math.cos(angle),
        ]
    return points

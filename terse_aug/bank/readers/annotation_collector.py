"""Collects annotations of formats that identify classes by name, and converts shapes to COCO's form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from terse_aug.bank.build.report import BuildLog, BuildReport
from terse_aug.bank.inputs.coco_json import CocoAnnotations, rejected_sample
from terse_aug.bank.inputs.repair import Malformed, as_number
from terse_aug.bank.readers.annotated_images import AnnotationOptions, build_from_annotations

SHARED_IMAGE = "image belongs to another annotation file"
"""Reason to reject the objects of an annotation file."""


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

    @classmethod
    def with_names(cls, names: Sequence[str] | None) -> AnnotationCollector:
        """A collector for classes labelled 1, 2, ... in the order of ``names``, each once, or for those that occur."""
        if names is None:
            return cls()
        if isinstance(names, str) or not all(names) or len(set(names)) < len(names):
            raise ValueError(f"expected a list of class names, each once, got {names!r}")
        return cls({name: label for label, name in enumerate(names, 1)})

    def add_image(self, name: str, height: int | None = None, width: int | None = None) -> int:
        """Add an image; returns its number."""
        size = {"height": height, "width": width} if height and width else {}
        self._images.append({"id": len(self._images), "file_name": name, **size})
        return len(self._images) - 1

    def add_object(self, image: int, category: str, number: int | str, **shape: Any) -> None:
        """Add an object of an image: ``segmentation`` and ``bbox`` as in a COCO JSON, or one of them, or neither."""
        if self.names is not None and category not in self.names:
            self.log.drop("class is not in `names`", f"{category} in {self._images[image]['file_name']}")
            return
        known = {key: value for key, value in shape.items() if value is not None}
        self._objects.append({"id": number, "image_id": image, "category": category, "iscrowd": 0} | known)

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

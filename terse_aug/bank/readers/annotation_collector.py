"""What all annotation formats become: the content of a COCO JSON. Imports the standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from terse_aug.bank.build.report import BuildLog
from terse_aug.bank.inputs.coco_json import exhibit
from terse_aug.bank.inputs.repair import Malformed, as_number

CLAIMED = "image is that of another file of annotations"


@dataclass(frozen=True)
class Reading:
    """What was read of a data set.

    Attributes:
        kind: of the format, for the bank's record of how it was built.
        name: of what was read, likewise.
        content: as of a COCO JSON; a segmentation may also be a :class:`terse_aug.bank.inputs.masks.MaskInFile`.
        folder: that the images' names are relative to.
        ledger: what could not be read, and what was mended.
    """

    kind: str
    name: str
    content: dict[str, Any]
    folder: Path
    ledger: BuildLog


@dataclass
class Collector:
    """Collects images and objects of which only the class name is known.

    Attributes:
        names: label of each class name, where the format or the user numbers them; else those that are met are numbered
            in the end, from 1 on, in the order of the names.
    """

    names: Mapping[str, int] | None = None
    ledger: BuildLog = field(default_factory=BuildLog)
    _images: list[dict[str, Any]] = field(default_factory=list)
    _objects: list[dict[str, Any]] = field(default_factory=list)

    def image(self, name: str, height: int | None = None, width: int | None = None) -> int:
        """Add an image; its number."""
        size = {"height": height, "width": width} if height and width else {}
        self._images.append({"id": len(self._images), "file_name": name, **size})
        return len(self._images) - 1

    def object(self, image: int, category: str, number: int | str, **shape: Any) -> None:
        """Add an object of an image: ``segmentation`` and ``bbox`` as in a COCO JSON, or one of them, or neither."""
        if self.names is not None and category not in self.names:
            self.ledger.drop("class is not in `names`", f"{category} in {self._images[image]['file_name']}")
            return
        known = {key: value for key, value in shape.items() if value is not None}
        self._objects.append({"id": number, "image_id": image, "category": category, "iscrowd": 0} | known)

    def drop(self, reason: str, where: str, image: int, **shape: Any) -> None:
        """Count what cannot be an object of an image; ``bbox`` and ``segmentation`` as far as they are known."""
        shown = exhibit(self._images[image], {"id": where} | shape)
        self.ledger.drop(reason, where, shown=replace(shown, caption=where))

    def reading(self, kind: str, name: str, folder: Path) -> Reading:
        """All of it.

        Raises:
            ValueError: there is no object.
        """
        if not self._objects:
            why = "; ".join(line.strip() for line in self.ledger.rejected.lines()) or "there is none"
            raise ValueError(f"{name}: expected annotated objects, found none that can be read: {why}")
        found = sorted({entry["category"] for entry in self._objects})
        labels = dict(self.names) if self.names is not None else {own: label for label, own in enumerate(found, 1)}
        objects = [
            {key: value for key, value in entry.items() if key != "category"}
            | {"category_id": labels[entry["category"]]}
            for entry in self._objects
        ]
        categories = [{"id": label, "name": own} for own, label in labels.items()]
        content = {"images": self._images, "annotations": objects, "categories": categories}
        return Reading(kind, name, content, folder, self.ledger)

    def withdraw(self, images: Mapping[int, str], reason: str) -> None:
        """Drop the objects of some images, by number; with where they were annotated."""
        for entry in self._objects:
            if entry["image_id"] in images:
                self.drop(reason, f"{images[entry['image_id']]}, object {entry['id']}", entry["image_id"])
        self._objects = [entry for entry in self._objects if entry["image_id"] not in images]

    def has_objects(self) -> set[int]:
        """Numbers of the images that have some."""
        return {entry["image_id"] for entry in self._objects}


def as_points(points: Any) -> list[float]:
    """Pairs of coordinates as COCO has a polygon: x, y, x, y, ...

    Raises:
        Malformed: it is no list of pairs of numbers.
    """
    if not isinstance(points, Sequence) or isinstance(points, str):
        raise Malformed("points are no list")
    flat: list[float] = []
    for point in points:
        if not isinstance(point, Sequence) or isinstance(point, str) or len(point) != 2:
            raise Malformed("a point is not x, y")
        flat += [as_number(point[0]), as_number(point[1])]
    return flat


def corners_to_box(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    """x, y, width, height of two opposite corners in any order."""
    return [min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)]


def ellipse_to_polygon(x: float, y: float, across: float, down: float, angle: float = 0.0) -> list[float]:
    """64 points of an ellipse.

    Args:
        x: of its middle, px.
        y: likewise.
        across: half its first axis, px.
        down: half its second.
        angle: by which it is turned, radians, clockwise in an image.
    """
    points: list[float] = []
    for step in range(64):
        turn = 2 * math.pi * step / 64
        right, below = across * math.cos(turn), down * math.sin(turn)
        points += [
            x + right * math.cos(angle) - below * math.sin(angle),
            y + right * math.sin(angle) + below * math.cos(angle),
        ]
    return points


def numbered(names: Sequence[str] | None) -> dict[str, int] | None:
    """Labels 1, 2, ... of class names in the user's order; ``None`` where the user gives none.

    Raises:
        ValueError: a name is empty or listed twice.
    """
    if names is None:
        return None
    if isinstance(names, str) or not all(names) or len(set(names)) < len(names):
        raise ValueError(f"expected a list of class names, each once, got {names!r}")
    return {name: label for label, name in enumerate(names, 1)}

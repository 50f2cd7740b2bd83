"""What is written, and how."""

from __future__ import annotations

from dataclasses import dataclass

from terse_aug.config import setting

FORMATS = ("coco", "yolo", "yolo-seg")
ORIGINALS = ("none", "copy", "link")
IMAGE_FORMATS = ("jpg", "png")


@dataclass(frozen=True)
class ExportSettings:
    """What :func:`~terse_aug.export.write_composites` writes.

    Raises:
        ValueError: a value is none of those allowed; the message names the setting.
    """

    format: str = setting("coco", "of the labels: coco (JSON), yolo (boxes) or yolo-seg (polygons)")
    copies: int = setting(1, "composites of each image, at least 0")
    originals: str = setting("none", "the images without pastes, too: none, copy or link (symbolic links)")
    image_format: str = setting("jpg", "of the composites: jpg or png")
    jpg_quality: int = setting(95, "of jpg, 1 to 100")

    def __post_init__(self) -> None:
        for name, allowed in (("format", FORMATS), ("originals", ORIGINALS), ("image_format", IMAGE_FORMATS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.copies < 0 or (self.copies == 0 and self.originals == "none"):
            raise ValueError(f"copies: expected at least 1, or 0 with originals, got {self.copies}")
        if not 1 <= self.jpg_quality <= 100:
            raise ValueError(f"jpg_quality: expected 1 to 100, got {self.jpg_quality}")

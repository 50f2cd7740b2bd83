"""Composes and writes the images of a data set, a few of one image at a time, in whatever process."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from terse_aug.bank.extract import RejectedObject
from terse_aug.bank.inputs.images import image_size
from terse_aug.composer import Composer
from terse_aug.export.folder import OutputFolder
from terse_aug.export.labels import coco_annotations, yolo_lines
from terse_aug.export.settings import ExportSettings
from terse_aug.preview import LabelledImages, Sample, resize_sample
from terse_aug.structures.annotations import Target, repair_boxes
from terse_aug.terse import Terse
from terse_aug.utils.warnings import TerseWarning

_READ_BY_TRAINERS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_PNG_COMPRESSION = 3


@dataclass(frozen=True)
class Composed:
    """A composite, uint8 ``[3, H, W]``, with its target.

    Attributes:
        image: the composite.
        target: corrected.
        sources: of the rows that were pasted, where their foregrounds are from.
        background: the background of the pool that replaced the image; ``None`` if it was not replaced.
        dropped: counts by reason, see :class:`terse_aug.Composites`.
    """

    image: Tensor
    target: Target
    sources: Mapping[int, str] = field(default_factory=dict)
    background: str | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)


class ComposeNumbered:
    """Composes as in training: a function of the sample and its number.

    Policy ``random`` composes by :meth:`terse_aug.Terse.composer`, so that sample n is what a training with a
    :class:`terse_aug.NumberedSampler` is given. Other policies act as they are, and learn nothing more.

    Args:
        terse: has bank, policy and settings.

    Raises:
        ValueError: its sampler depends on what was pasted before, or it perturbs composites.
    """

    def __init__(self, terse: Terse) -> None:
        if not terse.sampler.in_workers:
            raise ValueError(
                f"sampler: {type(terse.sampler).__name__} depends on what was pasted before, which processes that "
                "compose different images do not know; use uniform, rarity or weights of classes"
            )
        self._terse, self._pool = terse, terse.planner.pool
        self._composer: Composer | None = terse.composer() if terse.policy.in_workers else None

    def __call__(self, image: Tensor, target: Target, number: int) -> Composed:
        """Compose one image; see :class:`terse_aug.Composer`."""
        if self._composer is not None:
            composite, corrected, record = self._composer(image, target, number)
            sources = {row: source for _, source, _, _, row, _ in record.pastes if row is not None}
            dropped = {name[len("dropped/") :]: n for name, n in record.counts.items() if name.startswith("dropped/")}
            return Composed(composite, corrected, sources, self._background(record.background), dropped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TerseWarning)  # `dropped` counts the same
            found = self._terse.compose([image], [target], seed=number)
        sources = {paste.row: paste.source for paste in found.pastes[0] if paste.row is not None}
        background = self._background(found.backgrounds.get(0))
        return Composed(found.images[0], found.targets[0], sources, background, found.dropped)

    def _background(self, index: int | None) -> str | None:
        return None if index is None or self._pool is None else self._pool.name(index)


@dataclass(frozen=True)
class ImageItem:
    """An image and what is to be written of it.

    Attributes:
        data: a data set of this image alone.
        index: of the image in the whole data set.
        stems: names of its files, see :func:`terse_aug.export.names.output_stems`.
        copies: numbers of the composites to write, 0 for the original.
    """

    data: LabelledImages
    index: int
    stems: Sequence[str]
    copies: Sequence[int]


@dataclass(frozen=True)
class Done:
    """How many files of a chunk are done."""

    images: int


@dataclass(frozen=True)
class ComposeTask:
    """Composes and writes; it is sent to other processes.

    Attributes:
        compose: makes the composites.
        folder: where to.
        export: what is written.
        image_size: images are resized to this shorter side, pixels; ``None`` to leave them.
        image_count: of the data set.
        numbers: YOLO's class number of each label.
    """

    compose: ComposeNumbered
    folder: OutputFolder
    export: ExportSettings
    image_size: int | None
    image_count: int
    numbers: Mapping[int, int]

    @property
    def settings(self) -> Mapping[str, Any]:
        """See :class:`terse_aug.bank.build.workers.ChunkTask`."""
        return {}

    def run(self, items: Sequence[ImageItem], on_image: Callable[[int], None] | None = None) -> Done:
        """Compose and write; every file that is done has a record then."""
        done = 0
        with _one_thread():
            for item in items:
                sample, rejected = self._read(item)
                for copy in item.copies:
                    record: dict[str, Any] = (
                        {"image": None, "bytes": 0, "files": {}} if sample is None else self._write(sample, item, copy)
                    )
                    # What was rejected when the image was read is counted once.
                    record["rejected"] = rejected if copy == min(1, self.export.copies) else {}
                    number = item.index * (self.export.copies + 1) + copy
                    self.folder.add_record(number, record)
                    done += 1
                    if on_image is not None:
                        on_image(done)
        return Done(done)

    def _read(self, item: ImageItem) -> tuple[Sample | None, dict[str, Any]]:
        """The sample, or ``None``; and what was rejected: counts and examples by reason."""
        dropped, sample = item.data.dropped, None
        before = dropped.counts, dropped.examples
        dropped.counts, dropped.examples = Counter(), {}
        try:
            sample = item.data.read(0)
        except RejectedObject as reason:
            dropped.add(str(reason), item.data.names[0])
        rejected = {reason: [count, dropped.examples[reason]] for reason, count in dropped.counts.items()}
        dropped.counts, dropped.examples = before
        if sample is not None and self.image_size is not None:
            sample = resize_sample(sample, self.image_size)
        return sample, rejected

    def _write(self, sample: Sample, item: ImageItem, copy: int) -> dict[str, Any]:
        """Write an image and its labels.

        Returns:
            The record: ``image`` as an entry of a COCO JSON, ``bytes`` of its file, ``annotations`` likewise (for COCO
            only), ``objects``, ``pasted`` (labelled pastes), ``dropped``, and ``files`` with the size of each, bytes.
        """
        levels = (sample.image * 255).round().to(torch.uint8)
        size = (levels.shape[1], levels.shape[2])
        repaired, repairs = repair_boxes(sample.target, *size)
        target = with_areas(repaired, levels)
        if copy:
            composed = self.compose(levels, target, (copy - 1) * self.image_count + item.index)
            name = f"{item.stems[copy]}.{self.export.image_format}"
            self.folder.write(self.folder.images / name, self._encoded(composed.image, name))
        else:
            composed = Composed(levels, target)
            name = self._write_original(levels, item)
        file_size = (self.folder.images / name).stat().st_size
        record: dict[str, Any] = {
            "image": {"file_name": name, "height": size[0], "width": size[1], "composed_from": sample.name},
            "bytes": file_size,
            "files": {f"images/{name}": file_size},
            "objects": len(composed.target["labels"]),
            "pasted": len(composed.sources),
            "dropped": dict(repairs + Counter(composed.dropped)),
        }
        if composed.background is not None:
            record["image"]["background"] = composed.background
        if self.export.format == "coco":
            record["annotations"] = coco_annotations(composed.target, composed.sources)
        else:
            lines = yolo_lines(composed.target, size, self.numbers, self.export.format == "yolo-seg")
            text = "".join(f"{line}\n" for line in lines).encode("ascii")
            labels = f"labels/{item.stems[copy]}.txt"
            self.folder.write(self.folder.path / labels, text)
            record["files"][labels] = len(text)
        return record

    def _write_original(self, levels: Tensor, item: ImageItem) -> str:
        """Copy or link an image if its file shows the raster that its labels refer to, else encode it; its name."""
        file = item.data.files[0][0]
        suffix = file.suffix.lower()
        if suffix not in _READ_BY_TRAINERS or image_size(file) != (levels.shape[1], levels.shape[2]):
            name = f"{item.stems[0]}.{self.export.image_format}"
            self.folder.write(self.folder.images / name, self._encoded(levels, name))
            return name
        name = item.stems[0] + suffix
        with self.folder.writing(self.folder.images / name) as partial:
            if self.export.originals == "link":
                partial.symlink_to(os.path.abspath(file))
            else:
                partial.write_bytes(file.read_bytes())
        return name

    def _encoded(self, image: Tensor, name: str) -> bytes:
        """An image file, from uint8 ``[3, H, W]``, RGB."""
        flags = {
            "jpg": [cv2.IMWRITE_JPEG_QUALITY, self.export.jpg_quality],
            "png": [cv2.IMWRITE_PNG_COMPRESSION, _PNG_COMPRESSION],
        }[self.export.image_format]
        bgr = np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy())
        is_encoded, content = cv2.imencode(f".{self.export.image_format}", bgr, flags)
        if not is_encoded:
            raise ValueError(f"{name}: an image of {bgr.shape[1]} x {bgr.shape[0]} pixels cannot be encoded")
        return content.tobytes()


def with_areas(target: Target, image: Tensor) -> Target:
    """A target with ``area``: pixels of the masks, else of the boxes; one without objects gets ``masks``, of none.

    The masks of pastes are known, whatever labels an image without objects would have.
    """
    target = dict(target)
    if not len(target["boxes"]) and "masks" not in target:
        target["masks"] = torch.zeros((0, *image.shape[1:]), dtype=torch.bool)
    sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
    target["area"] = sides.prod(1)
    if "masks" in target:
        pixels = target["masks"].flatten(1).sum(1).to(sides)
        target["area"] = torch.where(pixels > 0, pixels, target["area"])
    return target


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, as in other processes: each composes images of its own."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])

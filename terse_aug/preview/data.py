"""Samples, and data sets that read them on demand. Shape letters: N objects, k keypoints, H and W the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from terse_aug.bank.build.report import ReasonCounts
from terse_aug.bank.extract import RejectedObject
from terse_aug.structures.annotations import Target
from terse_aug.utils.random import generator_for

_EXAMPLES = 20


@dataclass(frozen=True)
class Sample:
    """An image and its annotation.

    Attributes:
        name: of the image file.
        image: float ``[3, H, W]``, RGB in [0, 1].
        target: ``boxes`` float ``[N, 4]`` XYXY in pixels, ``labels`` and ``ids`` int64 ``[N]``, and, where the data set
            has them, ``masks`` bool ``[N, H, W]`` and ``keypoints`` float ``[N, k, 3]``.
    """

    name: str
    image: Tensor
    target: Target


@dataclass
class RejectionCounts(ReasonCounts):
    """Rejected images and objects by reason, with up to 20 examples each."""

    def add(self, reason: str, example: str, times: int = 1) -> None:
        """Count ``times`` images or objects rejected for ``reason``."""
        self.counts[reason] += times
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(example)

    def lines(self) -> list[str]:
        """For every reason, the most frequent first, its count and examples."""
        lines = []
        for reason, count in self.counts.most_common():
            examples = self.examples[reason]
            lines.append(f"{count} {reason} ({', '.join(examples)}{', ...' if count > len(examples) else ''})")
        return lines


@dataclass
class LabelledImages:
    """Images of a data set, each read on demand.

    Attributes:
        origin: where they are from, for messages.
        classes: name of every label.
        names: of the image files.
        dropped: images and objects that are left out, by reason; reading adds to it.
        files: each image file, and others that are read with it.
        labels: what else each sample is made of, for JSON: samples are the same if their files and labels are.
        folders: that the images and masks are in, at any depth.
        boxes_only: whether there are objects, and samples have no masks of them.
    """

    origin: str
    classes: dict[int, str]
    names: list[str] = field(default_factory=list)
    dropped: RejectionCounts = field(default_factory=RejectionCounts)
    files: list[tuple[Path, ...]] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    folders: tuple[Path, ...] = ()
    boxes_only: bool = False
    _readers: list[Callable[[], Sample]] = field(default_factory=list)

    def add(self, name: str, reader: Callable[[], Sample], files: tuple[Path, ...], labels: Any = None) -> None:
        """Add an image; ``reader`` reads it, or raises :class:`~terse_aug.bank.extract.RejectedObject`."""
        self.names.append(name)
        self.files.append(files)
        self.labels.append(labels)
        self._readers.append(reader)

    def read(self, index: int) -> Sample:
        """The sample of image ``names[index]``.

        Raises:
            RejectedObject: the image or its mask is missing, damaged or of another size than annotated.
        """
        return self._readers[index]()

    def only(self, index: int) -> LabelledImages:
        """The data set of one image, with the same ``dropped``: small enough to be sent to another process."""
        one = slice(index, index + 1)
        names, readers = self.names[one], self._readers[one]
        return replace(self, names=names, files=self.files[one], labels=self.labels[one], _readers=readers)

    def choose(self, count: int, seed: int) -> Iterator[Sample]:
        """Up to ``count`` random samples, in the order of the data set.

        Images that cannot be read are counted in ``dropped`` and replaced by others.

        Raises:
            ValueError: ``count`` is below 1, or no image can be read.
        """
        if count < 1:
            raise ValueError(f"count: expected at least 1 image, got {count}")
        order = torch.randperm(len(self.names), generator=generator_for(seed, "preview", "images")).tolist()
        shown = 0
        for index in sorted(order[:count]) + order[count:]:
            if shown == count:
                return
            try:
                sample = self.read(index)
            except RejectedObject as reason:
                self.dropped.add(str(reason), self.names[index])
                continue
            shown += 1
            yield sample
        if not shown:
            raise ValueError(f"no image of {self.origin} can be shown: {self.rejections()}")

    def rejections(self) -> str:
        """Why there is nothing to show."""
        return "; ".join(self.dropped.lines()) or "there are none"


def resize_sample(sample: Sample, shorter_side: int) -> Sample:
    """A sample scaled so that the shorter side of its image is ``shorter_side`` px, with its annotation.

    Raises:
        ValueError: ``shorter_side`` is below 1.
    """
    if shorter_side < 1:
        raise ValueError(f"shorter_side: expected at least 1 px, got {shorter_side}")
    height, width = sample.image.shape[1:]
    factor = shorter_side / min(height, width)
    size = (max(round(height * factor), 1), max(round(width * factor), 1))
    scale = torch.tensor([size[1] / width, size[0] / height])
    image = F.interpolate(sample.image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    target = sample.target | {"boxes": sample.target["boxes"] * scale.repeat(2)}
    if "masks" in target:
        masks = target["masks"][:, None].to(torch.uint8)  # objects as the batch, the only dimension that may be empty
        target["masks"] = F.interpolate(masks, size, mode="nearest-exact")[:, 0].bool()
    if "keypoints" in target:
        target["keypoints"] = target["keypoints"] * torch.cat([scale, torch.ones(1)])
    return Sample(sample.name, image, target)

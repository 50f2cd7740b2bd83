"""Reads a bank once and computes statistics of its foregrounds."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from terse_aug.bank.analysis.class_shapes import Diversity, MeanShapes, mean_shapes, shape_diversity
from terse_aug.bank.analysis.foreground_measures import ForegroundMeasures
from terse_aug.bank.analysis.near_duplicates import NearDuplicates, find_near_duplicates
from terse_aug.bank.bank import ForegroundBank

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and the total."""

MEAN_SHAPES = 5
MIN_FOR_MEAN_SHAPES = 25
"""Foregrounds that a class needs for mean shapes: five for each."""
_MAX_DRAWN, _MIN_DRAWN_PER_CLASS, _MAX_DRAWN_PER_CLASS = 30_000, 50, 1000
_MAX_SAMPLES = 2000
_MAX_GROUPS, _MAX_MEMBERS = 24, 6
_THUMBNAIL_PX = 112
_THUMBNAIL_QUALITY = 80
_PROGRESS_EVERY = 50


@dataclass(frozen=True)
class Thumbnail:
    """A foreground that is shown: its number, WebP file and size in px (width, height), class, source and true size."""

    position: int
    webp: bytes
    size: tuple[int, int]
    class_name: str
    source: str
    foreground_size: tuple[int, int]


@dataclass(frozen=True)
class ClassStatistics:
    """Statistics of a class; sizes and shapes are medians over all its foregrounds.

    Attributes:
        name: of the class.
        count: number of its foregrounds.
        width, height: in pixels.
        relative_size: see :class:`Foreground`.
        fill: fraction of the bounding box that is object.
        corners: see :func:`terse_aug.bank.analysis.outline.shape_complexity`.
        length: see :func:`terse_aug.bank.analysis.outline.outline_length`.
        several_parts, with_holes: fraction of the foregrounds that have more than one part, or a hole.
        drawn: number of foregrounds that diversity and mean shapes are computed from.
        diversity: of the outlines; ``None`` for a class of one.
        mean_shapes: ``None`` for a class with fewer than ``MIN_FOR_MEAN_SHAPES``.
        samples: some of its foregrounds.
    """

    name: str
    count: int
    width: float
    height: float
    relative_size: float
    fill: float
    corners: float
    length: float
    several_parts: float
    with_holes: float
    drawn: int
    diversity: Diversity | None
    mean_shapes: MeanShapes | None
    samples: list[Thumbnail]


@dataclass(frozen=True)
class DuplicateGroup:
    """Foregrounds that look alike; ``is_identical`` if all are equal to the pixel, ``samples`` are the first."""

    count: int
    is_identical: bool
    classes: tuple[str, ...]
    samples: list[Thumbnail]


@dataclass(frozen=True)
class BankStatistics:
    """Statistics of a bank.

    Attributes:
        info: see :meth:`ForegroundBank.info`.
        seed: of everything that was drawn.
        classes: the most frequent first.
        sizes: int ``[n, 2]``, height and width in pixels.
        relative_sizes, fill, corners, length: of every foreground, see :class:`ClassStatistics`.
        centers: float32 ``[m, 2]``, of those whose center in their source image is known.
        near_duplicates: all groups of duplicates and near duplicates.
        largest_groups: those that are shown.
        copies: number of foregrounds that are equal to an earlier one to the pixel.
    """

    info: dict[str, Any]
    seed: int
    classes: list[ClassStatistics]
    sizes: NDArray[np.int32]
    relative_sizes: NDArray[np.float32]
    fill: NDArray[np.float32]
    corners: NDArray[np.int32]
    length: NDArray[np.float32]
    centers: NDArray[np.float32]
    near_duplicates: NearDuplicates
    largest_groups: list[DuplicateGroup]
    copies: int


def bank_statistics(
    bank: ForegroundBank, *, samples: int = 8, seed: int = 0, progress: Progress | None = None
) -> BankStatistics:
    """Read a bank, one foreground at a time, and compute its statistics.

    Memory grows by about 0.3 kB per foreground. Mean shapes and diversity are computed from at most 1,000 foregrounds
    of a class, 30,000 in all (but at least 50 of a class); diversity from at most 1,000 pairs of them.

    Args:
        bank: the bank, or a part of it (:meth:`ForegroundBank.select`).
        samples: foregrounds of each class that are shown; fewer where all classes together would have more than 2,000.
        seed: of what is drawn; the same seed gives the same statistics.
        progress: called with the stage, and how much of it is done.

    Raises:
        ValueError: ``samples`` or ``seed`` is below 0, or a record of the bank is damaged.
    """
    if samples < 0 or seed < 0:
        raise ValueError(f"expected samples and seed of 0 or more, got {samples} and {seed}")
    report_progress = progress or (lambda *_: None)
    members = [np.flatnonzero(bank.labels == label) for label in bank.categories]
    limit = min(max(_MAX_DRAWN // len(members), _MIN_DRAWN_PER_CLASS), _MAX_DRAWN_PER_CLASS)
    drawn = [_drawn(own, limit, [seed, number, 0]) for number, own in enumerate(members)]
    measures = ForegroundMeasures(len(bank), np.concatenate(drawn))
    for position, foreground in enumerate(bank):
        measures.add(position, foreground)
        if position % _PROGRESS_EVERY == 0:
            report_progress("foregrounds", position, len(bank))
    sample_count = min(samples, max(_MAX_SAMPLES // len(members), 1))
    classes = []
    for number, (name, own) in enumerate(zip(bank.categories.values(), members, strict=True)):
        report_progress("shapes of classes", number, len(members))
        thumbnails = _thumbnails(bank, _drawn(own, sample_count, [seed, number, 1]))
        generator = np.random.default_rng([seed, number, 2])
        classes.append(_class_statistics(name, own, bank, measures, drawn[number], thumbnails, generator))
    report_progress("duplicates", 0, 1)
    near_duplicates = find_near_duplicates(measures.bits, measures.thumbnails, bank.sizes)
    hashes, centers = measures.pixel_hashes, bank.centers
    return BankStatistics(
        info=bank.info(),
        seed=seed,
        classes=sorted(classes, key=lambda one: -one.count),
        sizes=bank.sizes,
        relative_sizes=bank.relative_sizes,
        fill=measures.fill,
        corners=measures.corners,
        length=measures.length,
        centers=centers[~np.isnan(centers[:, 0])],
        near_duplicates=near_duplicates,
        largest_groups=[_group(bank, group, hashes) for group in near_duplicates.groups[:_MAX_GROUPS]],
        copies=len(bank) - len(np.unique(hashes)),
    )


def _drawn(positions: NDArray[np.int64], limit: int, seed: list[int]) -> NDArray[np.int64]:
    if len(positions) <= limit:
        return positions
    return np.sort(np.random.default_rng(seed).choice(positions, limit, replace=False))


def _class_statistics(
    name: str,
    own: NDArray[np.int64],
    bank: ForegroundBank,
    measures: ForegroundMeasures,
    drawn: NDArray[np.int64],
    samples: list[Thumbnail],
    generator: np.random.Generator,
) -> ClassStatistics:
    rows = measures.rows(drawn)
    height, width = np.median(bank.sizes[own], axis=0).tolist()
    has_mean_shapes = len(own) >= MIN_FOR_MEAN_SHAPES
    return ClassStatistics(
        name=name,
        count=len(own),
        width=width,
        height=height,
        relative_size=float(np.median(bank.relative_sizes[own])),
        fill=float(np.median(measures.fill[own])),
        corners=float(np.median(measures.corners[own])),
        length=float(np.median(measures.length[own])),
        several_parts=float((measures.parts[own] > 1).mean()),
        with_holes=float((measures.holes[own] > 0).mean()),
        drawn=len(drawn),
        diversity=shape_diversity(measures.points[rows].astype(np.float32), generator),
        mean_shapes=mean_shapes(measures.masks[rows], generator, MEAN_SHAPES) if has_mean_shapes else None,
        samples=samples,
    )


def _group(bank: ForegroundBank, positions: NDArray[np.int64], hashes: NDArray[np.uint64]) -> DuplicateGroup:
    names = dict.fromkeys(bank.categories[label] for label in bank.labels[positions].tolist())
    is_identical = len(np.unique(hashes[positions])) == 1
    return DuplicateGroup(
        len(positions), is_identical, tuple(names), _thumbnails(bank, positions[:_MAX_MEMBERS].tolist())
    )


def _thumbnails(bank: ForegroundBank, positions: Iterable[int]) -> list[Thumbnail]:
    thumbnails = []
    for position in positions:
        foreground, file = bank[position], io.BytesIO()
        image = Image.fromarray(foreground.rgba)
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        image.save(file, "WEBP", quality=_THUMBNAIL_QUALITY)
        name = bank.categories[foreground.label]
        shown = Thumbnail(int(position), file.getvalue(), image.size, name, foreground.source, foreground.size)
        thumbnails.append(shown)
    return thumbnails

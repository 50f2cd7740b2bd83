"""Reads a bank through once and tells what is in it. Imports the bank, its measures, OpenCV and pillow."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from terse_aug.bank.analysis.measures import Alike, Diversity, MeanShapes, groups_alike, mean_shapes, shape_diversity
from terse_aug.bank.analysis.records import Records
from terse_aug.bank.bank import ForegroundBank
from terse_aug.structures.foreground import Foreground

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and the total."""

MEAN_SHAPES = 5
MEAN_SHAPES_FROM = 25
"""Cut-outs that a class needs for mean shapes: five for each."""
_DRAWN_IN_ALL, _DRAWN_AT_LEAST, _DRAWN_AT_MOST = 30_000, 50, 1000
_SHOWN_IN_ALL = 2000
_GROUPS, _MEMBERS = 24, 6
_PICTURE_SIDE = 112
_PICTURE_QUALITY = 80
_TELL_EVERY = 50


@dataclass(frozen=True)
class Shown:
    """A cut-out that is shown.

    Attributes:
        position: its number in the bank.
        webp: a small picture with transparency, a WebP file.
        size: width and height of that in px.
        name: of its class.
        source: where it was cut from.
        pixels: its own width and height.
    """

    position: int
    webp: bytes
    size: tuple[int, int]
    name: str
    source: str
    pixels: tuple[int, int]


@dataclass(frozen=True)
class ClassStatistics:
    """What a class is like; sizes and shapes are medians over all its cut-outs.

    Attributes:
        name: of the class.
        count: its cut-outs.
        width, height: px.
        extent: natural size, see :class:`Foreground`.
        fill: share of the bounding box that is object.
        corners: see :func:`terse_aug.bank.analysis.measures.shape_complexity`.
        length: see :func:`terse_aug.bank.analysis.measures.outline_length`.
        several_parts, with_holes: share of the cut-outs that have more than one part, or a hole.
        drawn: cut-outs that diversity and mean shapes are of.
        diversity: of the outlines; ``None`` for a class of one.
        shapes: mean shapes; ``None`` for a class with fewer than ``MEAN_SHAPES_FROM``.
        shown: some of it.
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
    shapes: MeanShapes | None
    shown: list[Shown]


@dataclass(frozen=True)
class Group:
    """Cut-outs that look alike.

    Attributes:
        count: how many there are.
        identical: whether all are equal to the pixel.
        classes: names of their classes.
        shown: the first of them.
    """

    count: int
    identical: bool
    classes: tuple[str, ...]
    shown: list[Shown]


@dataclass(frozen=True)
class BankStatistics:
    """What is in a bank.

    Attributes:
        info: what :meth:`ForegroundBank.info` says.
        seed: of all that was drawn.
        classes: the most frequent first.
        sizes: int ``[n, 2]``, height and width in px.
        extents, fill, corners, length: of every cut-out, see :class:`ClassStatistics`.
        centers: float32 ``[m, 2]``, of those whose place in their image is known.
        alike: all groups of duplicates and near duplicates.
        groups: those that are shown.
        copies: cut-outs that are equal to an earlier one to the pixel.
    """

    info: dict[str, Any]
    seed: int
    classes: list[ClassStatistics]
    sizes: NDArray[np.int32]
    extents: NDArray[np.float32]
    fill: NDArray[np.float32]
    corners: NDArray[np.int32]
    length: NDArray[np.float32]
    centers: NDArray[np.float32]
    alike: Alike
    groups: list[Group]
    copies: int


def bank_statistics(
    bank: ForegroundBank, *, samples: int = 8, seed: int = 0, progress: Progress | None = None
) -> BankStatistics:
    """Read a bank through, one cut-out at a time, and tell what is in it.

    Memory grows by about 0.3 kB a cut-out. Mean shapes and diversity are of at most 1,000 cut-outs of a class, 30,000
    in all (but at least 50 of a class); diversity of at most 1,000 pairs of them.

    Args:
        bank: what to look at; a view (:meth:`ForegroundBank.select`) will do.
        samples: cut-outs of each class that are shown; fewer where all classes together would have more than 2,000.
        seed: of what is drawn; the same seed gives the same survey.
        progress: told how far it is.

    Raises:
        ValueError: ``samples`` or ``seed`` is below 0, or a record of the bank is damaged.
    """
    if samples < 0 or seed < 0:
        raise ValueError(f"expected samples and seed of 0 or more, got {samples} and {seed}")
    tell = progress or (lambda *_: None)
    members = [np.flatnonzero(bank.labels == label) for label in bank.categories]
    limit = min(max(_DRAWN_IN_ALL // len(members), _DRAWN_AT_LEAST), _DRAWN_AT_MOST)
    drawn = [_drawn(own, limit, seed, number, 0) for number, own in enumerate(members)]
    records = _read_through(bank, np.concatenate(drawn), tell)
    shown = min(samples, max(_SHOWN_IN_ALL // len(members), 1))
    classes = []
    for number, (name, own) in enumerate(zip(bank.categories.values(), members, strict=True)):
        tell("shapes of classes", number, len(members))
        pictures = _shown(bank, _drawn(own, shown, seed, number, 1))
        generator = np.random.default_rng([seed, number, 2])
        classes.append(_class(name, own, bank, records, drawn[number], pictures, generator))
    tell("duplicates", 0, 1)
    alike = groups_alike(records.bits, records.thumbnails)
    centers = bank.centers
    return BankStatistics(
        info=bank.info(),
        seed=seed,
        classes=sorted(classes, key=lambda one: -one.count),
        sizes=bank.sizes,
        extents=bank.extents,
        fill=records.fill,
        corners=records.corners,
        length=records.length,
        centers=centers[~np.isnan(centers[:, 0])],
        alike=alike,
        groups=[_group(bank, group, records.digests) for group in alike.groups[:_GROUPS]],
        copies=len(bank) - len(np.unique(records.digests)),
    )


def _drawn(positions: NDArray[np.int64], limit: int, seed: int, number: int, purpose: int) -> NDArray[np.int64]:
    if len(positions) <= limit:
        return positions
    generator = np.random.default_rng([seed, number, purpose])
    return np.sort(generator.choice(positions, limit, replace=False))


def _read_through(bank: ForegroundBank, drawn: NDArray[np.int64], tell: Progress) -> Records:
    records = Records(len(bank), drawn)
    for position, foreground in enumerate(bank):
        records.add(position, foreground)
        if position % _TELL_EVERY == 0:
            tell("cut-outs", position, len(bank))
    return records


def _class(
    name: str,
    own: NDArray[np.int64],
    bank: ForegroundBank,
    records: Records,
    drawn: NDArray[np.int64],
    shown: list[Shown],
    generator: np.random.Generator,
) -> ClassStatistics:
    rows = records.rows(drawn)
    height, width = np.median(bank.sizes[own], axis=0).tolist()
    enough = len(own) >= MEAN_SHAPES_FROM
    return ClassStatistics(
        name=name,
        count=len(own),
        width=width,
        height=height,
        relative_size=float(np.median(bank.extents[own])),
        fill=float(np.median(records.fill[own])),
        corners=float(np.median(records.corners[own])),
        length=float(np.median(records.length[own])),
        several_parts=float((records.parts[own] > 1).mean()),
        with_holes=float((records.holes[own] > 0).mean()),
        drawn=len(drawn),
        diversity=shape_diversity(records.points[rows].astype(np.float32), generator),
        shapes=mean_shapes(records.masks[rows], generator, MEAN_SHAPES) if enough else None,
        shown=shown,
    )


def _group(bank: ForegroundBank, positions: NDArray[np.int64], digests: NDArray[np.uint64]) -> Group:
    names = dict.fromkeys(bank.categories[label] for label in bank.labels[positions].tolist())
    identical = len(np.unique(digests[positions])) == 1
    return Group(len(positions), identical, tuple(names), _shown(bank, positions[:_MEMBERS].tolist()))


def _shown(bank: ForegroundBank, positions: Iterable[int]) -> list[Shown]:
    shown = []
    for position in positions:
        foreground = bank[position]
        small = _small(foreground)
        file = io.BytesIO()
        Image.fromarray(small).save(file, "WEBP", quality=_PICTURE_QUALITY)
        name = bank.categories[foreground.label]
        size = (small.shape[1], small.shape[0])
        shown.append(Shown(int(position), file.getvalue(), size, name, foreground.source, foreground.size))
    return shown


def _small(foreground: Foreground) -> NDArray[np.uint8]:
    rgba = foreground.rgba
    factor = _PICTURE_SIDE / max(rgba.shape[:2])
    if factor >= 1:
        return rgba
    size = (max(round(rgba.shape[1] * factor), 1), max(round(rgba.shape[0] * factor), 1))
    return np.asarray(cv2.resize(rgba, size, interpolation=cv2.INTER_AREA), np.uint8)

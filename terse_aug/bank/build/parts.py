"""Several parts of a data set, such as VOC 2007 and VOC 2012, as one source of a build.

Images, objects and rejected samples have the name of their part before their own, as ``VOC2012/000001.jpg``, so that
those of one file name in two parts are told apart. Classes are joined by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from terse_aug.bank.build.chunks import Extractor, Source
from terse_aug.bank.build.contact_sheets import Locate
from terse_aug.bank.build.report import BuildLog
from terse_aug.bank.selection import first_labels
from terse_aug.structures.foreground import Foreground

EMPTY_PART = "folder without an image that can be used"
"""Reason, counted once for each part of a data set."""
OTHER_LABEL = "class that has another label in an earlier folder; it has that one here, too"
"""A repair."""

_Item = tuple[int, Any]
"""The number of a part, and one of its items."""


@dataclass(frozen=True)
class BuildPart:
    """The arguments of :meth:`terse_aug.bank.BuildOptions.build` for one part of a data set."""

    source: Source
    record: dict[str, Any]
    categories: Mapping[int, str]
    keypoint_names: Sequence[str]
    locate: Locate


class Planned(Exception):
    """Raised instead of building a part."""

    def __init__(self, part: BuildPart):
        super().__init__("what to build from is known, and no bank is built")
        self.part = part


def join_parts(parts: Mapping[str, BuildPart], own_labels: bool) -> BuildPart:
    """Several parts as one.

    Args:
        parts: by their names.
        own_labels: labels are numbers in the data, such as COCO's category ids. They are kept as far as they agree, see
            :func:`first_labels`; others are numbered 1, 2, ... in the order of the names, unless all parts have the
            same.

    Raises:
        ValueError: the parts have different keypoints.
    """
    every, log = list(parts.values()), BuildLog()
    label_of = _labels([part.categories for part in every], own_labels)
    extractors = [
        _PartExtractor(
            part.source.extractor, number, name, _relabelled(name, part.categories, label_of, own_labels, log)
        )
        for number, (name, part) in enumerate(parts.items())
    ]
    for own, part in zip(extractors, every, strict=True):
        log.merge(own.named(part.source.log))
        if not part.source.items:
            log.drop(EMPTY_PART, own.name)
    # With the names, which extractors know by their labels alone.
    settings = [
        None if own is None else {"part": own, "names": sorted(part.categories.items())}
        for own, part in ((part.source.settings, part) for part in every)
    ]
    source = Source(
        [(number, item) for number, part in enumerate(every) for item in part.source.items],
        _JoinedExtractor(tuple(extractors)),
        None if None in settings else {"parts": dict(zip(parts, settings, strict=True))},
        log,
        prepare=lambda item: (item[0], every[item[0]].source.prepare(item[1])),
        object_count=lambda item: every[item[0]].source.object_count(item[1]),
    )
    categories = {label: name for name, label in sorted(label_of.items(), key=lambda own: own[1])}
    return BuildPart(source, _record(parts), categories, _keypoint_names(parts), _Locate(every))


@dataclass(frozen=True)
class _PartExtractor:
    """Extracts the objects of a part, whose labels become those of the whole.

    In samples of what was rejected, the name of an image as annotated has the number of the part before it.
    """

    extractor: Extractor
    number: int
    name: str
    labels: dict[int, int]

    def objects(self, item: Any, log: BuildLog) -> Iterator[Foreground]:
        own_log = BuildLog()
        for foreground in self.extractor.objects(item, own_log):
            source = f"{self.name}/{foreground.source}"
            yield replace(foreground, label=self.labels[foreground.label], source=source)
        log.merge(self.named(own_log))

    def named(self, log: BuildLog) -> BuildLog:
        """A log whose examples and samples have the name of the part."""
        named = BuildLog(mask_sources=log.mask_sources)
        for counts, own in ((log.rejected, named.rejected), (log.repaired, named.repaired)):
            for reason, count in counts.counts.items():
                own.counts[reason] = count
                own.examples[reason] = [f"{self.name}/{example}" for example in counts.examples[reason]]
        for reason, samples in log.samples.items():
            for sample in samples.held:
                is_file = isinstance(sample.image, Path)
                image = Path(os.path.abspath(sample.image)) if is_file else f"{self.number}/{sample.image}"
                named.add_sample(reason, replace(sample, image=image, caption=f"{self.name}/{sample.caption}"))
        return named


@dataclass(frozen=True)
class _JoinedExtractor:
    """Extracts the objects of one image after the other, of any part."""

    parts: tuple[_PartExtractor, ...]

    def files(self, item: _Item) -> Any:
        """The files that are read for them."""
        return self.parts[item[0]].extractor.files(item[1])

    def objects(self, item: _Item, log: BuildLog) -> Iterator[Foreground]:
        """The foregrounds of an image."""
        return self.parts[item[0]].objects(item[1], log)


@dataclass(frozen=True)
class _Locate:
    """Finds the images of rejected samples as :class:`_PartExtractor` names them: absolute paths are files."""

    parts: Sequence[BuildPart]

    def __call__(self, image: str | Path) -> Path:
        number, _, name = str(image).partition("/")
        return self.parts[int(number)].locate(name) if number.isdecimal() else Path(image)


def _labels(categories: Sequence[Mapping[int, str]], own_labels: bool) -> dict[str, int]:
    """The label of each class name."""
    if own_labels or all(own == categories[0] for own in categories):
        return first_labels(categories)
    names = {name.strip() for own in categories for name in own.values()}
    return {name: label for label, name in enumerate(sorted(names), 1)}


def _relabelled(
    part: str, categories: Mapping[int, str], label_of: Mapping[str, int], own_labels: bool, log: BuildLog
) -> dict[int, int]:
    """New labels by those of a part; where numbers in the data are changed, they are counted."""
    labels = {label: label_of[name.strip()] for label, name in categories.items()}
    if own_labels:
        for label, new in labels.items():
            log.repair([OTHER_LABEL] if label != new else [], f"{part}: {categories[label]}, {new} instead of {label}")
    return labels


def _record(parts: Mapping[str, BuildPart]) -> dict[str, Any]:
    """What the records of all parts have in common, and what differs, by part."""
    first, *others = [part.record for part in parts.values()]
    shared = {key: value for key, value in first.items() if all(key in own and own[key] == value for own in others)}
    differing = [
        {"name": name, "image_count": len(part.source.items)}
        | {key: value for key, value in part.record.items() if key not in shared}
        for name, part in parts.items()
    ]
    return shared | {"parts": differing}


def _keypoint_names(parts: Mapping[str, BuildPart]) -> Sequence[str]:
    part_of = {tuple(part.keypoint_names): name for name, part in parts.items() if part.keypoint_names}
    if len(part_of) > 1:
        raise ValueError(f"{' and '.join(part_of.values())} have different keypoints; build one bank each")
    return next(iter(part_of), ())

"""Composites of samples, drawn beside the originals, with a record of every paste. Imports torch."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import torch

from terse_aug.compositing.compose import Paste
from terse_aug.preview.data import Sample
from terse_aug.structures.annotations import Target, repair_boxes
from terse_aug.terse import Terse
from terse_aug.transforms import PARAMETERS, TransformRanges
from terse_aug.utils.random import derived_seed
from terse_aug.utils.warnings import TerseWarning
from terse_aug.viz.drawing import draw_sample
from terse_aug.viz.images import RGBImage

_BATCH = 8
_UNITS = {"rotation": "°", "scale": "x", "scale_x": "x", "scale_y": "x"}
_HIDDEN_PASTE = "no label: hidden or cut off beyond min_visibility"
_HIDDEN_ORIGINAL = "label dropped: hidden beyond min_visibility"
_REPLACED = "a background of the pool in place of the image and its objects"
_BAD_BOX = "not used: its box has no area or lies outside the image"


@dataclass(frozen=True)
class PasteRecord:
    """What is said of one paste.

    Attributes:
        title: class name and, where it is labelled and the targets have ids, the id drawn beside it.
        source: where the cut-out comes from.
        transform: its transform in physical units.
        problem: why it has no label, empty where it has one.
    """

    title: str
    source: str
    transform: str
    problem: str

    @property
    def text(self) -> str:
        """All of it in one line."""
        return " · ".join(part for part in (self.title, self.source, self.transform, self.problem) if part)


@dataclass(frozen=True)
class Pair:
    """An original and its composite, both drawn with their labels.

    Attributes:
        name: of the image file.
        original: uint8 ``[H, W, 3]``.
        composite: uint8 ``[H, W, 3]``.
        original_objects: number of objects by class name.
        composite_objects: likewise.
        pastes: in the order of pasting, the last in front.
        lost: a line for every original object that has no label in the composite, or one that says that the whole
            image was replaced.
    """

    name: str
    original: RGBImage
    composite: RGBImage
    original_objects: dict[str, int]
    composite_objects: dict[str, int]
    pastes: tuple[PasteRecord, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Preview:
    """The record of a preview.

    Attributes:
        pairs: one for every image.
        dropped: counts by reason, see :class:`terse_aug.Composites`.
    """

    pairs: list[Pair]
    dropped: Counter[str]

    @property
    def counts(self) -> dict[str, int]:
        """Images shown, composites among them, pastes, and pastes with a label."""
        pastes = [paste for pair in self.pairs for paste in pair.pastes]
        return {
            "images": len(self.pairs),
            "composites": sum(bool(pair.pastes) for pair in self.pairs),
            "pastes": len(pastes),
            "labelled pastes": sum(not paste.problem for paste in pastes),
        }


def preview_samples(terse: Terse, samples: Iterable[Sample], classes: Mapping[int, str], seed: int = 0) -> Preview:
    """Compose samples as in training and draw them; no state of ``terse`` moves.

    Args:
        terse: gives bank, policy and settings; its pixel format is that of the samples' images.
        samples: with labels that ``classes`` names; left untouched, and held a few at a time.
        classes: name of each label.
        seed: of everything drawn.

    Raises:
        ValueError: a sample does not keep to the contract of :meth:`terse_aug.Terse.forward`, or the policy
            asks a detector that ``terse`` does not have.
    """
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    waiting = iter(samples)
    while batch := list(islice(waiting, _BATCH)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TerseWarning)  # all of it is counted in `dropped`
            composites = terse.compose(
                [sample.image for sample in batch],
                [sample.target for sample in batch],
                seed=derived_seed(seed, "preview", len(pairs)),
            )
        dropped.update(composites.dropped)
        pairs += [
            _pair(terse, classes, sample, image, target, pastes, number in composites.backgrounds)
            for number, (sample, image, target, pastes) in enumerate(
                zip(batch, composites.images, composites.targets, composites.pastes, strict=True)
            )
        ]
    return Preview(pairs, dropped)


def _pair(
    terse: Terse,
    classes: Mapping[int, str],
    sample: Sample,
    image: torch.Tensor,
    target: Target,
    pastes: list[Paste],
    replaced: bool,
) -> Pair:
    rows = {paste.row for paste in pastes if paste.row is not None}
    return Pair(
        sample.name,
        draw_sample(terse.pixel_format.decode(sample.image), sample.target, classes),
        draw_sample(terse.pixel_format.decode(image), target, classes, rows),
        _census(sample.target, classes),
        _census(target, classes),
        tuple(_note(paste, target, classes, terse.paste.ranges) for paste in pastes),
        (_REPLACED,) if replaced else tuple(_lost(sample, target, classes)),
    )


def _note(paste: Paste, target: Target, classes: Mapping[int, str], ranges: TransformRanges) -> PasteRecord:
    identity = f" {int(target['ids'][paste.row])}" if paste.row is not None and "ids" in target else ""
    return PasteRecord(
        classes.get(paste.label, str(paste.label)) + identity,
        paste.source,
        _transform_text(ranges.physical(paste.unit)),
        _HIDDEN_PASTE if paste.row is None else "",
    )


def _transform_text(physical: torch.Tensor) -> str:
    """For example ``rotation -3.1°, shear 0.02, scale 0.87x, ...``."""
    parts = []
    for name, value in zip(PARAMETERS, physical.tolist(), strict=True):
        number = f"{value:.1f}" if name == "rotation" else f"{value:.2f}"
        parts.append(f"{name} {number}{_UNITS.get(name, '')}")
    return ", ".join(parts)


def _lost(sample: Sample, target: Target, classes: Mapping[int, str]) -> list[str]:
    """A line for every object of the sample that the composite's target lacks; needs ids."""
    if "ids" not in sample.target:
        return []
    usable, _ = repair_boxes(sample.target, sample.image.shape[1], sample.image.shape[2])
    accepted, left = set(usable["ids"].tolist()), set(target["ids"].tolist())
    lines = []
    for identity, label in zip(sample.target["ids"].tolist(), sample.target["labels"].tolist(), strict=True):
        if identity not in left:
            reason = _HIDDEN_ORIGINAL if identity in accepted else _BAD_BOX
            lines.append(f"{classes.get(label, label)} {identity} · {reason}")
    return lines


def _census(target: Target, classes: Mapping[int, str]) -> dict[str, int]:
    return dict(Counter(classes.get(label, str(label)) for label in target["labels"].tolist()))

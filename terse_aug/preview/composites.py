"""Composes samples as in training and draws original and composite, with a note on every paste."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median

import torch

from terse_aug.compositing.compose import Paste
from terse_aug.config import PasteConfig
from terse_aug.preview.data import Sample
from terse_aug.structures.annotations import Target, repair_boxes
from terse_aug.terse import Terse
from terse_aug.transforms import PARAMETERS
from terse_aug.utils.random import derived_seed
from terse_aug.utils.warnings import TerseWarning
from terse_aug.viz.drawing import draw_sample
from terse_aug.viz.images import RGBImage

_BATCH = 8
_UNITS = {"rotation": "°", "scale": "x", "scale_x": "x", "scale_y": "x", "hue": "°"}
_HIDDEN_PASTE = "no label: hidden or cut off beyond min_visibility"
_HIDDEN_ORIGINAL = "label dropped: hidden beyond min_visibility"
_REPLACED = "a background of the pool in place of the image and its objects"
_NO_OBJECTS: Target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
_LARGE = 0.5
"""Size of an object that fills much of an image, for images without objects to compare with."""
_FAR_LARGER = 2.0
_BAD_BOX = "not used: its box has no area or lies outside the image"


@dataclass(frozen=True)
class PasteNote:
    """What is shown about a paste.

    Attributes:
        title: class name and, where the paste has a label and the targets have ids, its id.
        source: where the foreground is from.
        transform: its transform in physical units.
        problem: why it has no label; empty where it has one.
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
    """An original and its composite, both drawn with their annotations.

    Attributes:
        name: of the image file.
        original: uint8 ``[H, W, 3]``.
        composite: uint8 ``[H, W, 3]``.
        plain: the composite with nothing drawn on it, likewise.
        original_objects: number of objects by class name.
        composite_objects: likewise.
        pastes: in the order of pasting, the last in front.
        lost: a line for every original object without a label in the composite, or one for a replaced image.
        original_sizes: size of each original object, the longer side of its box over the square root of the image's
            area.
        pasted_sizes: of each pasted object, likewise, with what lies beyond the image.
    """

    name: str
    original: RGBImage
    composite: RGBImage
    plain: RGBImage
    original_objects: dict[str, int]
    composite_objects: dict[str, int]
    pastes: tuple[PasteNote, ...]
    lost: tuple[str, ...]
    original_sizes: tuple[float, ...] = ()
    pasted_sizes: tuple[float, ...] = ()


@dataclass(frozen=True)
class Preview:
    """Pairs of original and composite.

    Attributes:
        pairs: one for every image.
        dropped: counts by reason, see :class:`terse_aug.Composites`.
    """

    pairs: list[Pair]
    dropped: Counter[str]

    @property
    def counts(self) -> dict[str, int]:
        """Number of images, composites, pastes, and pastes with a label."""
        pastes = [paste for pair in self.pairs for paste in pair.pastes]
        return {
            "images": len(self.pairs),
            "composites": sum(bool(pair.pastes) for pair in self.pairs),
            "pastes": len(pastes),
            "labelled pastes": sum(not paste.problem for paste in pastes),
        }

    def size_hint(self, scale: tuple[float, float]) -> str:
        """What to do where pasted objects are far larger than those of the images, as of close-ups; else empty.

        Args:
            scale: the range of the scale that was used.
        """
        own = [size for pair in self.pairs for size in pair.original_sizes]
        pasted = [size for pair in self.pairs for size in pair.pasted_sizes]
        usual = median(own) if own else _LARGE
        if not pasted or median(pasted) < _FAR_LARGER * usual:
            return ""
        ratio = median(pasted) / usual
        low, high = (float(f"{value / ratio:.2g}") for value in scale)
        objects = f"objects of the images (median of {len(own)})" if own else "half of the image"
        return f"pasted objects are {ratio:.1f} times as large as {objects}: consider --scale {low:g} {high:g}"


def preview_samples(terse: Terse, samples: Iterable[Sample], classes: Mapping[int, str], seed: int = 0) -> Preview:
    """Compose samples as in training and draw them; the state of ``terse`` does not change.

    Args:
        terse: has bank, policy and settings; its pixel format is that of the samples' images.
        samples: read a few at a time, and left untouched.
        classes: name of each label.
        seed: of everything drawn.

    Raises:
        ValueError: a sample does not keep to the contract of :meth:`terse_aug.Terse.forward`, or the policy needs a
            model that ``terse`` does not have.
    """
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    remaining = iter(samples)
    while batch := list(islice(remaining, _BATCH)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TerseWarning)  # `dropped` counts the same
            composites = terse.compose(
                [sample.image for sample in batch],
                [sample.target for sample in batch],
                seed=derived_seed(seed, "preview", len(pairs)),
            )
        dropped.update(composites.dropped)
        results = zip(batch, composites.images, composites.targets, composites.pastes, strict=True)
        for number, (sample, image, target, pastes) in enumerate(results):
            composite = Sample(sample.name, image, target)
            pairs.append(_pair(terse, classes, sample, composite, pastes, number in composites.backgrounds))
    return Preview(pairs, dropped)


def learn_boxes(terse: Terse, samples: Iterable[Sample]) -> None:
    """Let a policy with ``uses_boxes`` learn from the boxes of samples, as in training."""
    for sample in samples:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TerseWarning)
            terse([sample.image], [sample.target])


def _pair(
    terse: Terse,
    classes: Mapping[int, str],
    original: Sample,
    composite: Sample,
    pastes: Sequence[Paste],
    replaced: bool,
) -> Pair:
    decode = terse.pixel_format.decode
    rows = {paste.row for paste in pastes if paste.row is not None}
    return Pair(
        original.name,
        draw_sample(decode(original.image), original.target, classes),
        draw_sample(decode(composite.image), composite.target, classes, rows),
        draw_sample(decode(composite.image), _NO_OBJECTS, classes),
        _class_counts(original.target, classes),
        _class_counts(composite.target, classes),
        tuple(_note(paste, composite.target, classes, terse.paste) for paste in pastes),
        (_REPLACED,) if replaced else tuple(_lost(original, composite.target, classes)),
        _sizes(original),
        tuple(_pasted_size(terse, paste) for paste in pastes),
    )


def _sizes(sample: Sample) -> tuple[float, ...]:
    boxes = sample.target["boxes"]
    longer = (boxes[:, 2:] - boxes[:, :2]).amax(1) if len(boxes) else boxes.new_zeros(0)
    return tuple((longer / math.sqrt(sample.image.shape[1] * sample.image.shape[2])).tolist())


def _pasted_size(terse: Terse, paste: Paste) -> float:
    scale = terse.paste.ranges.physical(paste.unit)[PARAMETERS.index("scale")]
    return float(terse.bank.relative_sizes[paste.index] * float(scale))


def _note(paste: Paste, target: Target, classes: Mapping[int, str], config: PasteConfig) -> PasteNote:
    identity = f" {int(target['ids'][paste.row])}" if paste.row is not None and "ids" in target else ""
    title = classes.get(paste.label, str(paste.label)) + identity
    problem = _HIDDEN_PASTE if paste.row is None else ""
    return PasteNote(title, paste.source, _transform_text(config, paste.unit), problem)


def _transform_text(config: PasteConfig, unit: torch.Tensor) -> str:
    """For example ``rotation -3.1°, shear 0.02, scale 0.87x, ...``."""
    parts = []
    for name, value in zip(config.columns, config.physical(unit).tolist(), strict=True):
        if name == "blend":
            parts.append(f"blend {config.blends[int(value)]}")
            continue
        digits = 1 if name in ("rotation", "hue") else 2
        parts.append(f"{name} {value:.{digits}f}{_UNITS.get(name, '')}")
    return ", ".join(parts)


def _lost(sample: Sample, target: Target, classes: Mapping[int, str]) -> list[str]:
    """A line for every object of the sample that is not in the composite's target; needs ids."""
    if "ids" not in sample.target:
        return []
    usable, _ = repair_boxes(sample.target, sample.image.shape[1], sample.image.shape[2])
    accepted, kept = set(usable["ids"].tolist()), set(target["ids"].tolist())
    objects = zip(sample.target["ids"].tolist(), sample.target["labels"].tolist(), strict=True)
    return [
        f"{classes.get(label, label)} {identity} · {_HIDDEN_ORIGINAL if identity in accepted else _BAD_BOX}"
        for identity, label in objects
        if identity not in kept
    ]


def _class_counts(target: Target, classes: Mapping[int, str]) -> dict[str, int]:
    return dict(Counter(classes.get(label, str(label)) for label in target["labels"].tolist()))

"""Objects beside those that the policy places: distractors without a label, and occludees.

Shape letters: M pastes, K auxiliary objects.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import torch

from terse_aug.bank import Foreground, ForegroundBank
from terse_aug.compositing.plan import AuxiliaryObjects
from terse_aug.config import PasteConfig, checked_count
from terse_aug.data.foreground_cache import ForegroundCache
from terse_aug.samplers import ForegroundIndex


class Distractors:
    """Foregrounds of none of the detector's classes, pasted without a label on images with pastes.

    Args:
        bank: the foregrounds.
        count: fewest and most on an image, 0 to 20.

    Raises:
        ValueError: the counts are outside their range.
    """

    def __init__(self, bank: ForegroundBank, count: tuple[int, int] = (1, 3)) -> None:
        self.bank = bank
        self.count = checked_count("count", count)
        self._cache = ForegroundCache(bank)

    def check_classes(self, known: Iterable[str]) -> None:
        """Refuse distractors of a class that the detector knows: it would be taught that they are background.

        Raises:
            ValueError: naming the classes.
        """
        names = {_plain(part) for name in known for part in (name, *name.split("/"))}
        if shared := sorted(name for name in self.bank.categories.values() if _plain(name) in names):
            raise ValueError(
                f"distractors: {', '.join(shared[:10])}: the detector knows this class, and without a label it would "
                "be taught that it is background; leave it out with bank.select(categories=[...])"
            )

    def draw(self, images: Sequence[int], paste: PasteConfig, generator: torch.Generator) -> AuxiliaryObjects:
        """Distractors for some images.

        Args:
            images: numbers of the images that get pastes.
            paste: ``flip_probability`` and ``columns``.
            generator: the only source of randomness.
        """
        counts = torch.randint(self.count[0], self.count[1] + 1, (len(images),), generator=generator)
        image_of = [image for image, count in zip(images, counts.tolist(), strict=True) for _ in range(count)]
        indices: list[int] = torch.randint(len(self._cache), (len(image_of),), generator=generator).tolist()
        drawn = _auxiliary(self._cache, image_of, indices, [], paste, generator)
        return replace(drawn, foregrounds=[_without_keypoints(own) for own in drawn.foregrounds])


def _plain(name: str) -> str:
    return name.strip().casefold()


def draw_occludees(
    cache: ForegroundCache,
    index: ForegroundIndex,
    image_of: Sequence[int],
    labels: Sequence[Collection[int]],
    allowed: Collection[int] | None,
    paste: PasteConfig,
    generator: torch.Generator,
) -> AuxiliaryObjects:
    """Objects of other classes behind some of M pastes; none where no other class is allowed.

    Superimposition, after Jin and Rinard (Learning From Context-Agnostic Synthetic Data, 2020), whose context is the
    composite before.

    Args:
        cache: of the bank.
        index: its foregrounds by class.
        image_of: the image of each paste.
        labels: for each paste the classes that it may have.
        allowed: labels that may be pasted; ``None`` for all.
        paste: ``occluded_object_probability``, ``flip_probability`` and ``columns``.
        generator: the only source of randomness.
    """
    chosen = (torch.rand(len(image_of), generator=generator) < paste.occluded_object_probability).tolist()
    occluded_by, indices = [], []
    for number, own in enumerate(labels):
        others = [
            place
            for place, label in enumerate(index.classes)
            if label not in own and (allowed is None or label in allowed)
        ]
        if chosen[number] and others:
            # A class as often as it has foregrounds: each foreground of another class is equally likely.
            place = torch.multinomial(index.class_sizes[others].double(), 1, generator=generator)
            indices.append(int(index.draw_from_classes(torch.tensor(others)[place], 1, generator)))
            occluded_by.append(number)
    images = [image_of[number] for number in occluded_by]
    return _auxiliary(cache, images, indices, occluded_by, paste, generator)


def _without_keypoints(foreground: Foreground) -> Foreground:
    """A foreground without keypoints, which may differ from the detector's."""
    if foreground.keypoints is None:
        return foreground
    other = replace(foreground, keypoints=None)
    other.cache_outline(foreground.outline)
    return other


def _auxiliary(
    cache: ForegroundCache,
    image_of: list[int],
    indices: list[int],
    occluded_by: list[int],
    paste: PasteConfig,
    generator: torch.Generator,
) -> AuxiliaryObjects:
    flipped = (torch.rand(len(indices), generator=generator) < paste.flip_probability).tolist()
    unit = torch.rand(len(indices), len(paste.columns), generator=generator)
    foregrounds = [cache.foreground(index) for index in indices]
    return AuxiliaryObjects(image_of, indices, foregrounds, flipped, unit, occluded_by)

"""Foregrounds that are drawn and decoded in the data loader's workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import get_worker_info

from terse_aug.bank import Foreground, ForegroundBank
from terse_aug.config import PasteConfig, PolicySettings, check_fraction, policy_settings
from terse_aug.samplers import DrawRequest, ForegroundIndex, Sampler, make_sampler
from terse_aug.utils.distributed import rank
from terse_aug.utils.random import generator_for

_PLAIN_FIELDS = (
    "bank",
    "foreground_candidates",
    "sampler",
    "background_probability",
    "counts",
    "on_background",
    "objects",
    "decoys",
)
_NO_PIXELS = np.zeros((0, 0, 4), np.uint8)


Counts = tuple[float, tuple[int, int], tuple[int, int]]
"""Settings of :class:`terse_aug.PasteConfig` that decide how much is pasted."""


@dataclass(frozen=True)
class SampledForegrounds:
    """The foregrounds of one image, for ``Terse(images, targets, sampled_foregrounds)``.

    Between processes its pixels go through shared memory, in one piece.

    Attributes:
        bank: identity of the bank that they are from.
        foreground_candidates: foregrounds for one paste, from which the policy chooses one.
        sampler: identity of the sampler that has drawn them.
        background_probability: that it was drawn with.
        counts: ``paste_probability``, ``objects`` and ``decoys`` that it was drawn with.
        on_background: whether the image is to be replaced by one of the background pool.
        objects: indices of the foregrounds, ``foreground_candidates`` in a row for each paste.
        decoys: indices of the foregrounds that decoys have the shape of.
        foregrounds: all of them, by index.
    """

    bank: str
    foreground_candidates: int
    sampler: str
    background_probability: float
    counts: Counts
    on_background: bool
    objects: list[int]
    decoys: list[int]
    foregrounds: dict[int, Foreground]

    def __getstate__(self) -> dict[str, Any]:
        pixels = [torch.from_numpy(own.rgba).flatten() for own in self.foregrounds.values()]
        heads = {
            index: (own.rgba.shape, own.outline, replace(own, rgba=_NO_PIXELS))
            for index, own in self.foregrounds.items()
        }
        flat = torch.cat([torch.zeros(0, dtype=torch.uint8), *pixels])
        own = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        return own | {"heads": heads, "pixels": flat}

    def __setstate__(self, state: dict[str, Any]) -> None:
        foregrounds, start, pixels = {}, 0, state["pixels"].numpy()
        for index, (shape, outline, head) in state["heads"].items():
            end = start + int(np.prod(shape))
            foregrounds[index] = replace(head, rgba=pixels[start:end].reshape(shape))
            foregrounds[index].cache_outline(outline)
            start = end
        values = {name: state[name] for name in _PLAIN_FIELDS} | {"foregrounds": foregrounds}
        for name, value in values.items():
            object.__setattr__(self, name, value)


@runtime_checkable
class DrawsCandidates(Protocol):
    """A policy, or settings of one, that may choose among several foregrounds."""

    @property
    def foreground_candidates(self) -> int:
        """Foregrounds for one paste."""

    @property
    def mix_classes(self) -> bool:
        """Whether they may be of different classes."""


class ForegroundLoader:
    """Draws and decodes the foregrounds of an image. Call it once for each image, in the data set or its transform::

        def __getitem__(self, index):
            return image, target, self.foreground_loader(index.number)

    What is drawn is a function of the seed, the rank and the number of the sample, see
    :class:`terse_aug.NumberedSampler`; or, without a number, of the worker's own seed (torch gives it, another one in
    every epoch) and the number of calls in it. The global random state is left alone.

    Args:
        bank: the one that :class:`~terse_aug.Terse` has.
        policy: as for ``Terse``; only its numbers of candidates matter.
        seed: as for ``Terse``.
        paste: as for ``Terse``.
        sampler: as for ``Terse``; one whose draws are independent.
        background_probability: that of the background pool of ``Terse``; 0 without one.

    Raises:
        ValueError: a value is outside its range, or the sampler draws in the training process only.
    """

    def __init__(
        self,
        bank: ForegroundBank,
        policy: str | PolicySettings | Mapping[str, Any] | DrawsCandidates = "random",
        *,
        seed: int = 0,
        paste: PasteConfig | None = None,
        sampler: str | Sampler | Mapping[str, Any] = "uniform",
        background_probability: float = 0.0,
    ) -> None:
        self.paste = paste or PasteConfig()
        self.seed = seed
        self._sampler = make_sampler(sampler)
        check_loader_settings(self.paste, self._sampler, background_probability)
        self._background_probability = background_probability
        chosen = policy if isinstance(policy, DrawsCandidates) else policy_settings(policy)
        self.foreground_candidates, self._mix_classes = 1, False
        if isinstance(chosen, DrawsCandidates):
            self.foreground_candidates, self._mix_classes = chosen.foreground_candidates, chosen.mix_classes
        self._bank, self._identity = bank, bank.identity
        self._sampler.bind(ForegroundIndex(bank.labels, bank.categories), seed)
        # The rank is that of the process that makes the loader: a worker may not know it.
        self._rank = rank()
        self._calls = 0

    def __call__(self, number: int | None = None) -> SampledForegrounds:
        """The foregrounds of the next image.

        Args:
            number: of the sample in the run.
        """
        if number is None:
            worker = get_worker_info()
            keys: tuple[int, ...] = (0 if worker is None else worker.seed, self._calls)
            self._calls += 1
        else:
            keys = (number,)
        generator = generator_for(self.seed, self._rank, "foregrounds", *keys)
        ((pastes, decoy_count),) = draw_counts(self.paste, 1, generator)
        on_background = draws_background(self._background_probability, generator)
        if on_background and not pastes:
            pastes = draw_count_on_background(self.paste, generator)
        decoy_count = decoy_count if pastes else 0
        request = DrawRequest([pastes], self.foreground_candidates, self._mix_classes)
        objects = self._sampler.draw(request, generator)
        decoys: list[int] = torch.randint(len(self._bank), (decoy_count,), generator=generator).tolist()
        return SampledForegrounds(
            self._identity,
            self.foreground_candidates,
            self._sampler.identity,
            self._background_probability,
            counts_of(self.paste),
            on_background,
            objects,
            decoys,
            {index: self._bank[index] for index in sorted({*objects, *decoys})},
        )


def check_loader_settings(paste: PasteConfig, sampler: Sampler, background_probability: float) -> None:
    """Refuse settings with which foregrounds cannot be drawn in the data loader's workers.

    Raises:
        ValueError: naming the setting.
    """
    check_fraction("background_probability", background_probability)
    check_count_on_backgrounds(paste, background_probability)
    if not sampler.in_workers:
        raise ValueError(
            f"sampler: {type(sampler).__name__} depends on what was pasted before, which the data loader's workers do "
            "not know: let Terse draw the foregrounds itself, without ForegroundLoader (in Detectron2 without "
            "TerseMapper, in MMDetection without TersePaste)"
        )


def counts_of(paste: PasteConfig) -> Counts:
    """The settings that :func:`draw_counts` draws with."""
    (fewest, most), (fewest_decoys, most_decoys) = paste.objects, paste.decoys
    return paste.paste_probability, (fewest, most), (fewest_decoys, most_decoys)


def draw_counts(paste: PasteConfig, images: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """For each image the number of pastes, 0 if it gets none; and the number of decoys if it gets any."""
    pasted, *fractions = torch.rand(3, images, generator=generator).tolist()
    pastes, decoys = (
        [low + int(fraction * (high + 1 - low)) for fraction in own]
        for own, (low, high) in zip(fractions, (paste.objects, paste.decoys), strict=True)
    )
    return [
        (count if fraction < paste.paste_probability else 0, decoy_count)
        for fraction, count, decoy_count in zip(pasted, pastes, decoys, strict=True)
    ]


def draws_background(probability: float, generator: torch.Generator) -> bool:
    """Whether an image is replaced by one of the background pool; nothing is drawn where none is."""
    return probability > 0 and float(torch.rand((), generator=generator)) < probability


def check_count_on_backgrounds(paste: PasteConfig, probability: float) -> None:
    """Refuse backgrounds without anything to paste on them.

    Raises:
        ValueError: images are replaced by backgrounds, and ``objects`` allows none on them.
    """
    if probability > 0 and paste.objects[1] == 0:
        raise ValueError("backgrounds: expected objects above 0 with them, because images of the pool get pastes")


def draw_count_on_background(paste: PasteConfig, generator: torch.Generator) -> int:
    """Number of pastes on an image of the background pool, which has no other objects: at least one."""
    return int(torch.randint(max(paste.objects[0], 1), paste.objects[1] + 1, (), generator=generator))


def check_sampled_foregrounds(
    sampled: Sequence[SampledForegrounds],
    images: int,
    bank: str,
    foreground_candidates: int,
    sampler: Sampler,
    background_probability: float,
    paste: PasteConfig,
) -> None:
    """Refuse foregrounds that were not drawn for this batch, bank and settings.

    Args:
        sampled: for each image.
        images: in the batch.
        bank: identity of the bank of ``Terse``.
        foreground_candidates: of its policy.
        sampler: of ``Terse``.
        background_probability: of its background pool; 0 without one.
        paste: of ``Terse``.

    Raises:
        ValueError: naming the image and the difference; or what may be pasted was restricted after they were drawn.
    """
    if len(sampled) != images:
        raise ValueError(f"expected sampled foregrounds for each of {images} images, got {len(sampled)}")
    for number, own in enumerate(sampled):
        where = f"sampled foregrounds of image {number}"
        if not isinstance(own, SampledForegrounds):
            raise ValueError(f"{where}: expected what a ForegroundLoader gives, got {type(own).__name__}")
        if own.bank != bank:
            raise ValueError(f"{where}: from another bank; give ForegroundLoader the bank of Terse")
        expected = {
            "foreground_candidates": (foreground_candidates, own.foreground_candidates),
            "background_probability": (background_probability, own.background_probability),
            "sampler": (sampler.identity, own.sampler),
            "paste_probability, objects, decoys": (counts_of(paste), own.counts),
        }
        for name, (wanted, got) in expected.items():
            if wanted != got:
                raise ValueError(
                    f"{where}: {name}: expected {wanted}, as Terse has, got {got}; give ForegroundLoader (TerseMapper, "
                    "TersePaste) the policy, paste, sampler and backgrounds of Terse (TerseHook), or Terse no sampled "
                    "foregrounds if its sampler draws in the training process only"
                )
    if sampler.allowed_labels is not None:
        raise ValueError(
            f"restrict_labels: only {sampler.allowed_labels} may be pasted, but foregrounds were drawn from all labels"
        )

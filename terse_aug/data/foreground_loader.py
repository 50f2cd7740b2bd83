"""Cut-outs that were drawn and decoded where the images are loaded, in the workers. Imports torch and numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from terse_aug.bank import Foreground, ForegroundBank
from terse_aug.config import TerseConfig, replaced
from terse_aug.samplers import DrawRequest, ForegroundIndex, Sampler, make_sampler
from terse_aug.utils.distributed import rank
from terse_aug.utils.random import generator_for


@dataclass(frozen=True)
class SampledForegrounds:
    """The cut-outs of one image, for ``Terse(images, targets, sampled)``. Sent between processes its pixels go through
    shared memory, in one piece.

    Attributes:
        bank: identity of the bank that they are from.
        offers: cut-outs that are offered for one paste.
        sampler: identity of the sampler that has drawn them.
        background_probability: of the settings that it was made with.
        background: whether the image is to be replaced by one of the pool of backgrounds.
        objects: indices of the cut-outs, ``foreground_candidates`` in a row for each paste; none on an image that is left as it is.
        decoys: indices of the cut-outs that decoys have the shape of.
        foregrounds: by index, all of them.
    """

    bank: str
    foreground_candidates: int
    sampler: str
    background_probability: float
    background: bool
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


class ForegroundLoader:
    """Draws and decodes the cut-outs of an image. Call it once for each image, in the data set or what maps it::

        def __getitem__(self, index):
            return image, target, self.cutouts()

    What is drawn is a function of the seed, the rank, the worker's own seed (torch gives it, another one for every
    pass over the data) and the number of calls in it; the global random state is left alone.

    Args:
        bank: the one that :class:`~terse_aug.Terse` has.
        policy: name of the policy that ``Terse`` has.
        seed: as for ``Terse``.
        sampler: as for ``Terse``; one whose draws are independent.
        config: as for ``Terse``.
        settings: as for ``Terse``.

    Raises:
        ValueError: an unknown setting, a value outside its range, or a sampler that draws in the training process only.
    """

    def __init__(
        self,
        bank: ForegroundBank,
        policy: str = "critic",
        *,
        seed: int = 0,
        sampler: str | Sampler | None = None,
        config: TerseConfig | None = None,
        **settings: Any,
    ) -> None:
        self.config = replaced(config or TerseConfig(), settings)
        self.seed = seed
        self.foreground_candidates = self.config.critic_cutouts if policy == "critic" else 1
        self._bank, self._identity = bank, bank.identity
        self._sampler = make_sampler(self.config.sampler if sampler is None else sampler, self.config)
        if not self._sampler.in_workers:
            raise ValueError(
                f"sampler: {type(self._sampler).__name__} goes by what was pasted before, of which a data loader's "
                "workers know nothing: let Terse draw the cut-outs itself, without ForegroundLoader (in Detectron2 without "
                "TerseMapper, in MMDetection without TersePaste)"
            )
        self._sampler.bind(ForegroundIndex(bank.labels, bank.categories), seed)
        # Of the process that makes it: a worker may not know it.
        self._rank = rank()
        self._calls = 0

    def __call__(self) -> SampledForegrounds:
        """The cut-outs of the next image."""
        worker = get_worker_info()
        generator = generator_for(self.seed, self._rank, "parcel", 0 if worker is None else worker.seed, self._calls)
        self._calls += 1
        pastes, decoy_count = draw_counts(self.config, generator)
        background = replaces_image(self.config, generator)
        if background and not pastes:
            pastes = draw_own_count(self.config, generator)
        decoy_count = decoy_count if pastes else 0
        mix_classes = self.foreground_candidates > 1 and self.config.critic_any_class
        objects = self._sampler.draw(DrawRequest([pastes], self.foreground_candidates, mix_classes), generator)
        decoys: list[int] = torch.randint(len(self._bank), (decoy_count,), generator=generator).tolist()
        whole = {index: self._bank[index] for index in sorted({*objects, *decoys})}
        share = self.config.background_probability
        return SampledForegrounds(
            self._identity,
            self.foreground_candidates,
            self._sampler.identity,
            share,
            background,
            objects,
            decoys,
            whole,
        )


def draw_counts(config: TerseConfig, generator: torch.Generator) -> tuple[int, int]:
    """How many pastes an image gets, none if it is left as it is; and how many decoys if it gets any."""
    pasted = float(torch.rand((), generator=generator)) < config.image_probability
    pastes, decoys = (
        int(torch.randint(low, high + 1, (), generator=generator)) for low, high in (config.objects, config.decoys)
    )
    return pastes if pasted else 0, decoys


def replaces_image(config: TerseConfig, generator: torch.Generator) -> bool:
    """Whether an image is replaced by one of the pool of backgrounds; nothing is drawn where none is."""
    share = config.background_probability
    return share > 0 and float(torch.rand((), generator=generator)) < share


def draw_own_count(config: TerseConfig, generator: torch.Generator) -> int:
    """How many pastes an image of the pool gets, which has no other objects: at least one."""
    return int(torch.randint(max(config.objects[0], 1), config.objects[1] + 1, (), generator=generator))


def check_sampled_foregrounds(
    sampled: Sequence[SampledForegrounds],
    identity: str,
    foreground_candidates: int,
    images: int,
    sampler: Sampler,
    config: TerseConfig,
) -> None:
    """Whether parcels are for a batch and of a bank.

    Args:
        parcels: what came.
        identity: of the bank.
        offers: of the policy.
        images: in the batch.
        sampler: of ``Terse``.
        config: of ``Terse``.

    Raises:
        ValueError: they are not, or what may be pasted was restricted after they were made.
    """
    if len(sampled) != images:
        raise ValueError(f"expected a parcel for each of {images} images, got {len(sampled)}")
    for number, sample in enumerate(sampled):
        if not isinstance(sample, SampledForegrounds):
            raise ValueError(f"parcel {number}: expected what a ForegroundLoader gives, got {type(sample).__name__}")
        if sample.bank != identity:
            raise ValueError(f"parcel {number}: from another bank; give ForegroundLoader the bank of Terse")
        if sample.foreground_candidates != foreground_candidates:
            raise ValueError(
                f"parcel {number}: expected {foreground_candidates} cut-outs offered for each paste, got {sample.foreground_candidates}; give "
                "ForegroundLoader the policy and settings of Terse"
            )
        if sample.background_probability != config.background_probability:
            raise ValueError(
                f"parcel {number}: made with background_probability {sample.background_probability}, but Terse has "
                f"{config.background_probability}; give ForegroundLoader the settings of Terse"
            )
        if sample.sampler != sampler.identity:
            raise ValueError(
                f"parcel {number}: drawn by another sampler, {sample.sampler}, than that of Terse, "
                f"{sampler.identity}; give ForegroundLoader the sampler and settings of Terse, or Terse no parcels if its "
                "sampler draws in the training process only"
            )
    if sampler.allowed_labels is not None:
        raise ValueError(
            f"paste_only: only {sampler.allowed_labels} may be pasted, but the parcels were drawn from all labels"
        )


_PLAIN_FIELDS = (
    "bank",
    "foreground_candidates",
    "sampler",
    "background_probability",
    "background",
    "objects",
    "decoys",
)
_NO_PIXELS = np.zeros((0, 0, 4), np.uint8)

"""Which sample of a generator: latents are a function of seed, number, class and truncation."""

from __future__ import annotations

import math
import re
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from terse_aug.utils.random import generator_for

TruncationMethod = Literal["scaled", "truncated-normal"]
TRUNCATION_METHODS: tuple[TruncationMethod, ...] = get_args(TruncationMethod)

_CUT = 2.0
_SOURCE = re.compile(r".* class (\d+), number (\d+), seed (\d+), (\S+) (\S+)")


class Truncation(NamedTuple):
    """How latents are kept near the mean; the word has two meanings.

    Attributes:
        value: factor of the latents, above 0; 1 for whole normal noise if ``scaled``.
        method: ``scaled``: ``value`` times normal noise (BigDatasetGAN's release). ``truncated-normal``: ``value``
            times a normal distribution truncated at -2 and 2 (BigGAN), with the generator's normalization statistics
            for it where it has any; ``value`` is at most 1.
    """

    value: float = 0.9
    method: str = "scaled"

    def checked(self) -> Truncation:
        """The same, or ``ValueError``."""
        if self.method not in TRUNCATION_METHODS:
            expected = " or ".join(TRUNCATION_METHODS)
            raise ValueError(f"truncation method: expected {expected}, got {self.method!r}")
        largest = 1.0 if self.method == "truncated-normal" else math.inf
        if not (0 < self.value <= largest and math.isfinite(self.value)):
            raise ValueError(f"truncation: expected a number above 0, at most {largest:g}, got {self.value!r}")
        return self


class SampleKey(NamedTuple):
    """What determines a sample of a generator.

    Attributes:
        label: number of the class, an index of the generator's ``class_names``.
        number: of the sample, from 0 on.
        seed: of all samples.
        truncation: see :class:`Truncation`.
    """

    label: int
    number: int
    seed: int = 0
    truncation: Truncation = Truncation()

    def source(self, generator: str, class_name: str) -> str:
        """The sample in words, from which :meth:`from_source` makes the key again."""
        value, method = self.truncation
        name = " ".join(f"{generator} {class_name}".split())
        return f"{name}: class {self.label}, number {self.number}, seed {self.seed}, {method} {float(value)!r}"

    @classmethod
    def from_source(cls, source: str) -> SampleKey:
        """The key of a foreground's ``source``, or ``ValueError``."""
        found = _SOURCE.fullmatch(source)
        if found is None:
            raise ValueError(f"expected the source of a generated foreground, got {source!r}")
        label, number, seed, method, value = found.groups()
        return cls(int(label), int(number), int(seed), Truncation(float(value), method).checked())


def draw_noise(key: SampleKey, count: int) -> Tensor:
    """Noise of a sample: float32 ``[count]``, truncated as the key says."""
    rng = generator_for(key.seed, "generator latent", key.label, key.number)
    if key.truncation.method == "scaled":
        return key.truncation.value * torch.randn(count, generator=rng)
    tail = torch.special.ndtr(torch.tensor(-_CUT, dtype=torch.float64))
    uniform = tail + (1 - 2 * tail) * torch.rand(count, generator=rng, dtype=torch.float64)
    noise: Tensor = key.truncation.value * torch.special.ndtri(uniform)
    return noise.float()

"""Samplers: which cut-outs are pasted, and how they are paired with backgrounds. A new one is one file beside these."""

from collections.abc import Mapping
from typing import Any

from terse_aug.samplers.balanced import BalancedSampler
from terse_aug.samplers.balanced_stream import BalancedStream
from terse_aug.samplers.base import BackgroundDraw, DrawRequest, ForegroundIndex, Sampler
from terse_aug.samplers.by_class import ClassSampler, HardnessSampler, RaritySampler, WeightedSampler
from terse_aug.samplers.uniform import UniformSampler

SAMPLERS = ("uniform", "rarity", "hardness", "balanced")
"""Names of samplers; beside them weights of classes are named as ``dog=3,cat=0.5``."""


def make_sampler(sampler: str | Sampler | Mapping[str, Any]) -> Sampler:
    """A sampler by name, or the given one.

    Args:
        sampler: a name in :data:`SAMPLERS`, weights of classes as text (see :class:`WeightedSampler`), or one that is
            made already.

    Raises:
        ValueError: it is none of these; the message lists the names.
    """
    if isinstance(sampler, Sampler):
        return sampler
    if sampler == "uniform":
        return UniformSampler()
    if sampler == "rarity":
        return RaritySampler(0.5)
    if sampler == "hardness":
        return HardnessSampler()
    if sampler == "balanced":
        return BalancedSampler()
    if isinstance(sampler, str) and "=" in sampler:
        return WeightedSampler(_weights(sampler))
    raise ValueError(
        f"sampler: expected one of {', '.join(SAMPLERS)}, weights as dog=3,cat=0.5, or a Sampler, got {sampler!r}"
    )


def _weights(text: str) -> dict[str, float]:
    weights = {}
    for entry in text.split(","):
        name, _, weight = entry.strip().rpartition("=")
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            raise ValueError(f"sampler: expected weights of classes as dog=3,cat=0.5, got {text!r}") from None
    return weights


__all__ = [
    "SAMPLERS",
    "BackgroundDraw",
    "BalancedSampler",
    "BalancedStream",
    "ClassSampler",
    "DrawRequest",
    "ForegroundIndex",
    "HardnessSampler",
    "RaritySampler",
    "Sampler",
    "UniformSampler",
    "WeightedSampler",
    "make_sampler",
]

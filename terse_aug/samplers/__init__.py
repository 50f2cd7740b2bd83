"""Samplers: which foregrounds are pasted, and on which backgrounds. A new sampler is one file with a subclass."""

from collections.abc import Mapping
from typing import Any

from terse_aug.samplers.balanced import BalancedSampler
from terse_aug.samplers.balanced_stream import BalancedStream
from terse_aug.samplers.base import BackgroundDraw, DrawRequest, ForegroundIndex, Sampler
from terse_aug.samplers.by_class import ClassSampler, HardnessSampler, RaritySampler, WeightedSampler
from terse_aug.samplers.uniform import UniformSampler

SAMPLERS: dict[str, type[Sampler]] = {
    "uniform": UniformSampler,
    "rarity": RaritySampler,
    "hardness": HardnessSampler,
    "balanced": BalancedSampler,
}
"""Samplers by their short name."""


def make_sampler(sampler: str | Mapping[str, Any] | Sampler) -> Sampler:
    """Build a sampler from what a user or a config gives.

    Args:
        sampler: a name in :data:`SAMPLERS`; class weights as text, ``"dog=3,cat=0.5"`` (see :class:`WeightedSampler`);
            a mapping with ``type``, the short name or the class name, and constructor arguments, as
            ``{"type": "RaritySampler", "power": 1.0}``; or a sampler, which is returned as it is.

    Raises:
        ValueError: none of these, or arguments that the constructor refuses.
    """
    if isinstance(sampler, Sampler):
        return sampler
    if isinstance(sampler, str) and "=" in sampler:
        return WeightedSampler(_parse_weights(sampler))
    arguments = dict(sampler) if isinstance(sampler, Mapping) else {"type": sampler}
    name = arguments.pop("type", None)
    classes = SAMPLERS | {made.__name__: made for made in (*SAMPLERS.values(), WeightedSampler)}
    if not isinstance(name, str) or name not in classes:
        raise ValueError(
            f"sampler: expected one of {', '.join(SAMPLERS)}, class weights as dog=3,cat=0.5, a mapping with one of "
            f"these or a class name as type, or a Sampler, got {sampler!r}"
        )
    try:
        return classes[name](**arguments)
    except TypeError as error:
        raise ValueError(f"sampler {name}: {error}") from error


def _parse_weights(text: str) -> dict[str, float]:
    weights = {}
    for entry in text.split(","):
        name, _, weight = entry.strip().rpartition("=")
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            raise ValueError(f"sampler: expected class weights as dog=3,cat=0.5, got {text!r}") from None
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

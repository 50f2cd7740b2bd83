"""The arms that are compared: where their synthetic images come from."""

from __future__ import annotations

from typing import Any

from torch import nn

from affnist.data import AffineRanges
from terse_aug import ForegroundBank, Terse
from terse_aug.targets import ClassifierTarget

ARMS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "mnist": None,
    "random": ("random", {}),
    "hard-random": ("hard-random", {"candidates": 4}),
    "learned": ("learned", {"temperature": 0.1}),
    "critic": ("critic", {"critic_held": ()}),
}
"""Policy and settings by name; ``None`` trains on MNIST's own digits alone."""


def make_terse(arm: str, bank: ForegroundBank, model: nn.Module, ranges: AffineRanges, seed: int) -> Terse | None:
    """The pasting of an arm: a digit on each black canvas, transformed within AffNIST's ranges."""
    chosen = ARMS[arm]
    if chosen is None:
        return None
    policy, settings = chosen
    return Terse(
        bank,
        policy,
        seed=seed,
        target=ClassifierTarget(model, classes=10),
        objects=(1, 1),
        image_probability=1.0,
        decoys=(0, 0),
        mirror_probability=0.0,
        edge_sigma=0.0,
        move_every=1,
        ranges=ranges.for_pasting(),
        **settings,
    )

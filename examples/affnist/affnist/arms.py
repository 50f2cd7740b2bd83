"""The arms that are compared: where their synthetic images come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from affnist.data import AffineRanges
from terse_aug import ForegroundBank, Terse
from terse_aug.models import ClassifierAdapter

CLASSES = 10


@dataclass(frozen=True)
class Arm:
    """Where the synthetic images come from.

    Attributes:
        policy: name; ``None`` trains on MNIST's own digits alone.
        settings: of :class:`Terse`.
        filtered: in lock-step, whether only what the classifier gets wrong is kept.
    """

    policy: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    filtered: bool = True


_CRITIC = Arm("critic", {"critic_held": ()})
_CRITIC_CUTOUTS = Arm("critic", {"critic_held": (), "critic_candidates": 4, "critic_cutouts": 4})

COMMON: dict[str, Any] = {
    "objects": (1, 1),
    "image_probability": 1.0,
    "decoys": (0, 0),
    "mirror_probability": 0.0,
    "edge_sigma": 0.0,
    "move_every": 1,
}
"""Settings that all arms have, unless they say otherwise."""
FIXED = ("objects", "image_probability", "decoys", "mirror_probability", "superimpose_probability", "ranges")
"""What makes a composite a digit of AffNIST's ranges on a black canvas, which the measurements count on."""

LIVE = {
    "mnist": Arm(None),
    "random": Arm("random"),
    "best-of-n": Arm("best-of-n", {"candidates": 4}),
    "adversarial": Arm("adversarial", {"temperature": 0.1}),
    "critic": _CRITIC,
    "critic-cutouts": _CRITIC_CUTOUTS,
}
"""Arms of live training by name."""

LOCKSTEP = {
    "mnist": Arm(None),
    "random": Arm("random", filtered=False),
    "random-filtered": Arm("random"),
    "paper": Arm("paper"),
    "adversarial": Arm("adversarial", {"temperature": 0.1}),
    "critic": _CRITIC,
    "critic-cutouts": _CRITIC_CUTOUTS,
}
"""Arms of lock-step training by name."""


def make_terse(arm: Arm, bank: ForegroundBank, target: ClassifierAdapter, ranges: AffineRanges, seed: int) -> Terse:
    """The pasting of an arm: a digit on each black canvas, transformed within AffNIST's ranges."""
    assert arm.policy is not None
    settings: dict[str, Any] = COMMON | {"ranges": ranges.for_pasting()} | arm.settings
    return Terse(bank, arm.policy, **settings, seed=seed, model=target)

"""The arms that are compared: where their synthetic images come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from affnist.data import AffineRanges
from terse_aug import ForegroundBank, PasteConfig, Terse
from terse_aug.config import Adversarial, BestOfN, Critic, Paper, PolicySettings, Random
from terse_aug.models import ClassifierAdapter

CLASSES = 10


@dataclass(frozen=True)
class Arm:
    """Where the synthetic images come from.

    Attributes:
        policy: settings of the policy; ``None`` trains on MNIST's own digits alone.
        filtered: in lock-step, whether only misclassified composites are kept.
    """

    policy: PolicySettings | None
    filtered: bool = True

    def with_settings(self, settings: Mapping[str, Any]) -> Arm:
        """The same arm with other settings of its policy, where the policy has them."""
        own = {name: value for name, value in settings.items() if hasattr(self.policy, name)}
        return self if self.policy is None else replace(self, policy=replace(self.policy, **own))


_CRITIC = Arm(Critic(fixed_parameters=(), update_interval=1))
_CRITIC_FOREGROUNDS = Arm(Critic(fixed_parameters=(), candidates=4, foreground_candidates=4, update_interval=1))
_ADVERSARIAL = Arm(Adversarial(kl_weight=0.1, update_interval=1))

LIVE = {
    "mnist": Arm(None),
    "random": Arm(Random()),
    "best-of-n": Arm(BestOfN(candidates=4)),
    "adversarial": _ADVERSARIAL,
    "critic": _CRITIC,
    "critic-foregrounds": _CRITIC_FOREGROUNDS,
}
"""Arms of live training by name."""

LOCKSTEP = {
    "mnist": Arm(None),
    "random": Arm(Random(), filtered=False),
    "random-filtered": Arm(Random()),
    "paper": Arm(Paper(update_interval=1)),
    "adversarial": _ADVERSARIAL,
    "critic": _CRITIC,
    "critic-foregrounds": _CRITIC_FOREGROUNDS,
}
"""Arms of lock-step training by name."""


def make_terse(arm: Arm, bank: ForegroundBank, model: ClassifierAdapter, ranges: AffineRanges, seed: int) -> Terse:
    """The pasting of an arm: one digit on each black canvas, transformed within AffNIST's ranges."""
    assert arm.policy is not None
    paste = PasteConfig(
        objects=(1, 1),
        paste_probability=1.0,
        flip_probability=0.0,
        decoys=(0, 0),
        edge_blur_sigma=0.0,
        ranges=ranges.for_pasting(),
    )
    return Terse(bank, arm.policy, model=model, seed=seed, paste=paste)

"""Policies: how the foregrounds of a batch are transformed.

A new one is one file beside these with a subclass of :class:`Policy`, its settings in :mod:`terse_aug.config`, and a
line in ``POLICIES``.
"""

from collections.abc import Callable, Mapping
from typing import Any

from terse_aug.config import (
    Adversarial,
    BestOfN,
    Critic,
    Matched,
    Paper,
    PolicySettings,
    Random,
    policy_settings,
)
from terse_aug.policies.adversarial import AdversarialPolicy, divergence_from_uniform
from terse_aug.policies.base import VIEW_SIDE, Policy, PolicyContext, Proposal, Views, uniform_proposal
from terse_aug.policies.best_of_n import BestOfNPolicy
from terse_aug.policies.critic import CriticPolicy
from terse_aug.policies.matched import MatchedPolicy
from terse_aug.policies.paper import PaperPolicy
from terse_aug.policies.random import RandomPolicy
from terse_aug.transforms import PARAMETERS

POLICIES: dict[type[PolicySettings], Callable[[Any, int, int | None, tuple[str, ...]], Policy]] = {
    Random: lambda settings, seed, classes, columns: RandomPolicy(),
    Matched: lambda settings, seed, classes, columns: MatchedPolicy(settings),
    BestOfN: lambda settings, seed, classes, columns: BestOfNPolicy(settings),
    Critic: lambda settings, seed, classes, columns: CriticPolicy(settings, seed, classes, columns=columns),
    Adversarial: lambda settings, seed, classes, columns: AdversarialPolicy(settings, seed, columns),
    Paper: lambda settings, seed, classes, columns: PaperPolicy(settings, seed, columns),
}
"""A policy from its settings, a seed, the number of classes whose probabilities the model gives, and the names of the
columns of a transform."""


def make_policy(
    policy: str | PolicySettings | Mapping[str, Any] | Policy,
    seed: int,
    classes: int | None = None,
    columns: tuple[str, ...] = PARAMETERS,
) -> Policy:
    """A policy from its name or settings, or the given one.

    Args:
        policy: a name (random, matched, best-of-n, critic, adversarial, paper), settings, a dictionary
            ``{"type": "Critic", ...}``, or a policy.
        seed: of initial weights.
        classes: number of classes, where the model gives the probabilities of all; else ``None``.
        columns: names of the columns of a transform, see :attr:`terse_aug.PasteConfig.columns`.

    Raises:
        ValueError: there is no policy of that name, a setting is unknown or outside its range, or a policy proposes
            transforms with other columns.
    """
    if isinstance(policy, Policy):
        if policy.columns not in (None, columns):
            raise ValueError(
                f"policy: {type(policy).__name__} proposes transforms with {', '.join(policy.columns or ())}, but "
                f"these settings of pasting have {', '.join(columns)}: make it with columns=paste.columns"
            )
        return policy
    settings = policy_settings(policy)
    if type(settings) not in POLICIES:
        raise ValueError(f"policy: expected a name, settings or a Policy, got {policy!r}")
    return POLICIES[type(settings)](settings, seed, classes, columns)


__all__ = [
    "POLICIES",
    "VIEW_SIDE",
    "Adversarial",
    "AdversarialPolicy",
    "BestOfN",
    "BestOfNPolicy",
    "Critic",
    "CriticPolicy",
    "Matched",
    "MatchedPolicy",
    "Paper",
    "PaperPolicy",
    "Policy",
    "PolicyContext",
    "Proposal",
    "Random",
    "RandomPolicy",
    "Views",
    "divergence_from_uniform",
    "make_policy",
    "uniform_proposal",
]

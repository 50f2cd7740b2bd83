"""Policies: how the cut-outs of a batch are transformed. A new policy is one file beside these and a line here."""

from collections.abc import Callable

from terse_aug.config import TerseConfig
from terse_aug.policies.adversarial import AdversarialPolicy, divergence_from_uniform
from terse_aug.policies.base import VIEW_SIDE, Policy, PolicyContext, Proposal, Views, uniform_proposal
from terse_aug.policies.best_of_n import BestOfNPolicy
from terse_aug.policies.critic import CriticPolicy
from terse_aug.policies.paper import PaperPolicy
from terse_aug.policies.random import RandomPolicy

POLICIES: dict[str, Callable[[TerseConfig, int, int | None], Policy]] = {
    "random": lambda config, seed, classes: RandomPolicy(),
    "critic": lambda config, seed, classes: CriticPolicy(
        seed,
        config.critic_candidates,
        config.critic_temperature,
        config.critic_held,
        config.critic_rehearsals,
        classes=classes,
        foreground_candidates=config.critic_cutouts,
        goal=config.critic_goal,
        mix_classes=config.critic_any_class,
    ),
    "deterministic": lambda config, seed, classes: PaperPolicy(seed, config.dropout),
    "hard-random": lambda config, seed, classes: BestOfNPolicy(config.candidates),
    "learned": lambda config, seed, classes: AdversarialPolicy(seed, config.temperature, config.dropout),
}
"""Named policies, each made from the settings, a seed, and the number of classes whose chances the target tells."""


def make_policy(policy: str | Policy, config: TerseConfig, seed: int, classes: int | None = None) -> Policy:
    """A policy by name, or the given one.

    Args:
        policy: a name in :data:`POLICIES`, or one that is made already.
        config: settings.
        seed: of initial weights.
        classes: number of classes, where the target tells the chances of all; else ``None``.

    Raises:
        ValueError: there is no policy of that name; the message lists the names.
    """
    if isinstance(policy, Policy):
        return policy
    if policy not in POLICIES:
        raise ValueError(f"policy: expected one of {sorted(POLICIES)} or a Policy, got {policy!r}")
    return POLICIES[policy](config, seed, classes)


__all__ = [
    "POLICIES",
    "VIEW_SIDE",
    "AdversarialPolicy",
    "BestOfNPolicy",
    "CriticPolicy",
    "PaperPolicy",
    "Policy",
    "PolicyContext",
    "Proposal",
    "RandomPolicy",
    "Views",
    "divergence_from_uniform",
    "make_policy",
    "uniform_proposal",
]

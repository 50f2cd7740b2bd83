"""Policies: how the cut-outs of a batch are transformed. A new policy is one file beside these and a line here."""

from collections.abc import Callable

from terse_aug._config import TerseConfig
from terse_aug.policies._base import GLIMPSE, Glimpses, Policy, Proposal, Scene, uniform_proposal
from terse_aug.policies._critic import CriticPolicy
from terse_aug.policies._hard_random import HardRandomPolicy
from terse_aug.policies._learned import LearnedPolicy, divergence_from_uniform
from terse_aug.policies._random import RandomPolicy

POLICIES: dict[str, Callable[[TerseConfig, int], Policy]] = {
    "random": lambda config, seed: RandomPolicy(),
    "critic": lambda config, seed: CriticPolicy(
        seed,
        config.critic_candidates,
        config.critic_temperature,
        config.critic_held,
        config.critic_rehearsals,
    ),
    "hard-random": lambda config, seed: HardRandomPolicy(config.candidates),
    "learned": lambda config, seed: LearnedPolicy(seed, config.temperature, config.dropout),
}
"""Named policies, each made from the settings and a seed."""


def make_policy(policy: str | Policy, config: TerseConfig, seed: int) -> Policy:
    """A policy by name, or the given one.

    Raises:
        ValueError: there is no policy of that name; the message lists the names.
    """
    if isinstance(policy, Policy):
        return policy
    if policy not in POLICIES:
        raise ValueError(f"policy: expected one of {sorted(POLICIES)} or a Policy, got {policy!r}")
    return POLICIES[policy](config, seed)


__all__ = [
    "GLIMPSE",
    "POLICIES",
    "CriticPolicy",
    "Glimpses",
    "HardRandomPolicy",
    "LearnedPolicy",
    "Policy",
    "Proposal",
    "RandomPolicy",
    "Scene",
    "divergence_from_uniform",
    "make_policy",
    "uniform_proposal",
]

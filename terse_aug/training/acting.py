"""Who proposes the transforms of a batch: the policy, or a copy of it for batches that are composed ahead."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from terse_aug.policies import Policy, PolicyContext, Proposal, uniform_proposal
from terse_aug.samplers import Sampler
from terse_aug.utils.transfer import Reading

_DELAY = 2
"""Iterations after which a copy from a device has long arrived, so that nothing waits for it."""


@dataclass(frozen=True)
class Turn:
    """How one batch is composed.

    Attributes:
        call: number of the batch on this rank, counted over resumed runs.
        policy: proposes the transforms.
        sampler: draws the foregrounds.
        seed: of ``Terse``.
        generator: the only source of randomness.
        learning: whether the policy will learn from the batch.
        random: whether transforms are random instead, because feedback is missing or an update has failed.
    """

    call: int
    policy: Policy
    sampler: Sampler
    seed: int
    generator: torch.Generator
    learning: bool
    random: bool


class ActingPolicy(nn.Module):
    """A copy of a policy on the CPU, for batches that are composed while the policy is updated.

    It has the :meth:`~terse_aug.policies.Policy.acting_state` of an update ``_DELAY`` iterations or more ago. Which
    update that is depends on the number of iterations alone, and a saved state has it too: a resumed run proposes what
    the run before would have.

    Args:
        policy: the one that is trained.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        # In tuples, so that nn.Module does not register them: the state has what is needed.
        self._trained = (policy,)
        self._copy: tuple[Policy] | None = None
        self._loaded: list[Tensor] = []
        self._coming: list[tuple[int, Reading]] = []
        self._random: bool | None = None
        self._advanced = 0

    def policy(self) -> Policy:
        """The copy; until :meth:`advance` nothing changes it."""
        if self._copy is None:
            self._copy = (copy.deepcopy(self._trained[0]).cpu(),)
            self._set(self._loaded)
        return self._copy[0]

    def random(self, now: bool) -> bool:
        """Whether transforms are random: as it was at the last :meth:`advance`, or ``now`` before the first one."""
        self._random = now if self._random is None else self._random
        return self._random

    def is_behind(self, iteration: int) -> bool:
        """Whether batches were composed elsewhere since the last :meth:`advance`."""
        return iteration - self._advanced > 1

    def advance(self, iteration: int, random: bool) -> None:
        """Bring the copy up to date, while no batch is composed.

        Args:
            iteration: the present one.
            random: whether transforms are random from now on.
        """
        self._random, self._advanced = random, iteration
        arrived = [reading for made, reading in self._coming if iteration - made >= _DELAY]
        if arrived:
            self._coming = self._coming[len(arrived) :]
            self._set(arrived[-1].values())

    def updated(self, iteration: int) -> None:
        """The policy was updated in an iteration."""
        if self._copy is not None:
            # Of those that have arrived only the last can be of use.
            arrived = sum(iteration - made >= _DELAY for made, _ in self._coming)
            self._coming = [own for own in self._coming[max(arrived - 1, 0) :] if own[0] != iteration]
            self._coming.append((iteration, Reading(_acting_state(self._trained[0]))))

    def _set(self, values: list[Tensor]) -> None:
        assert self._copy is not None
        with torch.no_grad():
            for own, value in zip(self._copy[0].acting_state(), values, strict=False):
                own.copy_(value)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self._random is None:  # no batch was composed ahead
            return
        versions = [(self._advanced, self._loaded if self._copy is None else _acting_state(self._copy[0]))]
        versions += [(made, reading.values()) for made, reading in self._coming]
        destination[prefix + "random"] = torch.tensor(self._random)
        destination[prefix + "iterations"] = torch.tensor([made for made, _ in versions])
        for number, (_, parameters) in enumerate(versions):
            for row, value in enumerate(parameters):
                destination[f"{prefix}{number}.{row}"] = value

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        self._copy, self._loaded, self._coming, self._random, self._advanced = None, [], [], None, 0
        count = len(self._trained[0].acting_state())
        if any(prefix + name not in state_dict for name in ("random", *(f"0.{row}" for row in range(count)))):
            return  # none, or that of another policy, which is refused for its own parameters
        self._random = bool(state_dict[prefix + "random"])
        versions = [
            (made, [state_dict[f"{prefix}{number}.{row}"].detach().clone() for row in range(count)])
            for number, made in enumerate(state_dict[prefix + "iterations"].tolist())
        ]
        self._advanced, self._loaded = versions[0]
        self._coming = [(made, Reading(values)) for made, values in versions[1:]]


def propose(context: PolicyContext, turn: Turn, failed: Callable[[Exception], None]) -> Proposal:
    """The proposal for a batch; a random one if a forward of the detector fails.

    Args:
        context: what is composed.
        turn: how.
        failed: called with the error of a forward.

    Raises:
        ValueError: see :func:`checked`.
    """
    if not turn.random:
        try:
            proposal = turn.policy.propose(context, turn.generator, turn.learning)
        except Exception as error:
            if not turn.policy.needs_model:
                raise
            failed(error)
        else:
            return checked(proposal, context, turn.policy)
    first = torch.arange(0, len(context.image_of), turn.policy.foreground_candidates)
    return uniform_proposal(len(first), turn.generator, first, context.columns)


def checked(proposal: Proposal, context: PolicyContext, policy: Policy) -> Proposal:
    """A proposal of a policy for a context.

    Raises:
        ValueError: its transforms have more or fewer columns than the context has.
    """
    shape = list(proposal.unit.shape)
    if len(shape) != 2 or shape[1] != len(context.columns):
        raise ValueError(
            f"policy: {type(policy).__name__} proposes transforms of shape {shape}, expected [pastes, "
            f"{len(context.columns)}], a column for each of {', '.join(context.columns)}: let propose() give as many "
            "as context.columns, or switch off the photometric ranges and the further blends of PasteConfig"
        )
    return proposal


def _acting_state(policy: Policy) -> list[Tensor]:
    return [own.detach().clone() for own in policy.acting_state()]

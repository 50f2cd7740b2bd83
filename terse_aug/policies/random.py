"""Policy ``random``: uniform over the allowed ranges. What every other policy is measured against."""

from __future__ import annotations

import torch

from terse_aug.policies.base import Policy, PolicyContext, Proposal, uniform_proposal


class RandomPolicy(Policy):
    """Transforms drawn uniformly from the allowed ranges."""

    in_workers = True

    def propose(self, context: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        """See :meth:`Policy.propose`."""
        return uniform_proposal(len(context.image_of), generator, columns=context.columns)

"""Policy ``paper``: TERSE's own synthesizer, one transform for a background and a foreground, no divergence.

A baseline: it climbs to the corners of its range and stays there. ``adversarial`` is the same with a distribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from terse_aug.config import Paper
from terse_aug.policies.adversarial import AdversarialPolicy
from terse_aug.policies.base import PolicyContext, Proposal
from terse_aug.transforms import PARAMETERS


class PaperPolicy(AdversarialPolicy):
    """The location of the synthesizer's distribution, without its spread; dropout is all that varies it.

    Args:
        settings: see :class:`terse_aug.policies.Paper`; dropout is applied to every proposal.
        seed: of the synthesizer's initial weights.
        columns: names of the columns of a transform, see :attr:`terse_aug.PasteConfig.columns`.
    """

    def __init__(self, settings: Paper | None = None, seed: int = 0, columns: Sequence[str] = PARAMETERS) -> None:
        super().__init__(settings or Paper(), seed, columns)

    def propose(self, context: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        """See :meth:`Policy.propose`; the density of a point is infinite."""
        device, count = context.device, len(context.image_of)
        mask = self._dropout_mask(count, generator)
        with torch.set_grad_enabled(learning), torch.autocast(device.type, enabled=False):
            location, _ = self._distribution(context, mask)
        leaf = location.detach().requires_grad_(learning)
        proposal = Proposal(torch.sigmoid(leaf), torch.full((count,), torch.inf, device=device))
        if learning:
            proposal.leaves, proposal.outputs = (leaf,), (location,)
        return proposal

    def objective(self, proposal: Proposal, gradients: tuple[Tensor, ...]) -> Tensor:
        """Mean over pastes of ``-L``, replaced by its first-order term at the leaves."""
        (location,), (gradient,) = proposal.outputs, gradients
        return -(gradient * location).sum() / max(len(location), 1)

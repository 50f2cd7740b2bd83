"""Policy ``deterministic``: the paper's own synthesizer, one transform for a background and a cut-out, no divergence.

It is here to be compared with. It climbs to the corners of its range and stays there; see ``learned`` for what becomes
of it with a distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from terse_aug.policies.adversarial import AdversarialPolicy
from terse_aug.policies.base import PolicyContext, Proposal


class PaperPolicy(AdversarialPolicy):
    """The location of the synthesizer's distribution, without its spread; dropout is all that varies it.

    Args:
        seed: of the synthesizer's initial weights.
        dropout: see :class:`Synthesizer`; applied to every proposal.
    """

    def __init__(self, seed: int = 0, dropout: float = 0.1) -> None:
        super().__init__(seed, temperature=0.0, dropout=dropout)

    def propose(self, scene: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        """See :meth:`Policy.propose`; the density of a point is infinite."""
        device, count = scene.image_of.device, len(scene.image_of)
        mask = self._dropout_mask(count, generator)
        with torch.set_grad_enabled(learning), torch.autocast(device.type, enabled=False):
            location, _ = self._distribution(scene, None if mask is None else mask.to(device))
        leaf = location.detach().requires_grad_(learning)
        proposal = Proposal(torch.sigmoid(leaf), torch.full((count,), torch.inf, device=device))
        if learning:
            proposal.leaves, proposal.outputs = (leaf,), (location,)
        return proposal

    def objective(self, proposal: Proposal, gradients: tuple[Tensor, ...]) -> Tensor:
        """Mean over pastes of ``-L``, replaced by its first-order term at the leaves."""
        (location,), (gradient,) = proposal.outputs, gradients
        return -(gradient * location).sum() / max(len(location), 1)

"""Policy ``learned``: a stochastic synthesizer that ascends the detector's loss, held to the uniform prior.

Maximises ``E_q[L] - tau KL(q || uniform)``. The detector's own backward gives dL/d(location, spread) at a leaf
that stands between the synthesizer and the compositor; :meth:`AdversarialPolicy.objective` turns its sign, adds the
divergence and carries both through the synthesizer. No pass through the detector is added.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from terse_aug.policies.base import Policy, PolicyContext, Proposal
from terse_aug.policies.synthesizer import Synthesizer
from terse_aug.utils.random import isolated_global_rng

_QUADRATURE_POINTS, _QUADRATURE_LIMIT = 65, 16.0


class AdversarialPolicy(Policy):
    """Transforms drawn from a synthesizer's distribution, ``p = sigmoid(location + spread * logistic noise)``.

    Args:
        seed: of the synthesizer's initial weights.
        temperature: tau, at least 0, in the units of the detector's loss of an image; high is random pasting.
        dropout: see :class:`Synthesizer`; applied to proposals that are learned from.
    """

    learns = True
    uses_thumbnails = True

    def __init__(self, seed: int = 0, temperature: float = 0.1, dropout: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature
        with isolated_global_rng(seed):
            self.synthesizer = Synthesizer(dropout)

    def propose(self, scene: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        """See :meth:`Policy.propose`."""
        device = scene.image_of.device
        noise = torch.rand(len(scene.image_of), self._parameter_count, generator=generator)
        mask = self._dropout_mask(len(scene.image_of), generator) if learning else None
        with torch.set_grad_enabled(learning), torch.autocast(device.type, enabled=False):
            outputs = self._distribution(scene, None if mask is None else mask.to(device))
        leaves = tuple(output.detach().requires_grad_(learning) for output in outputs)
        location, log_spread = leaves
        value = location + log_spread.exp() * torch.logit(noise.to(device), eps=1e-6)
        proposal = Proposal(torch.sigmoid(value), _log_density(value.detach(), *(leaf.detach() for leaf in leaves)))
        if learning:
            proposal.leaves, proposal.outputs = leaves, outputs
        return proposal

    def objective(self, proposal: Proposal, gradients: tuple[Tensor, ...]) -> Tensor:
        """Mean over pastes of ``-L + tau KL``, with L replaced by its first-order term at the leaves."""
        location, log_spread = proposal.outputs
        count = max(len(location), 1)
        ascent = sum(((g * out).sum() for g, out in zip(gradients, proposal.outputs, strict=True)), start=0.0)
        divergence = divergence_from_uniform(location, log_spread).sum()
        proposal.metrics["divergence"] = float(divergence.detach()) / count
        return (self.temperature * divergence - ascent) / count

    @property
    def _parameter_count(self) -> int:
        return self.synthesizer.regressor.out_features // 2

    def _dropout_mask(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Inverted dropout from our own generator; nn.Dropout would draw from the global one."""
        rate = self.synthesizer.dropout
        if rate == 0:
            return None
        kept = torch.rand(count, self.synthesizer.hidden.out_features, generator=generator) >= rate
        return kept.float() / (1 - rate)

    def _distribution(self, scene: PolicyContext, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert scene.backgrounds is not None
        assert scene.foregrounds is not None
        assert scene.natural_size is not None
        location, log_spread = self.synthesizer(
            scene.backgrounds, scene.image_of, scene.foregrounds, scene.natural_size, mask
        )
        return location, log_spread


def divergence_from_uniform(location: Tensor, log_spread: Tensor) -> Tensor:
    """KL(q || uniform on [0, 1]) of ``sigmoid(location + exp(log_spread) * logistic noise)``.

    With x the value before the sigmoid, ``KL = E[softplus(x) + softplus(-x)] - (log_spread + 2)``, the entropy of
    a logistic variable being ``log_spread + 2``; the expectation is taken by the trapezoidal rule over the noise,
    which is all but exact for so smooth a function, so that the uniform distribution is the minimum.

    Args:
        location: float ``[...]``.
        log_spread: float ``[...]``.

    Returns:
        float ``[...]``, 0 at location 0 and log_spread 0, to the rule's accuracy at least 0.
    """
    noise = torch.linspace(-_QUADRATURE_LIMIT, _QUADRATURE_LIMIT, _QUADRATURE_POINTS).to(location)
    density = torch.softmax(-F.softplus(noise) - F.softplus(-noise), 0)
    value = location[..., None] + log_spread.exp()[..., None] * noise
    cross = (density * (F.softplus(value) + F.softplus(-value))).sum(-1)
    uniform = (density * (F.softplus(noise) + F.softplus(-noise))).sum()
    return cross - uniform - log_spread


def _log_density(value: Tensor, location: Tensor, log_spread: Tensor) -> Tensor:
    """log q of ``sigmoid(value)`` on the unit cube, ``[M]``: logistic density over the sigmoid's derivative."""
    standard = (value - location) * torch.exp(-log_spread)
    logistic = -F.softplus(standard) - F.softplus(-standard) - log_spread
    return (logistic + F.softplus(value) + F.softplus(-value)).sum(-1)

"""Policy ``adversarial``: a stochastic synthesizer that ascends the detector's loss, held near uniform.

Maximises ``E_q[L] - kl_weight * KL(q || uniform)``. The detector's own backward gives dL/d(location, spread) at a leaf
between the synthesizer and the compositor; :meth:`AdversarialPolicy.objective` reverses its sign, adds the divergence
and backpropagates both through the synthesizer. No pass through the detector is added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from terse_aug.config import Adversarial, Paper
from terse_aug.policies.base import Policy, PolicyContext, Proposal
from terse_aug.policies.synthesizer import Synthesizer
from terse_aug.transforms import PARAMETERS
from terse_aug.utils.random import isolated_global_rng
from terse_aug.utils.transfer import to_device

_QUADRATURE_POINTS, _QUADRATURE_LIMIT = 65, 16.0


class AdversarialPolicy(Policy):
    """Transforms drawn from a synthesizer's distribution, ``p = sigmoid(location + spread * logistic noise)``.

    Args:
        settings: see :class:`terse_aug.policies.Adversarial`; dropout is applied to proposals that are learned from.
        seed: of the synthesizer's initial weights.
        columns: names of the columns of a transform, see :attr:`terse_aug.PasteConfig.columns`.
    """

    learns = True
    uses_thumbnails = True
    columns: tuple[str, ...]

    def __init__(
        self, settings: Adversarial | Paper | None = None, seed: int = 0, columns: Sequence[str] = PARAMETERS
    ) -> None:
        super().__init__()
        self.columns = tuple(columns)
        settings = settings or Adversarial()
        self.kl_weight = settings.kl_weight if isinstance(settings, Adversarial) else 0.0
        self.discriminator_weight = settings.discriminator_weight
        self.update_interval, self.learning_rate = settings.update_interval, settings.learning_rate
        self.max_gradient_norm = settings.max_gradient_norm
        with isolated_global_rng(seed):
            self.synthesizer = Synthesizer(settings.dropout, columns=len(self.columns))

    def propose(self, context: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        """See :meth:`Policy.propose`."""
        device = context.device
        noise = torch.rand(len(context.image_of), len(self.columns), generator=generator)
        mask = self._dropout_mask(len(context.image_of), generator) if learning else None
        (noise,) = to_device([noise], device)
        with torch.set_grad_enabled(learning), torch.autocast(device.type, enabled=False):
            outputs = self._distribution(context, mask)
        leaves = tuple(output.detach().requires_grad_(learning) for output in outputs)
        location, log_spread = leaves
        value = location + log_spread.exp() * torch.logit(noise, eps=1e-6)
        proposal = Proposal(torch.sigmoid(value), _log_density(value.detach(), *(leaf.detach() for leaf in leaves)))
        if learning:
            proposal.leaves, proposal.outputs = leaves, outputs
        return proposal

    def objective(self, proposal: Proposal, gradients: tuple[Tensor, ...]) -> Tensor:
        """Mean over pastes of ``-L + kl_weight * KL``, with L replaced by its first-order term at the leaves."""
        location, log_spread = proposal.outputs
        count = max(len(location), 1)
        ascent = sum(((g * out).sum() for g, out in zip(gradients, proposal.outputs, strict=True)), start=0.0)
        divergence = divergence_from_uniform(location, log_spread).sum()
        proposal.metrics["divergence"] = divergence.detach() / count
        return (self.kl_weight * divergence - ascent) / count

    def _dropout_mask(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Inverted dropout from our own generator: nn.Dropout draws from the global one."""
        rate = self.synthesizer.dropout
        if rate == 0:
            return None
        kept = torch.rand(count, self.synthesizer.hidden.out_features, generator=generator) >= rate
        return kept.float() / (1 - rate)

    def _distribution(self, context: PolicyContext, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert context.backgrounds is not None
        assert context.foregrounds is not None
        assert context.base_size is not None
        image_of, *masks = to_device([context.image_of, *([] if mask is None else [mask])], context.device)
        location, log_spread = self.synthesizer(
            context.backgrounds, image_of, context.foregrounds, context.base_size, *masks
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
    points = torch.linspace(-_QUADRATURE_LIMIT, _QUADRATURE_LIMIT, _QUADRATURE_POINTS, dtype=location.dtype)
    (noise,) = to_device([points], location.device)
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

"""Losses of the layered generator. Pure functions.

The paper does not say which adversarial loss it uses; the hinge loss here is this project's choice, as is the form of
the background loss.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """``E relu(1 - D(x)) + E relu(1 + D(G(z)))`` from realness ``[B]``: the hinge loss."""
    return F.relu(1 - real).mean() + F.relu(1 + generated).mean()


def realism_loss(generated: Tensor) -> Tensor:
    """``-E D(G(z))`` from realness ``[B]``: what the generator descends."""
    return -generated.mean()


def code_loss(logits: Tensor, codes: Tensor) -> Tensor:
    """Cross-entropy of logits ``[B, N]`` and codes long ``[B]``: minus a lower bound of their mutual information."""
    return F.cross_entropy(logits, codes)


def background_loss(logits: Tensor) -> Tensor:
    """``E -log(1 - S(x_b))``: every pixel of a generated background should be segmented as background.

    Args:
        logits: of the frozen segmentation network, ``[B, 1, S, S]``.
    """
    return F.softplus(logits).mean()


def mask_area_loss(masks: Tensor, least: float) -> Tensor:
    """``relu(least - E m)`` of each mask ``[B, 1, S, S]``; a regulariser of relatives of the paper."""
    return F.relu(least - masks.mean((1, 2, 3))).mean()


def mask_binary_loss(masks: Tensor) -> Tensor:
    """``E min(m, 1 - m)`` of masks ``[B, 1, S, S]``; likewise."""
    return (masks.minimum(1 - masks)).mean()

"""The gradient of a model's training loss with respect to its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from terse_aug.models.isolated_forward import isolated_forward


def input_gradients(
    model: nn.Module, images: Sequence[Tensor], loss: Callable[[list[Tensor]], Tensor], loss_scale: float
) -> tuple[Tensor, list[Tensor]]:
    """Implements :meth:`terse_aug.models.GivesInputGradients.input_gradients` for any model.

    The backward is inside :func:`isolated_forward` because gradient checkpointing runs the forward once more there. It
    ends at the images because all parameters are frozen; reentrant checkpointing refuses ``torch.autograd.grad``.

    Args:
        model: unwrapped.
        images: not modified.
        loss: from images with a graph to a loss of any shape, which is summed.
        loss_scale: factor of the gradients.
    """
    device = images[0].device
    leaves = [image.detach().clone().requires_grad_() for image in images]
    with isolated_forward(model, True, differentiable=True, device=device):
        # Of copies: a model may write into its input.
        total = loss([leaf.clone() for leaf in leaves]).float().sum()
        if total.requires_grad:
            with torch.autocast(device.type, enabled=False):
                torch.autograd.backward(total * loss_scale)
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    return total.detach(), gradients

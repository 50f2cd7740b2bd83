"""The gradient of a target's training loss with respect to its images, taken aside. Imports torch only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from terse_aug.models.base import isolated_forward
from terse_aug.structures.annotations import Target


@runtime_checkable
class GivesInputGradients(Protocol):
    """A target that tells in which direction a batch's pixels make its loss grow."""

    def input_gradients(
        self, images: Sequence[Tensor], targets: Sequence[Target], loss_scale: float = 1.0
    ) -> tuple[Tensor, list[Tensor]]:
        """One forward and one backward of the whole batch; they leave the model as it was.

        Args:
            images: as in :meth:`ModelAdapter.image_losses`.
            targets: likewise.
            loss_scale: the loss is multiplied by it before the backward, so that gradients in float16 do not vanish.

        Returns:
            The training loss of the batch, one number, and for each image ``loss_scale`` times its gradient, of the
            image's shape; zeros where the loss does not depend on the image.
        """
        ...


def input_gradients(
    model: nn.Module, images: Sequence[Tensor], loss: Callable[[list[Tensor]], Tensor], loss_scale: float
) -> tuple[Tensor, list[Tensor]]:
    """What :class:`GivesInputGradients` asks for, of any model.

    The backward is inside :func:`isolated_forward`, too: a model that recomputes its activations (gradient checkpointing)
    runs its forward once more there. It ends at the images because no parameter takes part;
    ``torch.autograd.grad`` would do the same, but reentrant checkpointing refuses it.

    Args:
        model: unwrapped.
        images: left untouched.
        loss: from images with a graph to a loss of any shape, which is summed.
        loss_scale: see :meth:`GivesInputGradients.input_gradients`.
    """
    device = images[0].device
    leaves = [image.detach().clone().requires_grad_() for image in images]
    with isolated_forward(model, True, differentiable=True, device=device):
        # Of copies: a model may write into what it is given.
        total = loss([leaf.clone() for leaf in leaves]).float().sum()
        if total.requires_grad:
            with torch.autocast(device.type, enabled=False):
                torch.autograd.backward(total * loss_scale)
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    return total.detach(), gradients

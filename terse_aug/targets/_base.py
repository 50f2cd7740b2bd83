"""What terse-aug asks of the model that is being trained. Imports torch only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from terse_aug._sample import Target


@runtime_checkable
class TargetModel(Protocol):
    """The model under training ("target" in the paper), seen from outside.

    Both passes leave the model as it was: no gradients, no BatchNorm statistics, no draw from the global random
    generators. Neither is needed for the policies ``random`` and ``learned``.

    Attributes:
        first_label: labels have to be at least this: 1 where 0 stands for background, else 0.
        label_limit: labels have to be below this; ``None`` if unknown.
    """

    first_label: int
    label_limit: int | None

    def image_losses(self, images: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        """The training loss of each image, float ``[B]``."""
        ...

    def object_scores(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        """For each annotated object the model's probability of it, float ``[N]`` in [0, 1].

        Hardness, as the paper has it, is one minus this.
        """
        ...


@contextmanager
def undisturbed(model: nn.Module, training: bool) -> Iterator[None]:
    """Run a model without leaving a trace: modes restored, no gradients, normalisation and dropout frozen.

    Args:
        model: the unwrapped module; a DistributedDataParallel wrapper would synchronise.
        training: mode of the modules that choose between losses and predictions by it.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
                module.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode

"""What terse-aug asks of the model that is being trained. Imports torch only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from terse_aug.structures.annotations import Target
from terse_aug.utils.random import isolated_global_rng


@runtime_checkable
class ModelAdapter(Protocol):
    """The model under training ("target" in the paper), seen from outside.

    Both passes leave the model as it was: no gradients in its parameters, no BatchNorm statistics, no draw from the
    global random generators. In live training neither is needed for the policies ``random`` and ``learned``.

    Attributes:
        first_label: labels have to be at least this: 1 where 0 stands for background, else 0.
        label_limit: labels have to be below this; ``None`` if unknown.
    """

    first_label: int
    label_limit: int | None

    def image_losses(self, images: Sequence[Tensor], targets: Sequence[Target], differentiable: bool = False) -> Tensor:
        """The training loss of each image, float ``[B]``; where asked for, with a graph that ends at the images."""
        ...

    def object_scores(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        """For each annotated object the model's probability of it, float ``[N]`` in [0, 1]; NaN where it tells none.

        Hardness, as the paper has it, is one minus this.
        """
        ...


@runtime_checkable
class GivesClassProbabilities(Protocol):
    """A target that can also say what it takes an object for, from which a policy learns more than from a score."""

    def class_probabilities(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor]:
        """For each annotated object the model's probability of every class, float ``[N, label_limit]``.

        Column k is label k; at the object's label it is what :meth:`ModelAdapter.object_scores` gives. Rows sum to 1, or
        are NaN where the model tells none; independent probabilities (sigmoids) do not belong here.
        """
        ...


class Recorder(Protocol):
    """Hears what a model makes of a batch while it is trained on it; see :class:`RecordsTrainingForward`."""

    def scores(self, images: Sequence[Tensor], targets: Sequence[Target]) -> list[Tensor] | None:
        """What :meth:`ModelAdapter.object_scores` asks for, of the batch that the model was trained on meanwhile.

        Returns:
            For each object float ``[N]`` in [0, 1], NaN where it was not heard of; ``None`` if no training forward
            of these targets was heard.
        """
        ...

    def close(self) -> None:
        """Let go of the model."""
        ...


@runtime_checkable
class RecordsTrainingForward(Protocol):
    """A target whose training forward says how hard the objects are, so that nobody has to ask."""

    def listen(self) -> Recorder | None:
        """Listen to the model until the listener is closed; ``None`` for a model of which nothing would be heard."""
        ...


@contextmanager
def isolated_forward(
    model: nn.Module, training: bool, differentiable: bool = False, device: torch.device | None = None
) -> Iterator[None]:
    """Run a model without leaving a trace: modes and the global random generators as they were, parameters, BatchNorm
    and dropout frozen.

    What the model draws is the same every time. In training mode it works on copies of its persistent buffers, where
    spectral norms and running figures of other kinds than BatchNorm's are. Buffers that are no part of its state are
    left to it: they are tables that it computes when it needs them, and attributes say which they are.

    Args:
        model: the unwrapped module; a DistributedDataParallel wrapper would synchronise, and a sharded one (FSDP) wait
            for ranks that have nothing to ask.
        training: mode of the modules that choose between losses and predictions by it.
        differentiable: record a graph to the inputs.
        device: of the inputs, besides those of the model.
    """
    modes = [(module, module.training) for module in model.modules()]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    devices = {value.device for value in (*model.parameters(), *model.buffers())} | ({device} if device else set())
    buffers: list[tuple[nn.Module, str, Tensor]] = []
    try:
        model.train(training)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
                module.eval()
        if training:
            buffers = _writable_buffers(model)
            copies = {id(buffer): buffer.detach().clone() for _, _, buffer in buffers}
            for module, name, buffer in buffers:
                module._buffers[name] = copies[id(buffer)]
        for parameter in learning:
            parameter.requires_grad_(False)
        with torch.set_grad_enabled(differentiable), isolated_global_rng(0, sorted(devices, key=str)):
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
        for module, mode in modes:
            module.training = mode


def _writable_buffers(model: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """What a forward may write into that is saved; BatchNorm's are frozen, TorchScript's cannot be replaced."""
    return [
        (module, name, buffer)
        for module in model.modules()
        if not isinstance(module, nn.modules.batchnorm._BatchNorm | torch.jit.ScriptModule)
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    ]

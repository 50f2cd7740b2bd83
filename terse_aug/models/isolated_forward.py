"""Running a model without changing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from terse_aug.utils.random import isolated_global_rng


@contextmanager
def isolated_forward(
    model: nn.Module, training: bool, differentiable: bool = False, device: torch.device | None = None
) -> Iterator[None]:
    """Run a model and restore its modes, buffers and the global random generators; parameters, BatchNorm statistics
    and dropout are frozen.

    What the model draws is the same every time. In training mode it works on copies of its persistent buffers, which
    spectral norms and running averages write to. Non-persistent buffers are not copied: they are tables that the model
    computes when it needs them, and its attributes may record which it has.

    Args:
        model: the unwrapped module; a DistributedDataParallel wrapper would synchronise, and a sharded one (FSDP) wait
            for other ranks.
        training: mode of the modules that choose between losses and predictions by it.
        differentiable: record a graph to the inputs.
        device: of the inputs, besides those of the model.
    """
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
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
        for parameter in trainable:
            parameter.requires_grad_(False)
        with torch.set_grad_enabled(differentiable), isolated_global_rng(0, sorted(devices, key=str)):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
        for module, mode in modes:
            module.training = mode


def _writable_buffers(model: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Persistent buffers, but BatchNorm's, which are frozen, and TorchScript's, which cannot be replaced."""
    return [
        (module, name, buffer)
        for module in model.modules()
        if not isinstance(module, nn.modules.batchnorm._BatchNorm | torch.jit.ScriptModule)
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    ]

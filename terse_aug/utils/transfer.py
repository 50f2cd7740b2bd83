"""Copies between CPU and device: many arrays in one piece, because each copy has a fixed cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 16


def to_device(arrays: Sequence[NDArray[Any] | Tensor], device: torch.device) -> list[Tensor]:
    """Arrays or tensors of the CPU on a device, by one copy that is not waited for; on a CPU no copy is made.

    Args:
        arrays: of any shapes and types.
        device: where to.
    """
    tensors = [own if isinstance(own, Tensor) else torch.from_numpy(own) for own in arrays]
    if device.type == "cpu" or not tensors:
        return tensors
    sizes = [own.numel() * own.element_size() for own in tensors]
    starts = [0]
    for size in sizes:
        starts.append(-(-(starts[-1] + size) // _ALIGNMENT) * _ALIGNMENT)
    buffer = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for own, start, size in zip(tensors, starts, sizes, strict=False):
        buffer[start : start + size] = own.contiguous().view(-1).view(torch.uint8)
    there = buffer.to(device, non_blocking=True)
    return [
        there[start : start + size].view(own.dtype).view(own.shape)
        for own, start, size in zip(tensors, starts, sizes, strict=False)
    ]


def to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors on the CPU, without a graph; by one copy, the one synchronization, where they are on a device.

    Args:
        tensors: all on the same device.
    """
    tensors = [own.detach() for own in tensors]
    if not tensors or tensors[0].device.type == "cpu":
        return tensors
    # The widest types first, so that each begins at a multiple of its size.
    order = sorted(range(len(tensors)), key=lambda number: -tensors[number].element_size())
    pieces = [tensors[number].contiguous().view(-1).view(torch.uint8) for number in order]
    here = torch.cat(pieces).cpu()
    found: dict[int, Tensor] = {}
    start = 0
    for number, piece in zip(order, pieces, strict=True):
        part, start = here[start : start + len(piece)], start + len(piece)
        found[number] = part.view(tensors[number].dtype).view(tensors[number].shape)
    return [found[number] for number in range(len(tensors))]

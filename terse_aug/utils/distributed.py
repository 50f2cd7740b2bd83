"""What the adversary does across ranks: same parameters everywhere, gradients averaged by us. Imports torch only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


def rank() -> int:
    """This process's rank; 0 where nothing is distributed."""
    return distributed.get_rank() if _active() else 0


def rank_count() -> int:
    """The number of processes; 1 where nothing is distributed."""
    return distributed.get_world_size() if _active() else 1


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Add up a few numbers over all ranks; every rank has to call it."""
    if not _active():
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device if device.type == "cuda" else "cpu")
    distributed.all_reduce(total)
    return [float(value) for value in total]


def sum_tensors_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Add up tensors over all ranks, in place and in one message; every rank has to call it."""
    if not _active() or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    offset = 0
    for tensor in tensors:
        tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
        offset += tensor.numel()


def _active() -> bool:
    return distributed.is_available() and distributed.is_initialized()

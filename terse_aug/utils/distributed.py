"""Ranks and sums over them; everything also works in a single process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return distributed.get_rank() if _initialized() else 0


def rank_count() -> int:
    """The number of processes; 1 without a process group."""
    return distributed.get_world_size() if _initialized() else 1


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Sums of a few numbers over all ranks; every rank has to call it."""
    if not _initialized():
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device if device.type == "cuda" else "cpu")
    distributed.all_reduce(total)
    return [float(value) for value in total]


def sum_tensors_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Sum tensors over all ranks, in place and in one message; every rank has to call it."""
    if not _initialized() or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _initialized() -> bool:
    return distributed.is_available() and distributed.is_initialized()

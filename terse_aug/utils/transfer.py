"""Copies between CPU and device: many arrays in one piece, because each copy has a fixed cost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 16


def to_device(arrays: Sequence[NDArray[Any] | Tensor], device: torch.device) -> list[Tensor]:
    """Arrays or tensors of the CPU on a device, by one copy that is not waited for; on a CPU no copy is made.

    Args:
        arrays: of any shapes and types; those that are on the device already are taken as they are.
        device: where to.
    """
    found = [own if isinstance(own, Tensor) else torch.from_numpy(own) for own in arrays]
    here = [number for number, own in enumerate(found) if own.device.type == "cpu"]
    for number, own in zip(here, Upload([found[number] for number in here], device).send(), strict=True):
        found[number] = own
    return found


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers on a device, where they stay: a copy in every iteration would cost as much as their use."""
    with torch.inference_mode(False):  # or a later gradient could not use them
        return to_device([torch.tensor(values, dtype=dtype)], device)[0]


class Upload:
    """Arrays or tensors of the CPU, packed for one copy to a device; on a CPU nothing is packed.

    Args:
        arrays: of any shapes and types.
        device: where to.
    """

    def __init__(self, arrays: Sequence[NDArray[Any] | Tensor], device: torch.device) -> None:
        self._tensors = [own if isinstance(own, Tensor) else torch.from_numpy(own) for own in arrays]
        self._device = device
        self._buffer: Tensor | None = None
        if device.type == "cpu" or not self._tensors:
            return
        sizes = [own.numel() * own.element_size() for own in self._tensors]
        self._starts = [0]
        for size in sizes:
            self._starts.append(-(-(self._starts[-1] + size) // _ALIGNMENT) * _ALIGNMENT)
        buffer = _pinned(self._starts[-1], device)
        for own, start, size in zip(self._tensors, self._starts, sizes, strict=False):
            buffer[start : start + size] = own.contiguous().view(-1).view(torch.uint8)
        self._buffer = buffer

    def send(self) -> list[Tensor]:
        """The tensors on the device, by one copy that is not waited for."""
        if self._buffer is None:
            return self._tensors
        there = self._buffer.to(self._device, non_blocking=self._device.type != "mps")
        return [
            there[start : start + own.numel() * own.element_size()].view(own.dtype).view(own.shape)
            for own, start in zip(self._tensors, self._starts, strict=False)
        ]


def _pinned(count: int, device: torch.device) -> Tensor:
    """Bytes on the CPU that a device reads and writes while the program goes on."""
    if device.type == "cuda":
        return torch.empty(count, dtype=torch.uint8, pin_memory=True)
    buffer = torch.empty(count, dtype=torch.uint8)
    return buffer if device.type == "mps" else buffer.pin_memory()


class Reading:
    """Tensors on their way to the CPU by one copy, which the program does not wait for until it needs them.

    Args:
        tensors: on one device; those on the CPU are taken as they are.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [own.detach() for own in tensors]
        self._event: torch.Event | None = None
        there = [number for number, own in enumerate(self._tensors) if own.device.type != "cpu"]
        if not there:
            return
        # The widest types first, so that each begins at a multiple of its size.
        self._order = sorted(there, key=lambda number: -self._tensors[number].element_size())
        pieces = [self._tensors[number].contiguous().view(-1).view(torch.uint8) for number in self._order]
        packed, device = torch.cat(pieces), self._tensors[there[0]].device
        self._buffer = _pinned(len(packed), device)
        self._buffer.copy_(packed, non_blocking=device.type != "mps")
        self._event = torch.Event(device)
        self._event.record()

    def values(self) -> list[Tensor]:
        """The tensors on the CPU, without a graph; waits for the device if they have not arrived."""
        if self._event is None:
            return self._tensors
        if not self._event.query():
            self._event.synchronize()
        found, start = list(self._tensors), 0
        for number in self._order:
            own = self._tensors[number]
            end = start + own.numel() * own.element_size()
            found[number], start = self._buffer[start:end].view(own.dtype).view(own.shape), end
        return found


def to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors on the CPU, without a graph; by one copy, the one synchronization, where they are on a device.

    Args:
        tensors: on one device or the CPU.
    """
    return Reading(tensors).values()

"""Modules and functions that keep apart from what they are used in: a larger module, a compiled function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import nn

Function = TypeVar("Function", bound=Callable[..., Any])


class SelfContainedModule(nn.Module):
    """A module whose parts train on their own.

    A module that holds it has its state and mode, and moves it to a device. But the parameters and buffers of its parts
    are none of that module's: the optimizer, clipping of gradients and weight decay do not touch them, and
    DistributedDataParallel neither waits for their gradients nor replaces what each rank has collected for itself.
    """

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """As of any module; for a module that holds it, which gives ``memo``, itself without its parts.

        ``parameters``, ``buffers`` and ``modules`` of that module rest on this.
        """
        if memo is None:
            yield from super().named_modules(memo, prefix, remove_duplicate)
        elif self not in memo:
            memo.add(self)
            yield prefix, self


def uncompiled(function: Function) -> Function:
    """A function that runs as it is, with all that it calls: a break of the graph in a compiled function."""
    return cast(Function, torch.compiler.disable(function))  # type: ignore[no-untyped-call]  # torch's, untyped

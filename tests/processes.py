"""Fresh processes that need not import torch and the frameworks again, which takes seconds each time."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import Any

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_SLOW = ("torch", "torchvision", "terse_aug.terse", "terse_aug.lockstep", "detectron2.engine", "mmdet.models")


def fresh() -> BaseContext:
    """A context that starts processes as ``spawn`` does, with nothing of this one's memory.

    They are forked from a server that has done nothing but import the slow modules that were imported here when it
    was started.
    """
    context = multiprocessing.get_context(METHOD)
    if METHOD == "forkserver":
        context.set_forkserver_preload([name for name in _SLOW if name in sys.modules])
    return context


def exit_code(work: Callable[..., None], *arguments: Any) -> int | None:
    """Of a fresh process that does ``work``, a function of a module; minus the signal that killed it."""
    process = fresh().Process(target=work, args=arguments)
    process.start()
    process.join()
    return process.exitcode

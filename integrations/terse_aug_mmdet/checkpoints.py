"""Resuming from MMEngine's checkpoints with ``torch.load(weights_only=True)``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

_STATISTICS = ("mean", "max", "min", "current")


def allow_own_checkpoints() -> None:
    """Allow ``torch.load(weights_only=True)``, the default since torch 2.6, to read what MMEngine saves.

    Its checkpoints hold the history of the logs: its own buffers and arrays of numbers, nothing that runs code.
    Without this MMEngine 0.10.7 cannot resume from its own files.
    """
    kinds = (np.dtype(kind) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_, np.uint8))
    arrays: list[Any] = [np.ndarray, np.dtype, *{type(kind) for kind in kinds}]
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        return  # older versions load everything
    methods = (statistic_of_buffer, "builtins.getattr")
    torch.serialization.add_safe_globals([HistoryBuffer, methods, *_rebuilders(), *arrays])


def statistic_of_buffer(owner: object, name: str) -> object:
    """Replaces ``getattr``, with which a pickle names the methods of a buffer; it returns nothing else.

    Raises:
        ValueError: a file names something else.
    """
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise ValueError(f"a checkpoint names {name!r} of {owner!r}, which is no statistic of MMEngine's log")
    return getattr(HistoryBuffer, name)


def _rebuilders() -> list[Any]:
    """The functions that pickles name to make numpy arrays and numbers, under the names of numpy 1 and 2."""
    reconstruct, scalar = np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    older = [(reconstruct, "numpy.core.multiarray._reconstruct"), (scalar, "numpy.core.multiarray.scalar")]
    return [reconstruct, scalar, *older]

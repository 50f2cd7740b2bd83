"""Whether a hook that pastes was made in this process: without one, transforms and mappers have no effect."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakSet

from torch.utils.data import get_worker_info

from terse_aug.utils.warnings import TerseWarning

_HOOKS: WeakSet[Any] = WeakSet()


def add_hook(hook: object) -> None:
    """Record that a hook was made, and is enabled."""
    _HOOKS.add(hook)


class HookCheck:
    """Warns once if foregrounds are sampled and there is no hook; of a data loader's workers the first one warns.

    A hook may be made after the transform or mapper: call it where the first image is loaded.

    Args:
        name: of the transform or mapper.
        hook: how the hook is added.
    """

    def __init__(self, name: str, hook: str) -> None:
        self._name, self._hook = name, hook
        self._known = False

    def __call__(self) -> None:
        """Warn, if it is due."""
        if self._known:
            return
        self._known = True
        worker = get_worker_info()
        if not _HOOKS and (worker is None or worker.id == 0):
            text = (
                f"{self._name} samples foregrounds, but no TerseHook was made so far: without one nothing is pasted. "
                f"For a training add {self._hook}"
            )
            warnings.warn(text, TerseWarning, stacklevel=3)

    def __getstate__(self) -> dict[str, Any]:
        # A worker that does not share this process's memory knows no hooks.
        return vars(self) | {"_known": self._known or bool(_HOOKS)}

"""What listeners have in common: they know of each training forward of a model, from its beginning on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle

Arguments = tuple[Any, ...]
Forward = TypeVar("Forward")

_MOST_HEARD = 4


class TrainingForwards(ABC, Generic[Forward]):
    """Listens to the training forwards of a model, and keeps what is heard of the first few.

    Args:
        model: unwrapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self.forwards: list[Forward] = []
        self.current: Forward | None = None
        self._handles: list[RemovableHandle] = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]

    @abstractmethod
    def begun(self, inputs: Arguments, named: Mapping[str, Any]) -> Forward:
        """What is to be kept of a forward, from the model's arguments.

        Raises:
            AttributeError, LookupError, TypeError: the model is called in a way of its own; nothing is heard then.
        """

    def hold(self, handle: RemovableHandle) -> None:
        """Remove a hook too when this is closed."""
        self._handles.append(handle)

    def close(self) -> None:
        """See :class:`terse_aug.targets.Listener`."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.forwards.clear()
        self.current = None

    def _begin(self, module: nn.Module, inputs: Arguments, named: Mapping[str, Any]) -> None:
        self.current = None
        if not module.training or len(self.forwards) == _MOST_HEARD:
            return
        try:
            self.current = self.begun(inputs, named)
        except (AttributeError, LookupError, TypeError):
            return
        self.forwards.append(self.current)

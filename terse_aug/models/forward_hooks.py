"""Hooks that record the training forwards of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle

Arguments = tuple[Any, ...]
Record = TypeVar("Record")

_MAX_RECORDS = 2


class ForwardHooks(ABC, Generic[Record]):
    """Keeps a record of each of the first two training forwards of a model.

    An exception in a hook does not reach the model: it is kept in ``error``, and recording ends. Hooks of a copied or
    unpickled model do nothing.

    Args:
        model: unwrapped.

    Attributes:
        records: in order.
        current: the record of the running or last forward; ``None`` if it is not recorded.
        error: of a hook.
    """

    records: list[Record]
    current: Record | None = None
    error: Exception | None = None
    _handles: tuple[RemovableHandle, ...] = ()
    _active = False

    def __init__(self, model: nn.Module) -> None:
        self.records = []
        self._active = True
        self._handles = (model.register_forward_pre_hook(self.begin, with_kwargs=True),)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    @abstractmethod
    def start_record(self, inputs: Arguments, keywords: Mapping[str, Any]) -> Record | None:
        """A record for a forward, from the model's arguments; ``None`` for a forward that is not recorded."""

    def begin(self, module: nn.Module, inputs: Arguments, keywords: Mapping[str, Any]) -> None:
        """A forward begins. The model's hook calls it; for a forward that runs already, the caller does."""
        if not self._active or not self._handles:
            return
        self.current = None
        if not module.training or len(self.records) == _MAX_RECORDS or self.error is not None:
            return
        try:
            self.current = self.start_record(inputs, keywords)
        except Exception as error:  # the model may be called with other arguments
            self.error = error
        if self.current is not None:
            self.records.append(self.current)

    def on_input(self, module: nn.Module, add: Callable[[Record, Arguments], None]) -> None:
        """Call ``add(record, arguments)`` before each forward of a module."""
        self._register(lambda: module.register_forward_pre_hook(_Hook(self, add)))

    def on_output(self, module: nn.Module, add: Callable[[Record, Any], None]) -> None:
        """Call ``add(record, output)`` after each forward of a module."""
        self._register(lambda: module.register_forward_hook(_Hook(self, add)))

    def close(self) -> None:
        """See :class:`terse_aug.models.Recorder`."""
        for handle in self._handles:
            handle.remove()
        self._handles = ()
        self.records = []
        self.current = None

    def run_safely(self, add: Callable[[Record, Any], None], value: Any) -> None:
        """Call ``add`` with the current record; an exception is kept."""
        if not self._active or self.current is None:
            return
        try:
            add(self.current, value)
        except Exception as error:
            self.error, self.current = error, None

    def _register(self, register: Callable[[], RemovableHandle]) -> None:
        try:
            self._handles += (register(),)
        except Exception:
            self.close()  # removes the hooks registered before
            raise


class _Hook:
    """A hook before or after a module's forward; copies of it do nothing."""

    def __init__(self, hooks: ForwardHooks[Any] | None = None, add: Callable[..., None] | None = None) -> None:
        self._owner, self._add = hooks, add

    def __call__(self, module: nn.Module, *values: Any) -> None:
        """With the module's arguments, or with these and its output."""
        if self._owner is not None and self._add is not None:
            self._owner.run_safely(self._add, values[-1])

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()

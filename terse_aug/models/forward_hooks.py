"""What listeners have in common: they know of each training forward of a model, from its beginning on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle

Arguments = tuple[Any, ...]
Forward = TypeVar("Forward")

_MOST_HEARD = 2


class ForwardHooks(ABC, Generic[Forward]):
    """Listens to the training forwards of a model, and keeps what is heard of the first two.

    Nothing that goes wrong in listening reaches the model: it is kept in ``trouble``, and nothing more is heard. A
    copy of the model, or one that was pickled, has a deaf listener.

    Args:
        model: unwrapped.

    Attributes:
        forwards: what was heard, in order.
        current: the forward that runs, or ran last; ``None`` if it is not listened to.
        trouble: what went wrong.
    """

    forwards: list[Forward]
    current: Forward | None = None
    trouble: Exception | None = None
    _handles: tuple[RemovableHandle, ...] = ()
    _deaf = True

    def __init__(self, model: nn.Module) -> None:
        self.forwards = []
        self._deaf = False
        self._handles = (model.register_forward_pre_hook(self._begin, with_kwargs=True),)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    @abstractmethod
    def begun(self, inputs: Arguments, named: Mapping[str, Any]) -> Forward | None:
        """What is to be kept of a forward, from the model's arguments; ``None`` for nothing."""

    def on_call(self, module: nn.Module, hear: Callable[[Forward, Arguments], None]) -> None:
        """Call a function with the forward that runs whenever a module is called."""
        self._hold(lambda: module.register_forward_pre_hook(_Hook(self, hear)))

    def on_output(self, module: nn.Module, hear: Callable[[Forward, Any], None]) -> None:
        """Likewise with a module's output."""
        self._hold(lambda: module.register_forward_hook(_Hook(self, hear)))

    def _hold(self, register: Callable[[], RemovableHandle]) -> None:
        try:
            self._handles += (register(),)
        except Exception:
            self.close()  # of what was registered before
            raise

    def close(self) -> None:
        """See :class:`terse_aug.models.Recorder`."""
        for handle in self._handles:
            handle.remove()
        self._handles = ()
        self.forwards = []
        self.current = None

    def _begin(self, module: nn.Module, inputs: Arguments, named: Mapping[str, Any]) -> None:
        if self._deaf:
            return
        self.current = None
        if not module.training or len(self.forwards) == _MOST_HEARD or self.trouble is not None:
            return
        try:
            self.current = self.begun(inputs, named)
        except Exception as error:  # of a model that is called in a way of its own
            self.trouble = error
        if self.current is not None:
            self.forwards.append(self.current)

    def safely(self, hear: Callable[[Forward, Any], None], heard: Any) -> None:
        """Call a function of the forward that runs; what goes wrong is kept."""
        if self._deaf or self.current is None:
            return
        try:
            hear(self.current, heard)
        except Exception as error:
            self.trouble, self.current = error, None


class _Hook:
    """A hook before or after a module's forward; a copy of it is deaf."""

    def __init__(self, listener: ForwardHooks[Any] | None = None, hear: Callable[..., None] | None = None) -> None:
        self._listener, self._hear = listener, hear

    def __call__(self, module: nn.Module, *heard: Any) -> None:
        """With the module's arguments, or with them and its output."""
        if self._listener is not None and self._hear is not None:
            self._listener.safely(self._hear, heard[-1])

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()

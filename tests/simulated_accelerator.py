"""A simulated accelerator: tensors of a device of their own that hold CPU data, refuse to be mixed with tensors of the
CPU, and count what a CUDA device would do.

Importing this module registers the device ``simulated:0`` (PrivateUse1) for the whole process. Import it before the
first ``backward`` of the process, as pytest does when it collects: autograd counts devices once. :func:`counted` counts

- launches: operators below autograd that compute something. Views, metadata and empty tensors are free, a ``foreach``
  operator is one; so is one that CUDA runs in several kernels (sort, convolution): the counts are a lower bound;
- synchronisations: the host waits for a value: copies to the CPU, ``item``, ``tolist``, shapes that depend on values;
- copies to the device; those without ``non_blocking`` or from memory that is not pinned also apart, since CUDA may
  wait for the stream there, too;
- reads: copies to the CPU that do not wait. Their values are poison (NaN, or the largest integer) until an event that
  was recorded after them (``torch.Event(device)``) is queried or waited for, or anything else synchronises.

``Tensor.pin_memory()`` is simulated, ``torch.empty(..., pin_memory=True)`` is not. There are no streams, no second
device and no generator of the device: random factories draw from the CPU's global generator.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from operation_counts import Counts, count, counted
from torch import Tensor
from torch.optim import optimizer
from torch.utils import _foreach_utils
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

__all__ = ["DEVICE", "Counts", "SimulatedEvent", "SimulatedTensor", "counted"]

NAME = "simulated"
CPU = torch.device("cpu")

# No kernel. ``scalar_tensor`` is the number of ``x[mask] = 1.0``, which CUDA takes from the host.
_FREE = {
    "_local_scalar_dense", "_unsafe_view", "empty", "empty_like", "empty_strided", "is_pinned", "is_same_size",
    "lift_fresh", "new_empty", "new_empty_strided", "record_stream", "resize_", "scalar_tensor", "set_",
}  # fmt: skip
_WAITING = {
    "_linalg_check_errors", "_local_scalar_dense", "_unique", "_unique2", "bincount", "equal", "is_nonzero",
    "masked_select", "nms", "nonzero", "unique_consecutive", "unique_dim", "unique_dim_consecutive",
}  # fmt: skip
_INDEXING = {"_index_put_impl_", "_unsafe_index", "_unsafe_index_put", "index", "index_put", "index_put_"}
_TAKES_NUMBERS = {"_index_put_impl_", "fill", "fill_", "index_put", "index_put_", "masked_fill", "masked_fill_"}

_pending: list[tuple[int, Tensor, Tensor]] = []  # reads: their number, where their values will be, and the values
_sent = [0]


class SimulatedTensor(Tensor):
    """A tensor of the simulated device; ``held`` is its data."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, held: Tensor) -> SimulatedTensor:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        own = Tensor._make_wrapper_subclass(cls, held.shape, **layout, device=DEVICE)
        own.held = held
        return own

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"simulated({self.held!r})"

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: SimulatedTensor) -> None:
        Tensor.data.__set__(self, value)
        self.held = value.held

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def numpy(self, **settings: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first")

    def __deepcopy__(self, memo: dict[int, Any]) -> SimulatedTensor:
        copied = SimulatedTensor(self.held.clone()).requires_grad_(self.requires_grad)
        copied.__dict__.update({name: value for name, value in self.__dict__.items() if name != "held"})
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[[Tensor], SimulatedTensor], tuple[Tensor]]:
        return SimulatedTensor, (self.detach().cpu(),)

    def __tensor_flatten__(self) -> tuple[list[str], None]:  # so that nn.Module.to keeps the Parameter object
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: None, size: Any, stride: Any) -> SimulatedTensor:
        return SimulatedTensor(inner["held"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # composite operators arrive whole
            result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        name = func.overloadpacket.__name__
        if name == "copy_":
            return _copy(*args, **kwargs)
        if name == "_to_copy":
            return _to_copy(args[0], **kwargs)
        _refuse_mixing(func, name, args, kwargs)
        return _computed(func, name, args, kwargs)


def _mapped(kind: type, change: Callable[[Any], Any], value: Any) -> Any:
    """Change the tensors in arguments or results, which may be in lists."""
    if isinstance(value, kind):
        return change(value)
    return type(value)(_mapped(kind, change, one) for one in value) if isinstance(value, (list, tuple)) else value


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(Tensor, found.append, value)
    return found


def _is_simulated(value: Any) -> bool:
    return isinstance(value, SimulatedTensor)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, SimulatedTensor) else value


def _computed(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Run an operator on the held data."""
    waits, device = _waits(name, args, kwargs), kwargs.get("device")
    held = {key: _mapped(SimulatedTensor, _held, value) for key, value in kwargs.items()}
    if device is not None:
        held["device"] = CPU
    result = func(*_mapped(SimulatedTensor, _held, args), **held)
    if waits:
        _synchronise(name, waits)
    if device is not None and torch.device(device).type != NAME:
        return result
    moves = torch.Tag.inplace_view in func.tags  # unsqueeze_, t_
    if moves:
        with torch._C._DisableTorchDispatch():
            func(*args, **kwargs)
    written = _written(func, args, kwargs)
    if any(_is_simulated(own) and own.held.shape != own.shape for own in written):
        raise NotImplementedError(f"{func} changes the shape of a simulated tensor in place")
    returned = [own.alias_info is not None and own.alias_info.is_write for own in func._schema.returns]
    if returned and all(returned):
        wrapped: Any = written[0] if len(returned) == 1 else tuple(written)
    else:
        wrapped = _mapped(Tensor, SimulatedTensor, result)
    outputs = [*_tensors(wrapped), *_tensors(written)]
    if name == "equal" or (not (func.is_view or moves) and name not in _FREE and any(own.numel() for own in outputs)):
        count("launches", name)
    return wrapped


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """The arguments that an operator writes to; the tensors of lists one by one."""
    if not func._schema.is_mutable:
        return []
    written: list[Any] = []
    for place, declared in enumerate(func._schema.arguments):
        if declared.alias_info is not None and declared.alias_info.is_write:
            written.extend(_tensors([args[place] if place < len(args) else kwargs.get(declared.name)]))
    return written


def _refuse_generator(generator: Any) -> None:
    if generator is not None:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")


def _refuse_mixing(func: Any, name: str, args: Any, kwargs: Any) -> None:
    """The errors of CUDA, where an operator gets tensors of both devices or a generator of the CPU."""
    _refuse_generator(kwargs.get("generator"))
    foreign = [value for value in _tensors([args, list(kwargs.values())]) if not _is_simulated(value)]
    if not foreign:
        return
    if name in _INDEXING and _is_simulated(args[0]):
        indices = [index for index in args[1] if index is not None and not _is_simulated(index)]
        count("copies", name, len(indices))
        count("blocking_copies", name, len(indices))
        foreign = [value for value in foreign if not any(value is index for index in indices)]
    numbers = torch.Tag.pointwise in func.tags or name in _TAKES_NUMBERS or name.startswith("_foreach")
    written = _written(func, args, kwargs)
    if any(not numbers or value.dim() or any(value is own for own in written) for value in foreign):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got some of {DEVICE} and cpu")


def _waits(name: str, args: Any, kwargs: Any) -> int:
    """How often the host waits for the device in an operator."""
    if name == "repeat_interleave":
        return int(kwargs.get("output_size") is None)
    if name not in _INDEXING:
        return int(name in _WAITING)
    given = [index for index in args[1] if index is not None]
    masks = [index for index in given if _is_simulated(index) and index.dtype in (torch.bool, torch.uint8)]
    number = "put" in name and len(given) == 1 and args[2].numel() == 1 and not any(args[3:4])
    return 0 if number else len(masks)  # ``x[mask] = 1.0`` is a ``masked_fill``


def _synchronise(name: str, number: int = 1) -> None:
    count("synchronisations", name, number)
    _deliver(_sent[0])


def _deliver(before: int) -> None:
    """The reads that were started before arrive."""
    while _pending and _pending[0][0] < before:
        _, target, value = _pending.pop(0)
        target.copy_(value)


def _read(target: Tensor, waits: bool, name: str) -> None:
    """Count a copy to the CPU; if nobody waits for it, hide its values."""
    if waits or not target.numel():
        _synchronise(name, int(target.numel() > 0))
        return
    count("reads", name)
    _pending.append((_sent[0], target, target.clone()))
    _sent[0] += 1
    floating = target.is_floating_point()
    target.fill_(torch.nan if floating else 1 if target.dtype == torch.bool else torch.iinfo(target.dtype).max)


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """``target.copy_(source)`` between any two devices."""
    here, there = _is_simulated(source), _is_simulated(target)
    _held(target).copy_(_held(source))
    if target.numel():
        count("launches", "copy_", int(here and (there or target.dtype != source.dtype)))
        count("copies", "copy_", int(not here))
        count("blocking_copies", "copy_", int(not here and not (non_blocking and _is_pinned(source))))
    if here and not there:
        _read(target, not (non_blocking and _is_pinned(target)), "copy_")
    return target


def _to_copy(source: SimulatedTensor, **kwargs: Any) -> Tensor:
    device, non_blocking = kwargs.pop("device", None), kwargs.pop("non_blocking", False)
    kwargs.pop("pin_memory", None)
    result = torch.ops.aten._to_copy.default(source.held, **kwargs)
    stays = device is None or torch.device(device).type == NAME
    count("launches", "_to_copy", int(result.numel() > 0 and (stays or result.dtype != source.dtype)))
    if stays:
        return SimulatedTensor(result)
    _read(result, not non_blocking, "_to_copy")
    return result


def _pin(value: Tensor, device: Any = None) -> Tensor:
    copied = value.clone()
    copied.simulated_pin = True
    return copied


def _is_pinned(value: Tensor, device: Any = None) -> bool:
    return any(getattr(own, "simulated_pin", False) for own in (value, value._base))


class SimulatedEvent:
    """Knows which reads were started before it; ``delay`` is how many queries get a no, as of a busy device."""

    delay = 1 << 30

    def __new__(cls, device: Any = NAME, **settings: Any) -> Any:
        return super().__new__(cls) if torch.device(device).type == NAME else _TorchEvent(device, **settings)

    def __init__(self, device: Any = NAME, **settings: Any) -> None:
        self._before = self._queries = 0

    def record(self, stream: Any = None) -> None:
        self._before, self._queries = _sent[0], 0

    def query(self) -> bool:
        self._queries += 1
        if self._queries > self.delay:
            _deliver(self._before)
        return not _pending or _pending[0][0] >= self._before

    def synchronize(self) -> None:
        count("synchronisations", "event")
        _deliver(self._before)


class _Module(_DummyBackendModule):
    """What torch looks for as ``torch.simulated``."""

    Event = SimulatedEvent

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device: Any = None) -> None:
        _synchronise("synchronize")


def _factory(func: Any) -> Callable[..., Tensor]:
    name = func.overloadpacket.__name__

    def made(*args: Any, device: Any = None, pin_memory: Any = None, **kwargs: Any) -> Tensor:
        _refuse_generator(kwargs.get("generator"))
        result = func(*args, device=CPU, **kwargs)
        count("launches", name, int(name not in _FREE and result.numel() > 0))
        return SimulatedTensor(result)

    return made


def _factories() -> Iterator[tuple[str, Any]]:
    """Operators that make a tensor of a device from none."""
    for full in torch._C._dispatch_get_all_op_names():
        space, _, rest = full.partition("::")
        name, _, overload = rest.partition(".")
        func = getattr(getattr(torch.ops.aten, name), overload or "default", None) if space == "aten" else None
        if func is not None and [str(own.type) for own in func._schema.returns] == ["Tensor"]:
            kinds = {str(own.type) for own in func._schema.arguments}
            if "Optional[Device]" in kinds and not any("Tensor" in kind for kind in kinds):
                yield rest, func


def _register() -> torch.library.Library:
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("aten", "IMPL")
    for name, func in _factories():
        library.impl(name, _factory(func), "PrivateUse1")
    # torch.tensor(..., device=simulated) copies by it, past __torch_dispatch__.
    library.impl("_copy_from", lambda source, target, wait_not=False: _copy(target, source, wait_not), "PrivateUse1")
    library.impl("_pin_memory", _pin, "CPU")
    library.impl("is_pinned", _is_pinned, "CPU")
    torch.Event = SimulatedEvent
    for module in (optimizer, _foreach_utils):
        module._foreach_supported_types.append(SimulatedTensor)
    return library


if hasattr(torch, NAME):  # imported under a second name: a process has one such device
    sys.modules[__name__] = sys.modules[type(getattr(torch, NAME)).__module__]
else:
    _TorchEvent = torch.Event
    _library = _register()
    DEVICE = torch.device(NAME, 0)

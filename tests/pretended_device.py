"""A pretended accelerator: it computes on the CPU and keeps the rules of a real device.

Tensors on it (PyTorch's Python-only PrivateUse1 backend) refuse to mix with the host's as CUDA's
do, and float64 where that is asked for, as Apple's MPS does. Every wait of the host for the device
is noted down: reading a value, a shape that depends on values (boolean masks, `nonzero`, `unique`,
`bincount`), and a copy to or from the device without ``non_blocking``; `torch.tensor` is one too.

An asynchronous copy to the host holds nonsense until an event or a stream that follows it has been
waited for, which is one wait. A tensor made on one stream is refused on another that has not waited
for the first. Streams and events are those of ``torch.get_device_module(device)``, which are there
on CPUs and CUDA devices alike.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators.cpu import CPUAccelerator
from lightning_fabric.strategies.single_device import SingleDeviceStrategy
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

NAME = "pretended"
WAITING = {
    "_coalesce",
    "_local_scalar_dense",
    "_unique",
    "_unique2",
    "allclose",
    "bincount",
    "equal",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
COPYING = {"_foreach_copy_", "_to_copy", "copy_"}
INDEXING = {"_index_put_impl_", "_unsafe_index", "index", "index_put", "index_put_"}
AUTOCAST = ("conv2d", "linear", "matmul", "prelu")
JOINING = {"cat", "stack"}
"""Operations that refuse even the host's single numbers."""


@dataclass(frozen=True)
class Wait:
    """The host waited for the device.

    Attributes:
        operation: what for.
        place: the line of Margrave that did, or of the test.
    """

    operation: str
    place: str


class PretendedStream(torch.Stream):
    """A queue of work; `seen` is how far it has waited for others."""

    def __new__(cls, device: Any = None, priority: int = 0) -> PretendedStream:
        del priority
        return super().__new__(cls, device=device or NAME)

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.owner = _module().device
        self.work = 0
        self.seen: dict[PretendedStream, int] = {}

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def wait_stream(self, stream: PretendedStream) -> None:
        self._wait_for(stream, stream.work)

    def wait_event(self, event: PretendedEvent) -> None:
        if event.stream is not None:
            self._wait_for(event.stream, event.work)

    def _wait_for(self, stream: PretendedStream, work: int) -> None:
        for other, seen in {**stream.seen, stream: work}.items():
            self.seen[other] = max(seen, self.seen.get(other, 0))

    def record_event(self, event: PretendedEvent | None = None) -> PretendedEvent:
        event = event or PretendedEvent()
        event.record(self)
        return event

    def synchronize(self) -> None:
        _active().wait("stream.synchronize", self)

    def query(self) -> bool:
        return True


class PretendedEvent(torch.Event):
    """A mark in a stream's queue."""

    stream: PretendedStream | None = None
    work: int = 0

    def __new__(cls, device: Any = None, **settings: Any) -> PretendedEvent:
        del settings
        return super().__new__(cls, device=device or NAME)

    def record(self, stream: PretendedStream | None = None) -> None:
        self.stream = stream or _active().stream
        self.work = self.stream.work

    def wait(self, stream: PretendedStream | None = None) -> None:
        (stream or _active().stream).wait_event(self)

    def synchronize(self) -> None:
        if self.stream is not None:
            _active().wait("event.synchronize", self.stream, self.work)

    def query(self) -> bool:
        if self.stream is not None:
            _active().complete(self.stream, self.work)
        return True


@dataclass
class PretendedDevice:
    """The device while it is there.

    Attributes:
        float64: whether it has that type.
        device: to be given to PyTorch.
        waits: of the host, so far.
        stream: the current one.
    """

    float64: bool
    device: torch.device
    stream: PretendedStream
    waits: list[Wait] = field(default_factory=list)
    _copies: list[tuple[PretendedStream, int, Tensor, Tensor]] = field(default_factory=list)
    _done: dict[PretendedStream, int] = field(default_factory=dict)

    @contextmanager
    def counting(self) -> Iterator[list[Wait]]:
        """The waits of what happens inside."""
        before, self.waits = self.waits, []
        try:
            yield self.waits
        finally:
            self.waits = [*before, *self.waits]

    def fabric(self) -> Fabric:
        """Lightning Fabric that places everything on this device."""
        strategy = SingleDeviceStrategy(device=self.device, accelerator=_PretendedAccelerator())
        return Fabric(strategy=strategy)

    def wait(
        self, operation: str, stream: PretendedStream | None = None, work: int | None = None
    ) -> None:
        """Note a wait for what a stream was given, whose copies to the host are then complete."""
        self.waits.append(Wait(operation, _calling_line()))
        stream = stream or self.stream
        self.complete(stream, stream.work if work is None else work)

    def complete(self, stream: PretendedStream, work: int) -> None:
        """A stream's first pieces of work are done."""
        self._done[stream] = max(work, self._done.get(stream, 0))
        due = [each for each in self._copies if each[0] is stream and each[1] <= work]
        self._copies = [each for each in self._copies if each not in due]
        # Inference mode writes into tensors made in it and into others.
        with torch.inference_mode():
            for _, _, host, values in due:
                host.copy_(values)

    def copy_later(self, host: Tensor, values: Tensor) -> None:
        """Begin a copy to the host."""
        nonsense = float("nan") if host.is_floating_point() else _lowest(host.dtype)
        with torch.inference_mode():
            host.fill_(nonsense)
        self._copies.append((self.stream, self.stream.work, host, values))

    def check_ordered(self, tensor: PretendedTensor) -> None:
        """Refuse a tensor that another stream may not have made yet."""
        maker, work = tensor.made
        if maker.owner is not self:  # what is cached may be of an earlier device
            return
        seen = max(self.stream.seen.get(maker, 0), self._done.get(maker, 0))
        if maker is not self.stream and seen < work:
            raise RuntimeError("a tensor is used on a stream that has not waited for its maker's")


def _lowest(dtype: torch.dtype) -> int:
    return 0 if dtype == torch.bool else torch.iinfo(dtype).min


class _PretendedAccelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        del device


class PretendedTensor(torch.Tensor):
    """A tensor on the device; `inner` holds its values on the CPU."""

    inner: Tensor
    made: tuple[PretendedStream, int]

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendedTensor:
        device = _active()
        strided = inner.layout == torch.strided
        tensor = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            inner.size(),
            strides=inner.stride() if strided else None,
            storage_offset=inner.storage_offset() if strided else None,
            dtype=inner.dtype,
            layout=inner.layout,
            device=device.device,
        )
        tensor.inner = inner
        tensor.made = (device.stream, device.stream.work)
        return tensor

    def __repr__(self, **_: Any) -> str:
        if _module().device is not None:
            _active().wait("repr")
        return f"PretendedTensor({self.inner})"

    # With these two, modules swap their parameters for those on the device and keep their identity.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> PretendedTensor:
        return PretendedTensor(inner["inner"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied: Tensor = self.detach().clone().requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copied = torch.nn.Parameter(copied, self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, values: Tensor) -> None:
        # It would be set out of this class's sight.
        raise NotImplementedError("use copy_ instead of setting data")

    def tolist(self) -> Any:
        _active().wait("tolist")
        return self.inner.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("a tensor on the pretended device has no NumPy array; use .cpu() first")

    def __array__(self, *_: Any) -> Any:
        return self.numpy()

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(function, args, kwargs or {})


class _Placing(TorchDispatchMode):
    """Tensors may be made on the device, and moved to it."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Do as a device would, on the CPU."""
    name, device = function.overloadpacket.__name__, _active()
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    there = [each for each in tensors if isinstance(each, PretendedTensor)]
    wanted = kwargs.get("device")
    if not there and (wanted is None or torch.device(wanted).type != NAME):
        # Page-locked memory is like any other here.
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        return function(*args, **kwargs)
    if name == "record_stream":
        return None
    if _is_composite(function):
        # In inference mode PyTorch leaves it to whoever comes first to take these apart.
        with _Placing():
            return function.decompose(*args, **kwargs)
    device.stream.work += 1
    for tensor in there:
        device.check_ordered(tensor)
    if len(there) < len(tensors):
        _check_mixture(function, name, args, tensors)
    asynchronous = _note_waits(device, name, args, kwargs, tensors)
    if wanted is not None:
        on_device = torch.device(wanted).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    else:
        on_device = isinstance(args[0], PretendedTensor) if name in COPYING else True
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    plain_args, plain_kwargs = tree_map_only(PretendedTensor, _inner, (args, kwargs))
    if asynchronous and name == "copy_":
        device.copy_later(plain_args[0], plain_args[1].to(plain_args[0]).clone())
        return args[0]
    result = function(*plain_args, **plain_kwargs)
    written = [_argument(args, kwargs, place) for place in _written(function)]
    for tensor in written:
        if isinstance(tensor, PretendedTensor):
            if tensor.inner.shape != tensor.shape:
                raise NotImplementedError(f"{name} changes a shape in place")
            tensor.made = (device.stream, device.stream.work)
    if written:
        return written[0] if len(written) == 1 else tuple(written)
    if not on_device:
        if asynchronous:
            device.copy_later(result, result.clone())
        return result
    made = [each for each in tree_flatten(result)[0] if isinstance(each, Tensor)]
    if not device.float64 and any(each.dtype == torch.float64 for each in made):
        raise TypeError(f"this device has no float64 ({name}, {_calling_line()})")
    # A view is an inference tensor if what it shows is one.
    views = _views(function) and not args[0].is_inference()
    with torch.inference_mode(False) if views else nullcontext():
        return tree_map_only(Tensor, PretendedTensor, result)


def _inner(tensor: PretendedTensor) -> Tensor:
    return tensor.inner


def _check_mixture(function: Any, name: str, args: tuple, tensors: list[Tensor]) -> None:
    """Refuse what CUDA refuses: the host's tensors beside the device's, single numbers aside."""
    if name in COPYING:
        return
    if name in INDEXING:
        own = isinstance(args[0], PretendedTensor)
        values = [each for each in args[2:] if isinstance(each, Tensor)]
    else:
        own, values = not _written(function) or isinstance(args[0], PretendedTensor), tensors
    allowed = -1 if name in JOINING else 0
    if not own or any(
        each.dim() > allowed for each in values if not isinstance(each, PretendedTensor)
    ):
        places = ", ".join(f"{tuple(each.shape)} on {each.device}" for each in tensors)
        raise RuntimeError(f"tensors on different devices ({name}, {_calling_line()}): {places}")


def _note_waits(
    device: PretendedDevice, name: str, args: tuple, kwargs: dict[str, Any], tensors: list[Tensor]
) -> bool:
    """Note the wait of an operation, if it is one; whether it is a copy to the host without."""
    host = [each for each in tensors if not isinstance(each, PretendedTensor)]
    if name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        device.wait("item" if name == "_local_scalar_dense" else name)
    elif name in INDEXING:
        indices = [each for each in args[1] if each is not None]
        masks = any(each.dtype in (torch.bool, torch.uint8) for each in indices)
        if masks or any(not isinstance(each, PretendedTensor) for each in indices):
            device.wait("boolean mask" if masks else "index on the host")
    elif name == "where" and host:
        device.wait("number on the host")
    elif name in COPYING:
        wanted = kwargs.get("device")
        crosses = (
            bool(host) if wanted is None else (torch.device(wanted).type == NAME) == bool(host)
        )
        to_host = crosses and (isinstance(args[0], PretendedTensor) == (name == "_to_copy"))
        if crosses and not (kwargs.get("non_blocking") or args[2:3] == (True,)):
            device.wait("copy to the host" if to_host else "copy to the device")
        else:
            return to_host
    return False


@cache
def _is_composite(function: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(
        function.name(), "CompositeImplicitAutograd"
    )


@cache
def _views(function: Any) -> bool:
    aliases = [returned.alias_info for returned in function._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


@cache
def _written(function: Any) -> tuple[int | str, ...]:
    """The arguments that an operation writes and returns, by position or by name."""
    places: list[int | str] = []
    for returned in function._schema.returns:
        alias = returned.alias_info
        if alias is not None and alias.is_write:
            places += [
                argument.name if argument.kwarg_only else place
                for place, argument in enumerate(function._schema.arguments)
                if argument.alias_info and argument.alias_info.before_set == alias.before_set
            ]
    return tuple(places)


def _argument(args: tuple, kwargs: dict[str, Any], place: int | str) -> Any:
    return kwargs[place] if isinstance(place, str) else args[place]


def _calling_line() -> str:
    """The nearest line of Margrave on the stack, or else of a test."""
    frame, test = sys._getframe(1), "?"
    while frame is not None:
        path = frame.f_code.co_filename
        if "/src/margrave/" in path:
            return f"{path.partition('/src/')[2]}:{frame.f_lineno}"
        if test == "?" and "/tests/" in path and path != __file__:
            test = f"{path.rpartition('/tests/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return test


class _DeviceModule:
    """``torch.pretended``: it is registered once per process, and available while `device` is."""

    Stream, Event = PretendedStream, PretendedEvent
    device: PretendedDevice | None = None

    def __init__(self) -> None:
        self.kernels = torch.library.Library("aten", "IMPL")
        self.others = torch.library.Library("_", "IMPL")

    def is_available(self) -> bool:
        return self.device is not None

    def device_count(self) -> int:
        return int(self.is_available())

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        del device

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        del seed

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def current_stream(self, device: Any = None) -> PretendedStream:
        del device
        return _active().stream

    @contextmanager
    def stream(self, stream: PretendedStream | None) -> Iterator[None]:
        device = _active()
        before, device.stream = device.stream, stream or device.stream
        try:
            yield
        finally:
            device.stream = before

    def synchronize(self, device: Any = None) -> None:
        del device
        _active().wait("synchronize")


class _Hook(backend_registration._DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return _module().is_available()


def why_not() -> str | None:
    """Why there can be no pretended device here, or None if there can."""
    if hasattr(torch, NAME):
        return None
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        return "this PyTorch has no backends written in Python"
    if torch.accelerator.is_available():
        return "it would take the place of this machine's own accelerator"
    return None


def _module() -> _DeviceModule:
    """What PyTorch is told of the device, once per process."""
    if not hasattr(torch, NAME):
        # The first backward pass begins a thread for each device, which this one needs none of.
        torch.ones((), requires_grad=True).backward()
        module = _DeviceModule()
        backend_registration._setup_privateuseone_for_python_backend(NAME, module, _Hook())
        # Like CUDA, and unlike MPS, it checks conditions by itself; `_run` does so.
        module.kernels.impl("_assert_async.msg", lambda *_: None, "PrivateUse1")
        # As on other devices, autocast lowers the operations that matrix units do.
        module.others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        for name in AUTOCAST:
            module.kernels.impl(name, _lowered(name), "AutocastPrivateUse1")
    return getattr(torch, NAME)


def _lowered(name: str) -> Callable[..., Tensor]:
    """An operation on values cast to autocast's type."""
    operation = getattr(torch.ops.aten, name).default
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(torch.get_autocast_dtype(NAME)) if floating else value

    def run(*args: Any, **kwargs: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return operation(*(cast(value) for value in args), **kwargs)

    return run


def _active() -> PretendedDevice:
    device = _module().device
    assert device is not None, "the pretended device is gone"
    return device


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _placed(make: Callable[..., Tensor], data: Any, operation: str, **settings: Any) -> Tensor:
    """A tensor of Python numbers on the device; PyTorch makes these out of dispatch's sight."""
    device = _active()
    # An array's memory would be shared.
    values = make(data, **settings).clone()
    if not device.float64 and values.dtype == torch.float64:
        raise TypeError(f"this device has no float64 ({operation}, {_calling_line()})")
    device.wait(operation)
    return PretendedTensor(values)


def _makers() -> dict[str, Callable[..., Any]]:
    as_tensor, tensor, new_tensor = torch.as_tensor, torch.tensor, Tensor.new_tensor

    def as_tensor_there(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        if not _is_there(device):
            return as_tensor(data, dtype=dtype, device=device)
        if isinstance(data, Tensor):
            return data.to(device, dtype)
        return _placed(as_tensor, data, "as_tensor", dtype=dtype)

    def tensor_there(data: Any, dtype: Any = None, device: Any = None, **rest: Any) -> Tensor:
        if not _is_there(device):
            return tensor(data, dtype=dtype, device=device, **rest)
        return _placed(tensor, data, "tensor", dtype=dtype, **rest)

    def new_tensor_there(
        self: Tensor, data: Any, dtype: Any = None, device: Any = None, **rest: Any
    ) -> Tensor:
        if isinstance(self, PretendedTensor) if device is None else _is_there(device):
            return _placed(tensor, data, "new_tensor", dtype=dtype or self.dtype, **rest)
        return new_tensor(self, data, dtype=dtype, device=device, **rest)

    def pin_memory_there(self: Tensor, device: Any = None) -> Tensor:
        del device
        return self.clone()

    return {
        "torch.as_tensor": as_tensor_there,
        "torch.tensor": tensor_there,
        "torch.Tensor.new_tensor": new_tensor_there,
        "torch.Tensor.pin_memory": pin_memory_there,
    }


@contextmanager
def pretended_device(float64: bool = True) -> Iterator[PretendedDevice]:
    """The device, for as long as this lasts.

    Args:
        float64: whether it has that type.
    """
    module = _module()
    assert module.device is None, "there is one pretended device at a time"
    device = PretendedDevice(float64, torch.device(NAME, 0), PretendedStream())
    with ExitStack() as stack:
        module.device = device
        device.stream.owner = device
        stack.callback(setattr, module, "device", None)
        for place, maker in _makers().items():
            stack.enter_context(patch(place, maker))
        stack.enter_context(_Placing())
        # Backward passes stay in this thread.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        yield device

"""Running TensorRT engines on torch's tensors, its current stream and its allocator.

What is needed of torch comes in as a `Device`, so that all of this runs over stand-ins too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Final, final

import torch
from deltapass.backends.tensorrt.library import (
    Library,
    Log,
    make_log,
    missing_device,
)

from deltapass.errors import EngineRunError

# Names in the library's DataType -> torch's types.
TYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {
        "FLOAT": torch.float32,
        "HALF": torch.float16,
        "BF16": torch.bfloat16,
        "INT64": torch.int64,
        "INT32": torch.int32,
        "INT8": torch.int8,
        "UINT8": torch.uint8,
        "BOOL": torch.bool,
    }
)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """Where engines run.

    Attributes:
        place: The device of all tensors.
        stream: The handle of the stream to run on, asked at every call.
        allocate: A dense tensor of a shape and type on the device, whose memory is safe to use on
            that stream.
        follow: Lets that stream wait for all that runs on another, given by its handle, whose
            memory it is about to use.
    """

    place: torch.device
    stream: Callable[[], int]
    allocate: Callable[[tuple[int, ...], torch.dtype], torch.Tensor]
    follow: Callable[[int, torch.Tensor | None], None]


def cuda_device(library: Library, index: int = 0) -> Device:
    """A CUDA device, with torch's current stream and caching allocator.

    Raises:
        MissingDeviceError: If there is no such device.
    """
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise missing_device(library.flavour, library.architectures)
    place = torch.device("cuda", index)
    return Device(
        place=place,
        stream=lambda: int(torch.cuda.current_stream(place).cuda_stream),
        allocate=lambda shape, dtype: torch.empty(shape, dtype=dtype, device=place),
        follow=partial(_follow, place),
    )


def _follow(place: torch.device, other: int, memory: torch.Tensor | None) -> None:
    current = torch.cuda.current_stream(place)
    # Of handle 0, the default stream, ExternalStream makes another stream without a word.
    wrap: Any = torch.cuda.ExternalStream
    current.wait_stream(wrap(other, device=place) if other else torch.cuda.default_stream(place))
    if memory is not None:
        memory.record_stream(current)  # else the allocator gives it away too early


@final
@dataclass
class Workspace:
    """Memory for intermediate values, shared by segments that run one after another.

    It grows to the largest need. What it let go of stays whole until the stream has passed it: the
    allocator sees to that, as with any tensor. Another stream first waits for the last one.
    """

    device: Device
    _memory: torch.Tensor | None = field(default=None, repr=False)
    _stream: int | None = None

    @property
    def size(self) -> int:
        """Bytes held."""
        return 0 if self._memory is None else self._memory.numel()

    def turn_to(self, stream: int) -> None:
        """Let the current stream, which this is, be the one that may use the memory."""
        if self._stream not in (None, stream):
            self.device.follow(int(self._stream or 0), self._memory)
        self._stream = stream

    def at_least(self, size: int) -> int:
        """The address of memory of at least `size` bytes."""
        if self._memory is None or self.size < size:
            self._memory = self.device.allocate((max(size, 1),), torch.uint8)
        return self._memory.data_ptr()


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Port:
    """An input or output of an engine. `index` is its place among the arguments or results."""

    name: str
    index: int
    dtype: torch.dtype


@final
@dataclass(frozen=True, kw_only=True)
class EngineSegment:
    """A loaded engine as a function of tensors by position. One call at a time.

    Attributes:
        taken: How many arguments there are; an engine may have no port for one it does not read.
        context: The library's execution context, which holds shapes and addresses.
        workspace: Where intermediate values go; None if the context has memory of its own.
        bytes_needed: Of the workspace.
        held: The engine and the runtime the context came from.
    """

    flavour: str
    device: Device
    taken: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    context: Any = field(repr=False)
    workspace: Workspace | None
    bytes_needed: int
    log: Log = field(repr=False)
    held: tuple[Any, ...] = field(repr=False)

    def __call__(
        self, *arguments: torch.Tensor, into: Sequence[torch.Tensor | None] | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Run on the current stream, without waiting for it.

        Args:
            *arguments: In the order of the names given to `load_segment`; any layout.
            into: A dense tensor for each output to write it to, or None to make one.

        Returns:
            The outputs. They are the caller's: no later call writes to them.

        Raises:
            EngineRunError: If a tensor does not fit the engine, or the library refuses.
        """
        if len(arguments) != self.taken:
            raise self._error(f"it takes {self.taken} tensors and got {len(arguments)}")
        # Held here until the launch: the allocator knows of nothing that runs before it.
        dense = [self._bind(port, arguments[port.index]) for port in self.inputs]
        results = [self._result(port, into) for port in self.outputs]
        stream = self.device.stream()
        if self.workspace is not None:
            self.workspace.turn_to(stream)
            address = self.workspace.at_least(self.bytes_needed)
            self.context.set_device_memory(address, self.workspace.size)
        if not self.context.execute_async_v3(stream):
            raise self._error(*self.log.problems)
        del dense
        return tuple(results)

    def _bind(self, port: Port, value: torch.Tensor) -> torch.Tensor:
        """Tell the context an input's shape and address."""
        if (value.dtype, value.device) != (port.dtype, self.device.place):
            wanted = f"{port.dtype} on {self.device.place}"
            raise self._error(
                f"input {port.name!r} is {value.dtype} on {value.device}, not {wanted}"
            )
        dense = value.contiguous()
        if not self.context.set_input_shape(port.name, tuple(dense.shape)):
            shape = list(dense.shape)
            raise self._error(f"input {port.name!r} may not have shape {shape}", *self.log.errors)
        self._address(port, dense)
        return dense

    def _result(self, port: Port, into: Sequence[torch.Tensor | None] | None) -> torch.Tensor:
        """The tensor that an output is written to."""
        shape = tuple(int(size) for size in self.context.get_tensor_shape(port.name))
        if min(shape, default=0) < 0:
            raise self._error(f"the shape of output {port.name!r} depends on values: {list(shape)}")
        given = into[port.index] if into is not None else None
        if given is None:
            given = self.device.allocate(shape, port.dtype)
        fits = (tuple(given.shape), given.dtype, given.device) == (
            (shape, port.dtype, self.device.place)
        )
        if not fits or not given.is_contiguous():
            raise self._error(f"output {port.name!r} is a dense {port.dtype} {list(shape)}")
        self._address(port, given)
        return given

    def _address(self, port: Port, value: torch.Tensor) -> None:
        if not self.context.set_tensor_address(port.name, value.data_ptr()):
            raise self._error(f"the address of {port.name!r} is refused", *self.log.errors)

    def _error(self, *problems: str) -> EngineRunError:
        return EngineRunError(self.flavour, problems)


def load_segment(
    engine: bytes,
    library: Library,
    device: Device,
    *,
    inputs: Sequence[str] | None = None,
    workspace: Workspace | None = None,
) -> EngineSegment:
    """Load an engine.

    Args:
        engine: As built.
        library: Of the flavour and version it was built with.
        device: Where it runs.
        inputs: Names in the order of the arguments; None takes the engine's own order.
        workspace: Shared with other segments; None gives the segment memory of its own.

    Raises:
        EngineRunError: If the library does not load it, or it has a type that torch lacks.
    """
    trt, log = library.module, make_log(library)
    runtime = trt.Runtime(log.logger)
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        raise EngineRunError(library.flavour, log.problems)
    shared = trt.ExecutionContextAllocationStrategy.USER_MANAGED  # without memory of its own
    context = loaded.create_execution_context(*([shared] if workspace is not None else []))
    if context is None:
        raise EngineRunError(library.flavour, log.problems)
    taken, given = _ports(loaded, library)
    order = [port.name for port in taken] if inputs is None else list(inputs)
    strange = [port.name for port in taken if port.name not in order]
    if strange:
        raise EngineRunError(library.flavour, [f"nothing is given for {', '.join(strange)}"])
    return EngineSegment(
        flavour=library.flavour,
        device=device,
        taken=len(order),
        inputs=tuple(
            Port(name=port.name, index=order.index(port.name), dtype=port.dtype) for port in taken
        ),
        outputs=given,
        context=context,
        workspace=workspace,
        bytes_needed=int(loaded.device_memory_size_v2) if workspace is not None else 0,
        log=log,
        held=(loaded, runtime),
    )


def _ports(loaded: Any, library: Library) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs, each in the engine's order."""
    modes = library.module.TensorIOMode
    found: dict[Any, list[Port]] = {modes.INPUT: [], modes.OUTPUT: []}
    for at in range(loaded.num_io_tensors):
        name = loaded.get_tensor_name(at)
        kind = loaded.get_tensor_dtype(name).name
        if kind not in TYPES:
            raise EngineRunError(library.flavour, [f"{name!r} is of type {kind}, unknown to torch"])
        ports = found[loaded.get_tensor_mode(name)]
        ports.append(Port(name=name, index=len(ports), dtype=TYPES[kind]))
    return tuple(found[modes.INPUT]), tuple(found[modes.OUTPUT])

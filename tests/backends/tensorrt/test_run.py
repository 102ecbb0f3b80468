"""backends/tensorrt/run.py: over a stand-in for the library, and a device on the CPU."""

from __future__ import annotations

import ctypes
import enum
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from deltapass.backends.tensorrt.build import Range, build
from deltapass.backends.tensorrt.library import (
    Library,
    load_library,
)
from deltapass.backends.tensorrt.run import (
    TYPES,
    Device,
    EngineSegment,
    Workspace,
    cuda_device,
    load_segment,
)
from torch import Tensor

from deltapass.errors import EngineRunError, MissingDeviceError

D = 8


@pytest.fixture(scope="module")
def rtx() -> Library:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    return load_library("tensorrt-rtx")


# ---- running, over a stand-in ------------------------------------------------------------------


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class Logger:
    INTERNAL_ERROR, ERROR, VERBOSE = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.VERBOSE


class DataType(enum.Enum):
    FLOAT, INT64, FP4 = range(3)


class Mode(enum.Enum):
    INPUT, OUTPUT = range(2)


class Strategy(enum.Enum):
    STATIC, USER_MANAGED = range(2)


@dataclass
class Context:
    """Doubles `x` into `y`, through the addresses it was given; `t` is never read."""

    strategy: Strategy = Strategy.STATIC
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    memory: list[tuple[int, int]] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)
    fails: bool = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return not shape or shape[0] <= 4

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["x"]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address != 0

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory.append((address, size))

    def execute_async_v3(self, stream: int) -> bool:
        self.streams.append(stream)
        shape = self.shapes["x"]
        x, y = (_floats(self.addresses[name], shape) for name in ("x", "y"))
        y[:] = 2 * x
        return not self.fails


def _floats(address: int, shape: tuple[int, ...]) -> Any:
    count = int(np.prod(shape))
    return np.frombuffer((ctypes.c_float * count).from_address(address), np.float32).reshape(shape)


@dataclass
class Stage:
    """The runtime half of the library, and a device on the CPU."""

    kinds: dict[str, DataType] = field(
        default_factory=lambda: {"x": DataType.FLOAT, "t": DataType.INT64, "y": DataType.FLOAT}
    )
    loads: bool = True
    needed: int = 100
    context: Context = field(default_factory=Context)
    allocated: list[tuple[tuple[int, ...], torch.dtype]] = field(default_factory=list)
    stream: int = 17
    followed: list[tuple[int, int, Tensor | None]] = field(default_factory=list)

    @property
    def library(self) -> Library:
        module = SimpleNamespace(
            ILogger=Logger,
            Runtime=self.runtime,
            TensorIOMode=Mode,
            ExecutionContextAllocationStrategy=Strategy,
        )
        return Library(module=module, flavour="tensorrt", version="11.0")

    @property
    def device(self) -> Device:
        return Device(
            place=torch.device("cpu"),
            stream=lambda: self.stream,
            allocate=self.allocate,
            follow=lambda other, memory: self.followed.append((self.stream, other, memory)),
        )

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        self.allocated.append((shape, dtype))
        return torch.empty(shape, dtype=dtype)

    def runtime(self, logger: Any) -> Any:
        names = list(self.kinds)
        engine = SimpleNamespace(
            num_io_tensors=len(names),
            get_tensor_name=names.__getitem__,
            get_tensor_dtype=self.kinds.__getitem__,
            get_tensor_mode=lambda name: Mode.OUTPUT if name == "y" else Mode.INPUT,
            device_memory_size_v2=self.needed,
            create_execution_context=self.create,
        )

        def deserialize(content: bytes) -> Any:
            assert content == b"engine"
            logger.log(Severity.WARNING, "a warning")
            logger.log(Severity.VERBOSE, "chatter")
            if not self.loads:
                logger.log(Severity.ERROR, "built for another GPU")
            return engine if self.loads else None

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    def create(self, strategy: Strategy = Strategy.STATIC) -> Context:
        self.context.strategy = strategy
        return self.context

    def segment(self, **options: Any) -> EngineSegment:
        return load_segment(b"engine", self.library, self.device, **options)


X, T = torch.arange(16.0).view(2, D), torch.tensor(3)


def test_segment_gives_what_the_engine_writes() -> None:
    stage = Stage()
    run = stage.segment()
    (y,) = run(X, T)
    assert torch.equal(y, 2 * X)
    assert stage.context.streams == [17]
    assert stage.context.memory == []
    assert stage.context.shapes == {"x": (2, D), "t": ()}
    assert run.log.lines == ["WARNING: a warning"]


def test_arguments_come_in_the_order_asked_for() -> None:
    (y,) = Stage().segment(inputs=["t", "unread", "x"])(T, T, X)
    assert torch.equal(y, 2 * X)


def test_argument_of_any_layout_is_taken() -> None:
    other = torch.arange(16.0).view(D, 2).t()
    assert torch.equal(Stage().segment()(other, T)[0], 2 * other)


def test_outputs_survive_the_next_call() -> None:
    run = Stage().segment()
    (first,), (second,) = run(X, T), run(X + 1, T)
    assert torch.equal(first, 2 * X)
    assert torch.equal(second, 2 * X + 2)


def test_output_is_written_where_asked() -> None:
    stage, mine = Stage(), torch.zeros(2, D)
    (y,) = stage.segment()(X, T, into=[mine])
    assert y is mine
    assert torch.equal(mine, 2 * X)
    assert stage.allocated == []
    stage.segment()(X, T, into=[None])
    assert stage.allocated == [((2, D), torch.float32)]


@pytest.mark.parametrize(
    "into", [torch.zeros(3, D), torch.zeros(2, D).half(), torch.zeros(D, 2).t()]
)
def test_output_that_does_not_fit_is_refused(into: Tensor) -> None:
    with pytest.raises(EngineRunError, match=r"output 'y' is a dense torch\.float32"):
        Stage().segment()(X, T, into=[into])


def test_segments_share_a_workspace_that_grows() -> None:
    small, large = Stage(needed=100), Stage(needed=300)
    workspace = Workspace(small.device)
    runs = [stage.segment(workspace=workspace) for stage in (small, large)]
    for run in (*runs, runs[0]):
        run(X, T)
    assert small.context.strategy is large.context.strategy is Strategy.USER_MANAGED
    assert [size for _, size in small.context.memory] == [100, 300]
    assert small.context.memory[1] == large.context.memory[0]
    assert workspace.size == 300
    assert [shape for shape, dtype in small.allocated if dtype == torch.uint8] == [(100,), (300,)]


def test_another_stream_waits_for_the_last_one_that_used_the_memory() -> None:
    stage = Stage(needed=100)
    workspace = Workspace(stage.device)
    run = stage.segment(workspace=workspace)
    for stream in (0, 0, 5, 5, 0):  # 0 is the default stream
        stage.stream = stream
        run(X, T)
    assert [pair[:2] for pair in stage.followed] == [(5, 0), (0, 5)]
    assert all(memory is not None and memory.numel() == 100 for *_, memory in stage.followed)


def test_the_default_stream_is_waited_for_too(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    current = SimpleNamespace(cuda_stream=5, wait_stream=waited.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: "default")
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: handle)
    device = cuda_device(Stage().library)
    for other in (0, 9):
        device.follow(other, None)
    assert waited == ["default", 9] and device.stream() == 5


MISFITS: dict[str, tuple[tuple[Tensor, ...], str]] = {
    "too few": ((X,), "it takes 2 tensors and got 1"),
    "type": ((X.half(), T), "input 'x' is torch.float16 on cpu, not torch.float32 on cpu"),
    "device": ((X.to("meta"), T), "input 'x' is torch.float32 on meta, not"),
    "shape": ((torch.zeros(5, D), T), r"input 'x' may not have shape \[5, 8\]"),
    "empty": ((torch.zeros(0, D), T), "the address of 'x' is refused"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_tensor_that_does_not_fit_is_named(case: str) -> None:
    arguments, says = MISFITS[case]
    with pytest.raises(EngineRunError, match=says):
        Stage().segment()(*arguments)


def test_failed_launch_is_an_error() -> None:
    with pytest.raises(EngineRunError, match="gives no reason"):
        Stage(context=Context(fails=True)).segment()(X, T)


def test_engine_that_does_not_load_says_why() -> None:
    with pytest.raises(EngineRunError, match="built for another GPU"):
        Stage(loads=False).segment()


def test_engine_with_a_type_unknown_to_torch_is_refused() -> None:
    with pytest.raises(EngineRunError, match="'x' is of type FP4"):
        Stage(kinds={"x": DataType.FP4, "y": DataType.FLOAT}).segment()


def test_input_that_is_not_given_is_named() -> None:
    with pytest.raises(EngineRunError, match="nothing is given for t"):
        Stage().segment(inputs=["x"])


USED = {
    "Runtime": ("deserialize_cuda_engine",),
    "ICudaEngine": (
        *("create_execution_context", "device_memory_size_v2", "num_io_tensors"),
        *("get_tensor_name", "get_tensor_dtype", "get_tensor_mode"),
    ),
    "IExecutionContext": (
        *("set_input_shape", "get_tensor_shape", "set_tensor_address"),
        *("set_device_memory", "execute_async_v3"),
    ),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "TensorIOMode": ("INPUT", "OUTPUT"),
    "DataType": tuple(TYPES),
}


@pytest.mark.parametrize("name", USED)
def test_stand_in_has_no_call_that_the_library_lacks(rtx: Library, name: str) -> None:
    assert set(USED[name]) <= set(dir(getattr(rtx.module, name)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_device_is_one_clear_error(rtx: Library) -> None:
    with pytest.raises(MissingDeviceError, match=r"tensorrt-rtx.*SM86.*SM120.*none was found"):
        cuda_device(rtx)
    with pytest.raises(MissingDeviceError, match="tensorrt run on a CUDA device, and none"):
        cuda_device(Stage().library)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_engine_without_a_device_does_not_load(rtx: Library, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from engine_graphs import Files, product

    built = build(Files(tmp_path)(product()), {"x": Range.fixed((2, D))}, library=rtx)
    with pytest.raises(EngineRunError, match=r"(?i)gpu|cuda"):
        load_segment(built.engine, rtx, Stage().device)

"""A dry run of the TensorRT lowering without a GPU: real conversion, real engines, eager execution.

Run as a program in a process of its own, for it replaces parts of torch: `python tensorrt_shim.py
contract dit` prints one JSON line a model. torch_tensorrt is loaded without its shared libraries,
which need CUDA; where it would load an engine, the graph that went into the engine runs instead.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ARCHITECTURE = "SM89"  # any that TensorRT-RTX knows


def copy_without_libraries(into: Path) -> None:
    """The Python part of torch_tensorrt, first on the path."""
    found = importlib.util.find_spec("torch_tensorrt")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).parent
    shutil.copytree(source, into / source.name, ignore=shutil.ignore_patterns("*.so", "*.so.*"))
    sys.path.insert(0, str(into))


def pretend_cuda() -> None:
    """What torch_tensorrt asks of torch.cuda while it is imported and compiles."""
    cuda: Any = torch.cuda
    cuda.get_device_capability = lambda *_, **__: (8, 9)
    cuda.current_device = lambda: 0
    cuda.device_count = lambda: 1
    cuda.get_device_name = lambda *_, **__: "none"
    cuda.mem_get_info = lambda *_, **__: (80 << 30, 80 << 30)
    for name in ("synchronize", "empty_cache", "set_device"):
        setattr(cuda, name, lambda *_, **__: None)
    native: Any = torch._C
    if not hasattr(native, "_CudaDeviceProperties"):
        native._CudaDeviceProperties = type("_CudaDeviceProperties", (), {})


def load() -> Any:
    """torch_tensorrt, with `Built` in the place of engines that are loaded."""
    pretend_cuda()
    import torch_tensorrt
    from torch_tensorrt import _Device
    from torch_tensorrt.dynamo import _compiler

    to = _Device.Device.to
    _Device.Device.to = lambda self, kind, **options: (
        torch.device("cpu") if kind is torch.device else to(self, kind, **options)
    )
    _compiler.to_torch_tensorrt_device = lambda _: _Device.Device(gpu_id=0)
    _compiler.convert_module = convert
    return torch_tensorrt


class Built(nn.Module):
    """An engine that was built and cannot be loaded here, and the graph it was built from."""

    made: list[Built] = []  # noqa: RUF012

    def __init__(self, graph: Any, engine: bytes, layers: int) -> None:
        super().__init__()
        self.graph_alone = (graph,)  # in a tuple, so that it is no submodule
        self.engine, self.layers = engine, layers
        self.operators = sum(node.op == "call_function" for node in graph.graph.nodes)
        Built.made.append(self)

    def forward(self, *arguments: Tensor) -> Any:
        return self.graph_alone[0](*arguments)

    def set_output_tensors_as_unowned(self, unowned: bool) -> None:
        """Only engines that are loaded own tensors."""


def convert(module: Any, inputs: Any, settings: Any, **_: Any) -> Built:
    """The steps of torch_tensorrt's own function up to the builder's result."""
    import tensorrt as trt
    from torch_tensorrt.dynamo.conversion._conversion import infer_module_output_dtypes
    from torch_tensorrt.dynamo.conversion._TRTInterpreter import TRTInterpreter

    types = infer_module_output_dtypes(module, truncate_double=settings.truncate_double)
    interpreter = TRTInterpreter(module, inputs, output_dtypes=types, compilation_settings=settings)
    interpreter._construct_trt_network_def()
    config = interpreter._populate_trt_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, ARCHITECTURE), 0)
    network = interpreter.ctx.net
    engine = interpreter.builder.build_serialized_network(network, config)
    if engine is None:
        raise RuntimeError("the builder gives no engine")
    return Built(module, bytes(engine), network.num_layers)


def bodies_of(name: str) -> list[Any]:
    """The distinct bodies of a model's refresh and cached variants, deltas among them."""
    if name == "contract":
        from test_contract import BODIES

        return [make() for make in BODIES.values()]
    from models.tiny import make_tiny

    from deltapass.backend import analyse
    from deltapass.compiler.plan import plan_span
    from deltapass.compiler.rewrite import cached_program, refresh_program
    from deltapass.compiler.tracing import trace
    from deltapass.schedule.rules import Span

    model = make_tiny(name)
    args, kwargs = model.call(0.5)
    outlined = analyse(*trace(model.model, args, kwargs))
    plan = plan_span(outlined, Span(1, len(outlined.stack)))
    programs = [
        refresh_program(outlined.program, [plan]),
        cached_program(outlined.program, plan, 1),
    ]
    calls = [call for program in programs for call in program.calls]
    return list({call.body.key: call.body for call in calls}.values())


def arguments_for(body: Any) -> list[Tensor]:
    """Small random values, laid out as the body's inputs are."""
    given = []
    for at, spec in enumerate(body.inputs):
        value = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype)
        source = torch.randn(spec.shape, generator=torch.Generator().manual_seed(at)) / 4
        given.append(value.copy_(source if spec.dtype.is_floating_point else source > 0))
    return given


def difference(body: Any, run: Any) -> float:
    """The largest difference from the eager body, against the largest value of that output."""
    arguments = arguments_for(body)
    expected, actual = body.module(*arguments), run(*arguments)
    assert [(v.shape, v.stride(), v.dtype) for v in actual] == [
        (spec.shape, spec.stride, spec.dtype) for spec in body.outputs
    ]
    pairs = zip(expected, actual, strict=True)
    worst = [(one.double() - two.double()).abs().max() / one.abs().max() for one, two in pairs]
    assert all(math.isfinite(value) for value in worst), "values that are no numbers"
    return float(max(worst))


def coverage(name: str) -> dict[str, Any]:
    """Lower every body of a model; what was covered, what it gave and what it cost."""
    from deltapass.backends.tensorrt.lowering import TensorRTLowering

    lowering = TensorRTLowering()
    started, refused, differences, bare = time.perf_counter(), {}, [0.0], 0
    Built.made.clear()
    bodies = bodies_of(name)
    with torch.no_grad():
        for body in bodies:
            before = len(Built.made)
            try:
                differences.append(difference(body, lowering.lower(body)))
            except Exception as error:  # noqa: BLE001
                refused[body.name] = str(error)
            bare += len(Built.made) == before
    return {
        "model": name,
        "bodies": len(bodies),
        "trivial": bare - len(refused),
        "engines": len(Built.made),
        "operators": sum(built.operators for built in Built.made),
        "layers": sum(built.layers for built in Built.made),
        "bytes": sum(len(built.engine) for built in Built.made),
        "difference": max(differences),
        "refused": refused,
        "seconds": round(time.perf_counter() - started, 1),
    }


def main(names: list[str]) -> None:
    """Print one line a model."""
    with tempfile.TemporaryDirectory() as folder:
        copy_without_libraries(Path(folder))
        load()
        for name in names:
            sys.stdout.write(json.dumps(coverage(name)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

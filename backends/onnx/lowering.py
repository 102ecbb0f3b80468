"""The ONNX lowering: each body one ONNX Runtime session in the process, weights bound as inputs.

For trying out what an exported bundle would compute and cost. Weights are arguments, as they are of
a body, so equal blocks share a session; ONNX Runtime cannot pack them ahead of time as it does the
weights of a bundle.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final, final

import torch
from deltapass.backends.onnx.format import OPEN_OPTIONS, in_memory, to_onnx
from deltapass.backends.onnx.session import ELEMENTS, OrtSegment, open_session
from deltapass.backends.onnx.streams import on_stream
from deltapass.backends.tensor_graphs import engine_of_body, engine_of_graph, exported
from torch import fx
from torch._guards import tracing

from deltapass.bundles.manifest import ValueSpec
from deltapass.graph.executable import Lowered
from deltapass.graph.program import Body, TensorSpec
from deltapass.graph.wrapped import holds_tensors
from deltapass.libraries import optional_module

GPU_PROVIDER: Final = "CUDAExecutionProvider"


@final
class OnnxLowering:
    """Runs bodies in ONNX Runtime: on the CPU, and on CUDA where it has that provider."""

    exact = False

    def __init__(self, mode: str | None = None) -> None:
        """Looks for the library at once, before the compiler has done anything.

        Raises:
            MissingLibraryError: If onnxruntime, onnx or onnxscript is not installed.
        """
        self.runtime = optional_module("onnxruntime", "export")
        self.threads = torch.get_num_threads()

    def can_lower(self, body: Body) -> str | None:
        """ONNX Runtime needs data of types it knows, on a device it has a provider for."""
        for spec in (*body.inputs, *body.outputs):
            if spec.dtype not in ELEMENTS:
                return f"it knows no {spec.dtype}"
            if spec.device.type not in ("cpu", "cuda"):
                return f"its tensors are on the {spec.device.type} device"
            if spec.device.type == "cpu" and spec.dtype is torch.bfloat16:
                return "its CPU provider computes no bfloat16"
        on_gpu = any(spec.device.type == "cuda" for spec in body.inputs)
        if on_gpu and GPU_PROVIDER not in self.runtime.get_available_providers():
            return f"this ONNX Runtime has no {GPU_PROVIDER}: install onnxruntime-gpu"
        return None

    def lower(self, body: Body) -> Lowered:
        """A session of a body, outside Dynamo's own tracing context."""
        run: Lowered = engine_of_body(body, self._session)
        return run

    def plain(self, module: fx.GraphModule, arguments: Sequence[Any]) -> Callable[..., Any]:
        """The whole graph as one session.

        A graph of symbolic sizes runs operator by operator: ONNX Runtime would need the sizes. So
        does one with weights that hold other tensors, which it does not know.
        """
        symbolic = any(isinstance(value, torch.SymInt | torch.SymFloat) for value in arguments)
        if symbolic or any(map(holds_tensors, arguments)):
            return module.forward
        run: Callable[..., Any] = engine_of_graph(module, arguments, self._session)
        return run

    def _session(
        self, name: str, module: torch.nn.Module, inputs: Sequence[TensorSpec]
    ) -> Callable[..., tuple[torch.Tensor, ...]]:
        with tracing(None), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export's own, about itself
            program = exported(module, inputs)
            made = [node.meta["val"] for node in program.graph.output_node().args[0]]
            taken = tuple(f"input_{at}" for at in range(len(inputs)))
            given = tuple(f"output_{at}" for at in range(len(made)))
            model = in_memory(to_onnx(name, program, (taken, given)))
        device = inputs[0].device if inputs else torch.device("cpu")
        options, stream = on_stream(self._options(device), device)
        segment = OrtSegment(
            open_session(model, options),
            inputs=taken,
            outputs=[(n, _value(value)) for n, value in zip(given, made, strict=True)],
            shapes=[spec.shape for spec in inputs],
            device=device,
        ).on(stream)
        return lambda *tensors: segment(*(tensor.contiguous() for tensor in tensors))

    def _options(self, device: torch.device) -> dict[str, Any]:
        """Of the ONNX format, for sessions on a device."""
        gpu = (GPU_PROVIDER, {"device_id": device.index or 0})
        provider = gpu if device.type == "cuda" else "CPUExecutionProvider"
        return {**OPEN_OPTIONS, "providers": (provider,), "threads": self.threads}


def _value(result: torch.Tensor) -> ValueSpec:
    return ValueSpec(dtype=str(result.dtype).removeprefix("torch."), shape=tuple(result.shape))

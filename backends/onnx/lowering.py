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
from deltapass.backends.inductor import is_trivial
from deltapass.backends.onnx.format import OPEN_OPTIONS, in_memory, to_onnx
from deltapass.backends.onnx.session import ELEMENTS, OrtSegment, open_session
from deltapass.backends.tensor_graphs import OfTensors, laid_out, plain_copy, without_layouts
from torch import fx
from torch._guards import tracing

from deltapass.bundles.manifest import ValueSpec
from deltapass.graph.executable import Lowered
from deltapass.graph.program import Body, TensorSpec
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
        if is_trivial(body):
            return body.module.forward
        run = self._session(body.name, without_layouts(body.module), body.inputs, body.outputs)
        return lambda *arguments: tuple(
            laid_out(made, spec) for made, spec in zip(run(*arguments), body.outputs, strict=True)
        )

    def plain(self, module: fx.GraphModule, arguments: Sequence[Any]) -> Callable[..., Any]:
        """The whole graph as one session; numbers among its inputs become constants of it.

        A graph of symbolic sizes runs operator by operator: ONNX Runtime would need the sizes.
        """
        if any(isinstance(value, torch.SymInt | torch.SymFloat) for value in arguments):
            return module.forward
        bound = OfTensors(module, tuple(arguments))
        tensors = [value for value in arguments if torch.is_tensor(value)]
        with tracing(None), torch.no_grad():
            wanted = bound(*(tensor.clone() for tensor in tensors))
        single = torch.is_tensor(wanted)
        results = (wanted,) if single else tuple(wanted)
        made = [value for value in results if torch.is_tensor(value)]
        run = self._session(
            "the whole graph",
            _TensorsOnly(bound),
            [TensorSpec.of(value) for value in tensors],
            [TensorSpec.of(value) for value in made],
        )

        def call(*values: Any) -> Any:
            given = iter(run(*(value for value in values if torch.is_tensor(value))))
            filled = tuple(next(given) if torch.is_tensor(r) else r for r in results)
            return filled[0] if single else filled

        return call

    def fingerprint(self) -> str:
        """Versions that the sessions depend on."""
        return f"onnx onnxruntime-{self.runtime.__version__} torch-{torch.__version__}"

    def _session(
        self,
        name: str,
        module: torch.nn.Module,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
    ) -> Callable[..., tuple[torch.Tensor, ...]]:
        taken = tuple(f"input_{at}" for at in range(len(inputs)))
        given = tuple(f"output_{at}" for at in range(len(outputs)))
        device = inputs[0].device if inputs else torch.device("cpu")
        with tracing(None), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export's own, about itself
            example = tuple(
                torch.zeros(spec.shape, dtype=spec.dtype, device=spec.device) for spec in inputs
            )
            program = torch.export.export(plain_copy(module), example, strict=False)
            model = in_memory(to_onnx(name, program, (taken, given)))
        gpu = (GPU_PROVIDER, {"device_id": device.index or 0})
        provider = gpu if device.type == "cuda" else "CPUExecutionProvider"
        options = {**OPEN_OPTIONS, "providers": (provider,), "threads": self.threads}
        segment = OrtSegment(
            open_session(model, options),
            inputs=taken,
            outputs=[(n, _value(spec)) for n, spec in zip(given, outputs, strict=True)],
            shapes=[spec.shape for spec in inputs],
            device=device,
        )
        return lambda *tensors: segment(*(tensor.contiguous() for tensor in tensors))


@final
class _TensorsOnly(torch.nn.Module):
    """A module whose results that are no tensors are left out: an ONNX model has none."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the module."""
        made = self.module(*tensors)
        made = (made,) if torch.is_tensor(made) else made
        return tuple(value for value in made if torch.is_tensor(value))


def _value(spec: TensorSpec) -> ValueSpec:
    return ValueSpec(dtype=str(spec.dtype).removeprefix("torch."), shape=spec.shape)

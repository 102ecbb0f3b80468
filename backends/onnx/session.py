"""ONNX Runtime sessions on torch tensors: inputs and outputs are bound, not copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final

import torch
from deltapass.backends.onnx.streams import NOT_WAITING, ComputeStream

from deltapass.bundles.formats import check_option, check_switches, is_whole
from deltapass.bundles.manifest import ValueSpec
from deltapass.errors import BundleError, MissingDeviceError, OptionError
from deltapass.graph.sizes import Dimension, evaluate, read_sizes
from deltapass.libraries import optional_module

# ONNX's own numbers of element types (TensorProto.DataType), which IO binding takes.
ELEMENTS: Final[Mapping[torch.dtype, int]] = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int8: 3,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float16: 10,
    torch.float64: 11,
    torch.bfloat16: 16,
}
ENTRIES: Final = (
    "a mapping of ONNX Runtime's session configuration entries to values, such as "
    "{'session.intra_op.allow_spinning': '0'}"
)
GPU_PROVIDERS: Final = (
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
    "NvTensorRTRTXExecutionProvider",
)


def device_of(providers: Any) -> torch.device:
    """Where tensors must lie for the first of these providers."""
    first = _providers(providers)[0]
    name, options = first if isinstance(first, tuple) else (first, {})
    if name not in GPU_PROVIDERS:
        return torch.device("cpu")
    return torch.device("cuda", int(options.get("device_id", 0)))


def open_session(model: Path | bytes, options: Mapping[str, Any]) -> Any:
    """A session on a model, with the options of the ONNX format.

    Raises:
        MissingDeviceError: If a provider is not part of this ONNX Runtime.
        BundleError: If ONNX Runtime does not take the model.
    """
    runtime = optional_module("onnxruntime", "export")
    providers = _providers(options["providers"])
    _check(options)
    names = [given[0] if isinstance(given, tuple) else given for given in providers]
    for name in names:
        if name not in runtime.get_available_providers():
            raise MissingDeviceError(
                f"this ONNX Runtime has no {name}; it has "
                f"{', '.join(runtime.get_available_providers())}",
                "Install the onnxruntime package that has it, such as onnxruntime-gpu",
            )
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = int(options["threads"])
    settings.log_severity_level = 3
    if not options["optimize"]:
        settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in _entries(options).items():
        settings.add_session_config_entry(key, value)
    given = model if isinstance(model, bytes) else str(model)
    try:
        return runtime.InferenceSession(given, settings, providers=providers)
    except Exception as error:
        shown = "a model in memory" if isinstance(model, bytes) else model.name
        text = str(error).strip().splitlines()[0]
        remedy = "Export it again"
        if "NOT_IMPLEMENTED" in text:
            remedy = (
                "The CPU provider lacks operators for some types, bfloat16 above all: export the "
                "model in float32, or with verify=False and load it with another provider"
            )
        raise BundleError(f"ONNX Runtime refuses {shown}: {text}", remedy) from error


def _entries(options: Mapping[str, Any]) -> dict[str, str]:
    """Entries of a session's configuration; the user's own go last."""
    # Every session has threads of its own. Those of the last one would spin while the next runs, on
    # the same cores: with two threads that cost more than all cached steps save.
    entries = {"session.force_spinning_stop": "1"}
    if options["share_weights"]:
        entries["session.disable_prepacking"] = "1"
    given = options["session_options"] or {}
    return entries | {str(key): str(value) for key, value in given.items()}


def _providers(given: Any) -> list[Any]:
    """Providers as ONNX Runtime takes them; one alone may be given by its name.

    Raises:
        OptionError: If they are something else.
    """
    listed = [given] if isinstance(given, str) else given
    fine = isinstance(listed, list | tuple) and all(isinstance(p, str | tuple) for p in listed)
    if not fine or not listed:
        raise OptionError("providers", given, "a list of names, or of (name, options)")
    return list(listed)


def _check(options: Mapping[str, Any]) -> None:
    threads, further = options["threads"], options["session_options"]
    check_option(options, "threads", is_whole(threads) and threads >= 0, "a whole number from 0 on")
    check_switches(options, "optimize", "share_weights")
    if further is None:
        return
    # ONNX Runtime takes any name, and ignores those it does not know.
    names = further if isinstance(further, Mapping) else [""]
    fits = all(isinstance(name, str) and "." in name for name in names)
    check_option(options, "session_options", fits, ENTRIES)


def _not_waiting() -> Any:
    """Settings of runs after which the host does not wait for the device."""
    settings = optional_module("onnxruntime", "export").RunOptions()
    settings.add_run_config_entry(*NOT_WAITING)
    return settings


@final
class OrtSegment:
    """A session called on torch tensors. Output memory is torch's, so nothing is copied."""

    def __init__(
        self,
        session: Any,
        *,
        inputs: Sequence[str],
        outputs: Sequence[tuple[str, ValueSpec]],
        shapes: Sequence[Sequence[Dimension]],
        device: torch.device,
    ) -> None:
        self._session, self._device = session, device
        self._stream: ComputeStream | None = None
        self._settings: Any = None
        self._inputs, self._taken = tuple(inputs), tuple(shapes)
        self._outputs = tuple((name, spec, getattr(torch, spec.dtype)) for name, spec in outputs)
        self._fixed = not any(isinstance(s, str) for _, spec in outputs for s in spec.shape)
        self._place = device.type, device.index or 0

    def on(self, stream: ComputeStream | None) -> OrtSegment:
        """The same segment, of a session that computes on this stream, if it was given one."""
        self._stream = stream
        self._settings = _not_waiting() if stream is not None else None
        return self

    def __call__(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run on dense tensors, one an input; gives one an output."""
        binding = self._session.io_binding()
        for name, given in zip(self._inputs, arguments, strict=True):
            self._bind(binding.bind_input, name, given)
        shapes = self._shapes(arguments)
        made = []
        for (name, _, dtype), shape in zip(self._outputs, shapes, strict=True):
            result = torch.empty(shape, dtype=dtype, device=self._device)
            self._bind(binding.bind_output, name, result)
            made.append(result)
        if self._stream is not None:
            with self._stream.in_step():
                self._run(binding)
            return tuple(made)
        if self._device.type != "cpu":
            binding.synchronize_inputs()
        self._run(binding)
        if self._device.type != "cpu":
            binding.synchronize_outputs()
        return tuple(made)

    def _run(self, binding: Any) -> None:
        try:
            self._session.run_with_iobinding(binding, self._settings)
        except Exception as error:
            text = str(error).strip().splitlines()[0]
            raise BundleError(
                f"ONNX Runtime cannot run a segment: {text}",
                "Try the model itself on these inputs: it may not take such sizes",
            ) from error

    def _bind(self, bind: Any, name: str, tensor: torch.Tensor) -> None:
        if tensor.device.type != self._device.type:
            raise BundleError(
                f"{name} lies on {tensor.device}, the ONNX Runtime session on {self._device}",
                "Move the inputs, or choose another provider",
            )
        shape, element = tuple(tensor.shape), ELEMENTS[tensor.dtype]
        bind(name, *self._place, element, shape, tensor.data_ptr())

    def _shapes(self, arguments: Sequence[torch.Tensor]) -> list[tuple[int, ...]]:
        if self._fixed:
            return [tuple(map(int, spec.shape)) for _, spec, _ in self._outputs]
        given = [(dims, tensor.shape) for dims, tensor in zip(self._taken, arguments, strict=True)]
        sizes = (pair for dims, shape in given for pair in zip(dims, shape, strict=True))
        # A formula that an input has is known as a whole, without being calculated.
        known = read_sizes(given) | {size: n for size, n in sizes if isinstance(size, str)}
        return [
            tuple(known[s] if s in known else evaluate(s, known) for s in spec.shape)
            for _, spec, _ in self._outputs
        ]

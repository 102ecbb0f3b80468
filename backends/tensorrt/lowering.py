"""The TensorRT lowering: each body one engine, built in the process by torch_tensorrt.

Weights are arguments of an engine as they are of a body, so equal blocks share one engine and no
weight is stored in any. The price: TensorRT cannot pack weights ahead of time as it does constants.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, final

import torch
from deltapass.backends.tensor_graphs import engine_of_body, engine_of_graph
from deltapass.backends.tensorrt.graphs import export, operators_outside
from deltapass.backends.tensorrt.library import missing_device
from torch import fx
from torch._guards import tracing

from deltapass.errors import EngineBuildError, MissingLibraryError
from deltapass.graph.executable import Lowered
from deltapass.graph.program import Body, TensorSpec
from deltapass.graph.wrapped import holds_tensors

# Distribution -> flavour. Both are imported as torch_tensorrt.
DISTRIBUTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {"torch-tensorrt": "tensorrt", "torch-tensorrt-rtx": "tensorrt-rtx"}
)
HIGHEST_EFFORT: Final = 5  # of the builder's optimization levels 0 to 5

# Every key must be a parameter of torch_tensorrt.dynamo.compile, which ignores others silently.
SETTINGS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        # By default a bias as wide as the sequence is taken for a causal mask.
        "attn_bias_is_causal": False,
        # By default a failed build gives back the graph, uncompiled and unannounced.
        "pass_through_build_failures": True,
        # One engine or an error is our own check: `require_full_compilation` names no operator.
        "require_full_compilation": False,
        "min_block_size": 1,
        # Rotary embeddings compute their angles in float64, which TensorRT lacks.
        "truncate_double": True,
        # Its key leaves out edges and literals: two variants would share one engine.
        "cache_built_engines": False,
        "reuse_cached_engines": False,
        "immutable_weights": True,
    }
)


@final
class TensorRTLowering:
    """Builds one engine a body, for its static shapes; precision is that of the body's types."""

    exact = False

    def __init__(self, mode: str | None = None) -> None:
        """Looks for the library at once, before the compiler has done anything.

        Raises:
            MissingLibraryError: If torch_tensorrt is not installed.
        """
        self.flavour, self.version = _installed()
        tuned = mode not in (None, "default")
        self.settings: dict[str, Any] = {
            **SETTINGS,
            "optimization_level": HIGHEST_EFFORT if tuned else None,
            # As exact as torch is told to be; TensorRT's own default is TF32.
            "disable_tf32": torch.get_float32_matmul_precision() == "highest",
        }

    def can_lower(self, body: Body) -> str | None:
        """Engines need a CUDA device, for their tensors and for the build."""
        kinds = {spec.device.type for spec in body.inputs} - {"cuda"}
        if kinds:
            return (
                f"its tensors are on the {min(kinds)} device, and {self.flavour} runs on cuda alone"
            )
        return None if torch.cuda.is_available() else "there is no CUDA device"

    def lower(self, body: Body) -> Lowered:
        """Build the engine of a body, outside Dynamo's own tracing context.

        Raises:
            EngineBuildError: If an operator stays outside the engine; names all of them.
        """
        run: Lowered = engine_of_body(body, self._compile)
        return run

    def plain(self, module: fx.GraphModule, arguments: Sequence[Any]) -> Callable[..., Any]:
        """The whole graph as one engine.

        Raises:
            MissingDeviceError: If there is no CUDA device.
            EngineBuildError: If a size is symbolic, a weight holds other tensors, or an operator
                stays outside the engine.
        """
        if not torch.cuda.is_available():
            raise missing_device(self.flavour)
        symbolic = [str(value) for value in arguments if isinstance(value, torch.SymInt)]
        if symbolic:
            problem = f"sizes {', '.join(symbolic)} are symbolic: give torch.compile dynamic=False"
            raise EngineBuildError("the whole graph", self.flavour, [problem])
        wrapped = {type(value).__name__ for value in arguments if holds_tensors(value)}
        if wrapped:
            problem = f"weights are of type {', '.join(sorted(wrapped))}"
            raise EngineBuildError("the whole graph", self.flavour, [problem])
        run: Callable[..., Any] = engine_of_graph(module, arguments, self._compile)
        return run

    def _compile(
        self, name: str, module: torch.nn.Module, inputs: Sequence[TensorSpec]
    ) -> Callable[..., Any]:
        library = self._import()
        with tracing(None), torch.no_grad(), warnings.catch_warnings():
            # Export and torch_tensorrt warn about their own internals.
            warnings.simplefilter("ignore")
            exported = export(module, inputs)
            # Not tensors: it refuses those that are not dense. The engine takes any layout.
            given = [library.Input(shape=spec.shape, dtype=spec.dtype) for spec in inputs]
            device = inputs[0].device if inputs else torch.device("cuda")
            try:
                made: fx.GraphModule = library.dynamo.compile(
                    exported, arg_inputs=given, device=device, **self.settings
                )
            except Exception as error:
                raise EngineBuildError(name, self.flavour, [_cause(error)]) from error
        outside = operators_outside(made)
        if outside:
            left = f"{len(outside)} operators stay outside it: {', '.join(outside)}"
            raise EngineBuildError(name, self.flavour, [left])
        return made

    def _import(self) -> Any:
        """The library, once it is known that it takes our settings.

        Raises:
            MissingLibraryError: If TensorRT itself is not there, or not whole.
            EngineBuildError: If this version lacks a setting.
        """
        try:
            library = importlib.import_module("torch_tensorrt")
        except Exception as error:  # what it raises itself is no ImportError
            raise MissingLibraryError(
                f"what torch_tensorrt needs ({error})", self.flavour
            ) from error
        known = inspect.signature(library.dynamo.compile).parameters
        unknown = [name for name in self.settings if name not in known]
        if unknown:
            problem = f"torch_tensorrt {self.version} has no setting {', '.join(unknown)}"
            raise EngineBuildError("any graph", self.flavour, [problem])
        return library


def _installed() -> tuple[str, str]:
    """Flavour and version of the torch_tensorrt that is installed, without importing it.

    Raises:
        MissingLibraryError: If neither is.
    """
    if "torch_tensorrt" not in sys.modules and importlib.util.find_spec("torch_tensorrt") is None:
        both = "torch_tensorrt, in extra 'tensorrt' or, for RTX GPUs, 'tensorrt-rtx',"
        raise MissingLibraryError(both, "tensorrt")
    for distribution, flavour in DISTRIBUTIONS.items():
        try:
            return flavour, importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "tensorrt", "of unknown version"


def _cause(error: Exception) -> str:
    """What went wrong; torch_tensorrt asserts without a word where no engine was made."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if not torch.cuda.is_available():
        return said
    major, minor = torch.cuda.get_device_capability()
    return f"{said} (on compute capability {major}.{minor})"

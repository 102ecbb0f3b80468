"""The data that flows between the stages: captured graph, stack, bodies, calls, programs.

Everything here is frozen. A `Program` is what the rest of the compiler reads and rewrites: a
list of some thirty calls of a few bodies, on named values, that a person can read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, final

import msgspec
import torch
from torch import fx

from deltapass.graph.wrapped import Wrapped


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """Shape, layout, type and place of a tensor, without its data.

    `wrapped` says how one that holds other tensors is made up, such as a quantised weight.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    wrapped: Wrapped | None = None

    @staticmethod
    def of(tensor: torch.Tensor) -> TensorSpec:
        """The spec of a real or fake tensor."""
        return TensorSpec(
            shape=tuple(tensor.shape),
            stride=tuple(tensor.stride()),
            dtype=tensor.dtype,
            device=tensor.device,
            wrapped=Wrapped.of(tensor, TensorSpec.of),
        )

    @property
    def is_number(self) -> bool:
        """Whether it holds one floating number a call or a sample."""
        return self.dtype.is_floating_point and all(size == 1 for size in self.shape[1:])

    def empty(self, device: torch.device | str | None = None) -> torch.Tensor:
        """A new tensor of this spec, if need be on another device."""

        def plain(spec: TensorSpec) -> torch.Tensor:
            place = device or spec.device
            return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=place)

        return self.filled(plain)

    def filled(self, plain: Callable[[TensorSpec], torch.Tensor]) -> torch.Tensor:
        """A tensor of this spec, of what `plain` gives for the specs of the plain ones within."""
        if self.wrapped is None:
            return plain(self)
        parts = {name: spec.filled(plain) for name, spec in self.wrapped.parts}
        return self.wrapped.around(parts, self.shape, self.stride)

    @property
    def nbytes(self) -> int:
        """Bytes (not KiB) of a dense tensor of this spec."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{kind}[{', '.join(map(str, self.shape))}]"


@final
@dataclass(frozen=True, slots=True)
class Macs:
    """Multiply-accumulate operations, in both counting conventions.

    `paper` counts linear and convolution layers only, as the MACs columns of the paper do;
    `full` also counts the two matrix products of attention.
    """

    paper: float = 0.0
    full: float = 0.0

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.paper + other.paper, self.full + other.full)

    def __mul__(self, times: float) -> Macs:
        return Macs(self.paper * times, self.full * times)


class Role(Enum):
    """What an input of the model is to the pass.

    A timestep and what is `PER_STEP` change with the step and say nothing of the prompt; the noisy
    sample changes with every call. All other data is conditioning.
    """

    WEIGHT = "weight"
    TIMESTEP = "timestep"
    SAMPLE = "sample"
    PER_STEP = "per_step"
    DATA = "data"
    SIZE = "size"


class Found(Enum):
    """How the role of an input was found."""

    STATED = "stated"
    FLOW = "data flow"
    NAME = "name"
    REST = "the rest"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """One input of the captured graph, in calling order. `spec` is None for a plain number."""

    name: str
    role: Role
    spec: TensorSpec | None
    found: Found = Found.REST


def data_names(inputs: Iterable[Input]) -> tuple[str, ...]:
    """What a user calls the inputs that are tensors and no weights."""
    data = (given for given in inputs if given.spec is not None and given.role is not Role.WEIGHT)
    return tuple(shown(given.name) for given in data)


def operations_of(graph: fx.Graph) -> int:
    """Number of a graph's operations: neither inputs nor attributes nor the output."""
    return sum(node.op.startswith("call") for node in graph.nodes)


# Formulas of a shape and of its strides, over the symbols that dynamic sizes are named by.
Varying = tuple[tuple[int | str, ...], tuple[int | str, ...]]


@final
@dataclass(frozen=True, kw_only=True)
class Captured:
    """A functional graph of static shapes, and what was learned by running it on fake tensors.

    Attributes:
        graph: Its placeholders are `inputs`, then the constants.
        root: Where what the graph gets by attribute lies: sub-graphs.
        inputs: The model's inputs, in calling order.
        constants: Tensors the graph holds itself, by placeholder name.
        values: Node name -> spec (a tuple of specs where a node gives several tensors).
        macs: Node name -> multiply-accumulates, for nodes that have any.
        varying: Node name -> formulas, for tensors whose sizes vary from call to call.
        primitive: Whether its operators are primitive ones, into which autocast has been worked:
            run under the autocast round the model, they would be cast a second time.
    """

    graph: fx.Graph
    root: torch.nn.Module
    inputs: tuple[Input, ...]
    constants: Mapping[str, torch.Tensor]
    values: Mapping[str, Any]
    macs: Mapping[str, Macs]
    varying: Mapping[str, Varying] = field(default_factory=dict)
    primitive: bool = False

    @cached_property
    def nodes(self) -> tuple[fx.Node, ...]:
        """The nodes in order; blocks are told by their positions."""
        return tuple(self.graph.nodes)

    @cached_property
    def module(self) -> fx.GraphModule:
        """The graph as something that runs. Generating its code takes time, and few need it."""
        return fx.GraphModule(self.root, self.graph)

    @property
    def operations(self) -> int:
        """Number of operations, placeholders and output left out."""
        return operations_of(self.graph)

    def spec(self, node: fx.Node) -> TensorSpec | None:
        """The spec of a node that gives one tensor, else None."""
        value = self.values.get(node.name)
        return value if isinstance(value, TensorSpec) else None


@final
@dataclass(frozen=True, kw_only=True)
class Body:
    """One distinct outlined graph. Weights are arguments, so equal blocks share one body.

    `key` holds operations, edges, literals and input layouts: equal keys, equal code. `varying` has
    an entry for every input where sizes of some vary from call to call, and none otherwise.
    """

    name: str
    module: fx.GraphModule
    key: tuple[object, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    macs: Macs = field(default_factory=Macs)
    varying: tuple[Varying | None, ...] = ()

    @property
    def operations(self) -> int:
        """Number of operations in the body."""
        return operations_of(self.module.graph)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call of a body on named values."""

    label: str
    body: Body
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Program:
    """A variant as a list of calls.

    Attributes:
        inputs: Names of the values handed in: the model's inputs, constants, then deltas.
        calls: In execution order.
        results: The model's outputs: value names, or literals wrapped in `Literal`.
        deltas: Value names of the deltas this variant gives besides the results.
        specs: Value name -> spec.
        weights: Names of inputs that are weights or constants (left out when printing).
    """

    name: str
    inputs: tuple[str, ...]
    calls: tuple[Call, ...]
    results: tuple[str | Literal, ...]
    deltas: tuple[str, ...] = ()
    specs: Mapping[str, TensorSpec]
    weights: frozenset[str]

    @property
    def key(self) -> tuple[object, ...]:
        """Equal keys, equal programs: operations, edges, literals, layouts and names."""
        calls = tuple((call.body.key, call.inputs, call.outputs) for call in self.calls)
        return self.inputs, calls, tuple(map(str, self.results)), self.deltas

    @property
    def macs(self) -> Macs:
        """Multiply-accumulates of one run."""
        return sum((call.body.macs for call in self.calls), Macs())

    @property
    def operations(self) -> int:
        """Operations of one run, counted in the captured graph's own operators."""
        return sum(call.body.operations for call in self.calls)

    @property
    def value_results(self) -> tuple[str, ...]:
        """Names of the results that are values rather than literals."""
        return tuple(result for result in self.results if isinstance(result, str))

    def __str__(self) -> str:
        """The program as a person reads it: data only, weights left out."""
        data = [name for name in self.inputs if name not in self.weights]
        lines = [f"{self.name}({', '.join(data)}):"]
        for call in self.calls:
            taken = ", ".join(name for name in call.inputs if name not in self.weights)
            lines.append(f"    {', '.join(call.outputs)} = {call.body.name}({taken})")
        given = [*map(str, self.results), *self.deltas]
        return "\n".join([*lines, f"    return {', '.join(given)}"])


@final
class Literal(msgspec.Struct, frozen=True):
    """A model output that is a plain value, such as None; in files {"literal": value}."""

    value: Any = msgspec.field(name="literal")

    def __str__(self) -> str:
        return repr(self.value)


def shown(name: str) -> str:
    """An input's name as its user knows it: without Dynamo's prefixes and trailing underscores."""
    return re.sub(r"^l_(kwargs_|args_)?", "", name, flags=re.IGNORECASE).strip("_")

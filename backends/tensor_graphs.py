"""Bodies and graphs handed to engines, which know of no strides, numbers or debugging notes.

Shared by the lowerings that run engines in the process. Each gives a `build`: what makes an engine
of a module on tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, final

import torch
from deltapass.backends.inductor import is_trivial
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from deltapass.graph.copying import copy_of
from deltapass.graph.executable import Lowered
from deltapass.graph.program import Body, TensorSpec

# (name in errors, module, its inputs) -> the engine as a function of tensors in any layout.
Build = Callable[[str, torch.nn.Module, Sequence[TensorSpec]], Callable[..., Any]]

TENSOR: Final = object()  # where a tensor goes among the literals of a result


def engine_of_body(body: Body, build: Build) -> Lowered:
    """A body as one engine, with outputs laid out as the body says: engines give dense tensors."""
    if is_trivial(body):
        return body.module.forward
    run = build(body.name, without_layouts(body.module), body.inputs)

    def call(*arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = run(*arguments)
        made = (made,) if torch.is_tensor(made) else made
        return tuple(laid_out(*pair) for pair in zip(made, body.outputs, strict=True))

    return call


def engine_of_graph(
    module: fx.GraphModule, arguments: Sequence[Any], build: Build
) -> Callable[..., Any]:
    """A whole graph as one engine; numbers among its arguments become constants of it.

    So do numbers among its results, which engines cannot give.
    """
    specs = list(map(TensorSpec.of, filter(torch.is_tensor, arguments)))
    of_tensors = OfTensors(module, tuple(arguments))
    run = build("the whole graph", of_tensors, specs)

    def call(*values: Any) -> Any:
        made = run(*filter(torch.is_tensor, values))
        return of_tensors.results.around((made,) if torch.is_tensor(made) else made)

    return call


@final
class Results:
    """What a graph gives besides tensors, and in which structure, once it has been traced."""

    def __init__(self) -> None:
        self.literals: list[Any] = []
        self.structure: TreeSpec | None = None

    def tensors(self, given: Any) -> tuple[torch.Tensor, ...]:
        """The tensors of a result; the rest is remembered."""
        leaves, self.structure = tree_flatten(given)
        self.literals = [TENSOR if torch.is_tensor(leaf) else leaf for leaf in leaves]
        return tuple(filter(torch.is_tensor, leaves))

    def around(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Such a result of these tensors; of an untraced graph, the tensors as they are."""
        if self.structure is None:
            return tensors
        left = iter(tensors)
        leaves = [next(left) if literal is TENSOR else literal for literal in self.literals]
        return tree_unflatten(leaves, self.structure)


@final
class OfTensors(torch.nn.Module):
    """A graph from its tensor inputs to its tensor results; the other inputs are as they were."""

    def __init__(self, module: fx.GraphModule, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.module = module
        self.fixed = tuple(None if torch.is_tensor(value) else value for value in arguments)
        self.given = tuple(map(torch.is_tensor, arguments))
        self.results = Results()

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the graph."""
        left = iter(tensors)
        pairs = zip(self.given, self.fixed, strict=True)
        values = [next(left) if given else value for given, value in pairs]
        return self.results.tensors(self.module(*values))


def exported(module: torch.nn.Module, inputs: Sequence[TensorSpec]) -> ExportedProgram:
    """The exported program of a module on tensors of these specs, which hold no data."""
    with FakeTensorMode(allow_non_fake_inputs=True):  # a graph may hold real constants
        fakes = tuple(spec.empty() for spec in inputs)
    return torch.export.export(module, fakes, strict=False)


def without_layouts(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph that lays nothing out and holds no notes of the tracer that made it.

    Another tracer might take the notes for its own.
    Before: out = empty_strided(...); copy = out.copy_(x). After: x.
    """
    graph = copy_of(module.graph)
    for node in list(graph.nodes):
        node.meta.clear()
        into = node.args[0] if node.target == "copy_" else None
        if isinstance(into, fx.Node) and into.target is torch.empty_strided:
            node.replace_all_uses_with(node.args[1])
            graph.erase_node(node)
            graph.erase_node(into)
    return fx.GraphModule(module, graph)


def laid_out(value: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """A tensor in the layout a body says its output has."""
    if value.stride() == spec.stride and value.dtype == spec.dtype:
        return value
    laid = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=value.device)
    return laid.copy_(value)

"""Bodies and graphs handed to engines, which know of no strides, numbers or debugging notes.

Shared by the lowerings that run engines in the process. Each gives a `build`: what makes an engine
of a module on tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from deltapass.backends.inductor import is_trivial
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram

from deltapass.graph.copying import copy_of
from deltapass.graph.executable import Lowered
from deltapass.graph.program import Body, TensorSpec

# (name in errors, module, its inputs) -> the engine as a function of tensors in any layout.
Build = Callable[[str, torch.nn.Module, Sequence[TensorSpec]], Callable[..., Any]]


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
    """A whole graph as one engine; numbers among its arguments become constants of it."""
    specs = list(map(TensorSpec.of, filter(torch.is_tensor, arguments)))
    run = build("the whole graph", OfTensors(module, tuple(arguments)), specs)
    return lambda *values: run(*filter(torch.is_tensor, values))


@final
class OfTensors(torch.nn.Module):
    """A graph as a function of its tensor inputs alone; the other inputs are as they were."""

    def __init__(self, module: fx.GraphModule, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.module = module
        self.fixed = tuple(None if torch.is_tensor(value) else value for value in arguments)
        self.given = tuple(map(torch.is_tensor, arguments))

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Run the graph."""
        left = iter(tensors)
        pairs = zip(self.given, self.fixed, strict=True)
        return self.module(*[next(left) if given else value for given, value in pairs])


def exported(module: torch.nn.Module, inputs: Sequence[TensorSpec]) -> ExportedProgram:
    """The exported program of a module on tensors of these specs, which hold no data."""
    with FakeTensorMode():
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

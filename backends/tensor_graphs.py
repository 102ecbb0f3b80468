"""Graphs and tensors made ready for engines that know of no strides and of no debugging notes."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import fx

from deltapass.graph.program import TensorSpec


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


def without_layouts(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph that lays nothing out: engines know of no strides.

    Before: out = empty_strided(...); copy = out.copy_(x). After: x.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in list(graph.nodes):
        into = node.args[0] if node.target == "copy_" else None
        if isinstance(into, fx.Node) and into.target is torch.empty_strided:
            node.replace_all_uses_with(node.args[1])
            graph.erase_node(node)
            graph.erase_node(into)
    return fx.GraphModule(module, graph)


def plain_copy(module: torch.nn.Module) -> torch.nn.Module:
    """A graph without what tracers noted on its nodes, which another tracer might take for its own.

    A module that is no graph is given back as it is.
    """
    if not isinstance(module, fx.GraphModule):
        return module
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        node.meta.clear()
    return fx.GraphModule(module, graph)


def laid_out(value: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """A tensor in the layout a body says its output has."""
    if value.stride() == spec.stride and value.dtype == spec.dtype:
        return value
    laid = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=value.device)
    return laid.copy_(value)

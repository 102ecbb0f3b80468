"""Copying graphs: whole, or into another graph in place of a call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from deltapass.graph.program import TensorSpec


def copy_of(graph: fx.Graph) -> fx.Graph:
    """A copy, for whoever changes the graph it is given."""
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    return copied


def copy_into(graph: fx.Graph, called: fx.Graph, arguments: Iterable[Any]) -> Any:
    """Copy the operations of a graph into another, on arguments of the other.

    Returns:
        What `called` returns, as nodes of `graph`.
    """
    placeholders = called.find_nodes(op="placeholder")
    return graph.graph_copy(called, dict(zip(placeholders, arguments, strict=True)))


def keep_source(old: fx.Node, new: fx.Node) -> None:
    """Let a copy of a placeholder tell, as the original does, where Dynamo took the input from."""
    if hasattr(old, "_dynamo_source"):
        new._dynamo_source = old._dynamo_source


def laid_out(graph: fx.Graph, value: fx.Node, spec: TensorSpec) -> fx.Node:
    """Copy into a tensor of the given strides, which may leave gaps (a slice of a larger one)."""
    place: dict[str, Any] = {"dtype": spec.dtype, "device": spec.device}
    empty = graph.call_function(torch.empty_strided, (spec.shape, spec.stride), place)
    return graph.call_method("copy_", (empty, value))

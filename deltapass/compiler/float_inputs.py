"""Python floats that Dynamo hands over as tensors, such as the scale of an adapter.

Once a float of the model has had two values, Dynamo makes it an input, a float64 tensor of no
dimension, and the graph begins with its `.item()`. A static graph needs the value itself:

    scale = l_scale.item(); y = x * scale        ->        y = x * 1.5
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from deltapass.graph.copying import keep_source


def float_inputs(gm: fx.GraphModule, arguments: Sequence[Any]) -> tuple[int, ...]:
    """Positions of the inputs that stand for a Python float."""
    placeholders = gm.graph.find_nodes(op="placeholder")
    return tuple(
        at
        for at, (node, value) in enumerate(zip(placeholders, arguments, strict=True))
        if _is_float(value) and node.users and all(map(_is_item, node.users))
    )


def with_floats(
    gm: fx.GraphModule, arguments: Sequence[Any], positions: Sequence[int]
) -> fx.GraphModule:
    """The graph with the present values of these inputs as literals; the inputs stay, unread."""
    placeholders = gm.graph.find_nodes(op="placeholder")
    copies: dict[fx.Node, Any] = {
        item: float(arguments[at]) for at in positions for item in placeholders[at].users
    }
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, copies))
    graph.lint()
    for node in placeholders:
        keep_source(node, copies[node])
    return fx.GraphModule(gm, graph)


def _is_float(value: Any) -> bool:
    return torch.is_tensor(value) and value.ndim == 0 and value.dtype == torch.float64


def _is_item(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "item"

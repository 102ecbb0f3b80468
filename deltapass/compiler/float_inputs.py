"""Python floats that Dynamo hands over as tensors, such as the scale of an adapter.

Once a float of the model has had two values, Dynamo makes it an input, a float64 tensor of no
dimension, and the graph begins with its `.item()`. It stays an input of all that reads it: numbers
made from it alone are worked out anew wherever they are used, so that nothing is compiled twice.

    scale = l_scale.item()                block_0(x, l_scale):
    twice = scale * 2             ->          twice = l_scale.item() * 2
    x = x * twice                             return x * twice
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import fx

from deltapass.graph.copying import keep_source


@final
class FixedFloatError(Exception):
    """A graph in which a float cannot stay an input: it needs the value itself."""


def float_inputs(gm: fx.GraphModule, arguments: Sequence[Any]) -> tuple[int, ...]:
    """Positions of the inputs that stand for a Python float."""
    placeholders = gm.graph.find_nodes(op="placeholder")
    return tuple(
        at
        for at, (node, value) in enumerate(zip(placeholders, arguments, strict=True))
        if _is_float(value) and node.users and all(map(_is_item, node.users))
    )


def known_floats(gm: fx.GraphModule, arguments: Sequence[Any]) -> dict[fx.Node, float]:
    """The nodes that read such inputs, with the numbers they read now."""
    placeholders = gm.graph.find_nodes(op="placeholder")
    return {
        item: float(arguments[at])
        for at in float_inputs(gm, arguments)
        if not arguments[at].is_meta
        for item in placeholders[at].users
    }


def made_of_floats(
    gm: fx.GraphModule, items: Mapping[fx.Node, float], values: Mapping[str, Any]
) -> tuple[fx.Node, ...]:
    """The numbers that follow from float inputs, in order; they are no literals.

    Raises:
        FixedFloatError: If something other than a float follows from one, such as a shape.
    """
    live: dict[fx.Node, None] = dict.fromkeys(items)
    for node in gm.graph.nodes if items else ():
        value = values[node.name]
        if node in live or node.op == "output" or live.keys().isdisjoint(node.all_input_nodes):
            continue
        if _has_size_of_float(node) or isinstance(value, bool | int):
            raise FixedFloatError
        if isinstance(value, float):
            live[node] = None
    return tuple(live)


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


def _has_size_of_float(node: fx.Node) -> bool:
    """Whether a size of what a node gives varies with a float: torch calls its symbols zf0, zf1."""
    example = node.meta.get("example_value")
    sizes: Sequence[Any] = example.shape if torch.is_tensor(example) else ()
    symbols = (s.node.expr.free_symbols for s in sizes if isinstance(s, torch.SymInt))
    return any(str(symbol).startswith("zf") for found in symbols for symbol in found)


def _is_float(value: Any) -> bool:
    return torch.is_tensor(value) and value.ndim == 0 and value.dtype == torch.float64


def _is_item(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "item"

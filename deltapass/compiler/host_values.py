"""Stage 1, where needed: what a model reads from its inputs on the host, read before it runs.

Some models make an index of a mask, or a size of a number in a tensor. Shapes then depend on data,
and no static graph can hold them. Where they depend on inputs alone, they are worked out first, by
a graph of their own, and handed to the rest as further inputs:

    model(x, mask):                         before(x, mask):
        at = mask.nonzero()                     return mask.nonzero()
        ...                         ->      rest(x, mask, at):
        y = x[at]                               ...
                                                y = x[at]

The rest is compiled once for every set of shapes and numbers met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import fx

from deltapass.compiler.inputs import argument_name, is_state, source_of
from deltapass.compiler.timesteps import TIMESTEP_NAMES
from deltapass.compiler.tracing import detached_from_dynamo
from deltapass.errors import UnsupportedOperatorError
from deltapass.graph.copying import keep_source


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class HostValues:
    """A graph in two: `before` works out what `rest` takes after the model's own inputs."""

    before: fx.GraphModule
    rest: fx.GraphModule

    def __call__(self, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """The inputs of the rest."""
        with torch.no_grad():
            return (*arguments, *self.before.forward(*arguments))


def host_values(gm: fx.GraphModule) -> HostValues | None:
    """Take out what depends on the data of inputs; None where there is nothing of the kind.

    Raises:
        UnsupportedOperatorError: If it depends on weights or on the timestep: then it is part of
            the model's work, or another at every step.
    """
    sources = [node for node in gm.graph.nodes if node.meta.get("unbacked_bindings")]
    if not sources:
        return None
    needed: set[fx.Node] = set()
    for source in sources:
        _gather(source, needed)
    for node in needed:
        _refuse_work(node, sources[0])
    taken = [value for source in sources for value in _single(source)]
    return HostValues(before=_before(gm, taken, needed), rest=_rest(gm, taken))


def with_host_values(
    gm: fx.GraphModule, arguments: Sequence[Any]
) -> tuple[fx.GraphModule, Sequence[Any]]:
    """The rest of a graph and its inputs, for who has real inputs and analyses it once.

    Raises:
        UnsupportedOperatorError: If they cannot be worked out, as where inputs have no data.
    """
    split = host_values(gm)
    if split is None:
        return gm, arguments
    if any(torch.is_tensor(value) and value.is_meta for value in arguments):
        raise UnsupportedOperatorError("a shape depends on data, which meta tensors lack")
    with detached_from_dynamo():
        return split.rest, split(arguments)


def _gather(node: fx.Node, found: set[fx.Node]) -> None:
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes


def _refuse_work(node: fx.Node, source: fx.Node) -> None:
    if node.op != "placeholder":
        return
    taken_from = source_of(node)
    name = "the weights" if is_state(taken_from) else argument_name(taken_from)
    if is_state(taken_from) or name in TIMESTEP_NAMES:
        fact = f"{source.name!r} makes a shape of values that depend on {name}"
        raise UnsupportedOperatorError(fact)


def _single(source: fx.Node) -> list[fx.Node]:
    """The values of a node one by one, where it gives several."""
    made = source.meta.get("example_value")
    return list(source.users) if isinstance(made, tuple | list) else [source]


def _before(gm: fx.GraphModule, taken: Sequence[fx.Node], needed: set[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    for node in gm.graph.nodes:
        if node.op == "placeholder" or node in needed or node in taken:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in taken))
    graph.lint()
    return fx.GraphModule(gm, graph)


def _rest(gm: fx.GraphModule, taken: Sequence[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    for node in gm.graph.find_nodes(op="placeholder"):
        copies[node] = graph.node_copy(node)
        keep_source(node, copies[node])
    for node in taken:
        copies[node] = graph.placeholder(f"host_{node.name}")
    graph.output(graph.graph_copy(gm.graph, copies))
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule(gm, graph)

"""Sizes that vary from call to call: which formula each value's shape follows, body by body.

Dynamo makes one graph of a model whose input has come in two lengths, and gives every value's shape
as a formula of symbols, which are inputs of the graph. Each set of shapes is analysed with its
numbers; but a body whose numbers know their formulas is the same body at any length:

    block_0(x[2, 77, 32]):                       block_0(s, x[2, s, 32]):
        return reshape(x, (2, 77, 4, 8))   ->        return reshape(x, (2, s, 4, 8))

So it can be lowered once, by a lowering that compiles for symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, final

import torch
from torch import fx
from torch.fx.node import map_aggregate

from deltapass.errors import DynamicShapeError
from deltapass.graph.executable import Lowered
from deltapass.graph.keys import Key
from deltapass.graph.program import Body, Varying
from deltapass.graph.sizes import Dimension, Size, formula_of, write_out


def name_sizes(gm: fx.GraphModule) -> dict[str, int]:
    """Leave on every node that gives a varying number its formula; symbol -> place of its input."""
    places: dict[str, int] = {}
    for at, node in enumerate(gm.graph.find_nodes(op="placeholder")):
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymInt) and value.node.expr.is_Symbol:
            places[str(value.node.expr)] = at
    for node in gm.graph.nodes:
        value = node.meta.get("example_value")
        formula = _formula(value, places) if isinstance(value, torch.SymInt) else None
        if isinstance(formula, str):
            node.meta["formula"] = formula
    return places


def varying_of(node: fx.Node) -> Varying | None:
    """Formulas of the shape and strides of what a node gives, where they vary and can be told."""
    value = node.meta.get("example_value")
    if not torch.is_tensor(value) or value.is_nested:
        return None
    sizes = (*value.shape, *value.stride())
    if not any(isinstance(size, torch.SymInt) for size in sizes):
        return None
    try:
        formulas = tuple(s if isinstance(s, int) else formula_of(s, {}) for s in sizes)
    except DynamicShapeError:
        return None
    return formulas[: value.ndim], formulas[value.ndim :]


def with_sizes(body: Body, symbols: Sequence[str]) -> fx.GraphModule:
    """The body as a graph that takes the symbols' sizes first, with no size of its own."""
    graph = fx.Graph()
    sizes = {name: graph.placeholder(name) for name in symbols}
    copies: dict[fx.Node, Any] = {}

    def anew(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return copies[value]
        return write_out(graph, value.formula, sizes) if isinstance(value, Size) else value

    for node in body.module.graph.nodes:
        if node.op == "output":
            graph.output(map_aggregate(node.args[0], anew))
            continue
        args, kwargs = map_aggregate(node.args, anew), map_aggregate(node.kwargs, anew)
        copies[node] = graph.create_node(node.op, node.target, args, kwargs, name=node.name)
    graph.lint()
    return fx.GraphModule(body.module, graph)


class Varied(Protocol):
    """A body lowered for sizes that vary."""

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it is right for these sizes."""

    def __call__(self, *arguments: Any) -> Sequence[torch.Tensor]:
        """Run, on the sizes of all symbols in order and then the body's inputs."""


MANY: Final = 8  # versions of one body, if it holds for few sizes each; then fixed sizes, which go
LowerVarying = Callable[[Body, Mapping[str, int]], Varied | None]


@final
@dataclass
class VaryingBodies:
    """Bodies of one graph lowered for any size, shared by the selectors of all its shapes."""

    lower: LowerVarying
    _made: dict[Key, list[Varied]] = field(default_factory=dict)

    def get(self, body: Body, sizes: Mapping[str, int]) -> Lowered | None:
        """The callable of a body at these sizes; None if it can only be lowered for them alone."""
        made = self._made.setdefault(_key_at_any_size(body), [])
        found = next((varied for varied in made if varied.holds(sizes)), None)
        if found is None and len(made) < MANY:
            found = self._lower(body, sizes)
            made += [found] if found is not None else []
        return _at(found, tuple(sizes.values())) if found is not None else None

    def _lower(self, body: Body, sizes: Mapping[str, int]) -> Varied | None:
        try:
            found = self.lower(body, sizes)
        except Exception:  # noqa: BLE001  # a fixed size may compile where a symbol does not
            return None
        return found if found is not None and found.holds(sizes) else None


def _at(varied: Varied, sizes: tuple[int, ...]) -> Lowered:
    return lambda *arguments: varied(*sizes, *arguments)


def _key_at_any_size(body: Body) -> Key:
    """The body's key, with formulas in place of the sizes that have one."""
    inputs = tuple(
        (spec.dtype, spec.device, varying or (spec.shape, spec.stride))
        for spec, varying in zip(body.inputs, body.varying, strict=True)
    )
    return Key((inputs, *body.key[1:]))


def _formula(value: torch.SymInt, symbols: Mapping[str, int]) -> Dimension | None:
    """The formula of a size, if it can be calculated from these symbols."""
    if not {str(symbol) for symbol in value.node.expr.free_symbols} <= symbols.keys():
        return None
    try:
        return formula_of(value, {})
    except DynamicShapeError:
        return None

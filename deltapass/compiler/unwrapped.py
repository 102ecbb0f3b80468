"""Stage 1, where needed: weights that hold other tensors, where a graph is traced on.

It is traced into primitive operators on the plain tensors that its inputs hold. The inputs stay
what they are: what reads such a tensor takes it out of the weight there, so a block needs nothing
of what lies before it.

    y = linear(x, w)            ->        q = getattr(w, "qdata")
                                          s = getattr(w, "scale")
                                          y = mul(_int_mm(x, q), s)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import fx

from deltapass.graph.program import TensorSpec
from deltapass.graph.wrapped import holds_tensors, plain_tensors

STACK = ("nn_module_stack", "source_fn_stack", "stack_trace")


@final
@dataclass(frozen=True)
class Apart:
    """Values of which some are tensors that hold others."""

    values: tuple[Any, ...]

    @property
    def any(self) -> bool:
        """Whether one of them holds others."""
        return any(map(holds_tensors, self.values))

    @property
    def plain(self) -> list[Any]:
        """All as plain tensors; of no graph of gradients, and not the caller's own."""
        flat = [inner for value in self.values for inner in _plain(value)]
        return [inner.detach() if torch.is_tensor(inner) else inner for inner in flat]

    def together(self, plain: Sequence[Any]) -> list[Any]:
        """Values like these, of such plain ones."""
        left = iter(plain)

        def one(value: Any) -> Any:
            if not holds_tensors(value):
                return next(left)
            return TensorSpec.of(value).filled(lambda _: next(left))

        return list(map(one, self.values))

    def taking(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """A function of such values as one of plain tensors."""
        return lambda *plain: run(*self.together(plain))

    def put_back(self, graph: fx.Graph, names: Sequence[str]) -> None:
        """Make of a graph of the plain tensors one of the values, in place.

        Args:
            graph: Its placeholders stand for `plain`.
            names: What the inputs are called.
        """
        placeholders = iter(graph.find_nodes(op="placeholder"))
        for value, name in zip(self.values, names, strict=True):
            if not holds_tensors(value):
                next(placeholders)
                continue
            own = [next(placeholders) for _ in _plain(value)]
            with graph.inserting_before(own[0] if own else None):
                whole = graph.placeholder(name)
            paths = wrapped.paths if (wrapped := TensorSpec.of(value).wrapped) else ()
            for part, path in zip(own, paths, strict=True):
                _take(graph, whole, part, path)
        graph.lint()


def _plain(value: Any) -> list[Any]:
    return list(plain_tensors(value)) if torch.is_tensor(value) else [value]


def _take(graph: fx.Graph, whole: fx.Node, part: fx.Node, path: str) -> None:
    """Let each reader of a part take it out of the whole itself."""
    for reader in list(part.users):
        node = whole
        with graph.inserting_before(reader):
            for name in path.split("."):
                node = graph.call_function(getattr, (node, name))
                node.meta.update({key: reader.meta[key] for key in STACK if key in reader.meta})
        reader.replace_input_with(part, node)
    graph.erase_node(part)

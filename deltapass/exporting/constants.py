"""What a graph computes from nothing, computed once, by torch.

The frequencies of a timestep embedding are exponentials of a range. An engine builder would fold
them with arithmetic of its own, and a last digit there, times a timestep of 999, is a visible error
in a sine. Folded here, engines hold the very numbers the model uses.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any, Final, final

import torch
from torch import fx
from torch.utils._pytree import tree_iter

from deltapass.graph.sizes import Size

LARGEST: Final = 1 << 20  # bytes; what is larger is left to the engine, for the bundle's sake


@final
class Constants:
    """Folds nodes that depend on no input and no weight; hands them out as attributes."""

    def __init__(self, graph: fx.Graph, root: torch.nn.Module, taken: Collection[str]) -> None:
        """`taken` are names of the weights, which a constant must not have."""
        self._graph, self._root, self._taken = graph, root, taken
        self._values: dict[fx.Node, torch.Tensor] = {}
        self._placed: dict[fx.Node, fx.Node] = {}

    def fold(self, node: fx.Node) -> bool:
        """Compute a node if that can be done now; says whether it was."""
        if not isinstance(node.target, torch._ops.OpOverload) or not self._is_constant(node):
            return False
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._values.__getitem__)
        with torch.no_grad():
            value: Any = node.target(*args, **kwargs)
        if not isinstance(value, torch.Tensor) or value.numel() * value.itemsize > LARGEST:
            return False
        self._values[node] = value
        return True

    def get(self, node: fx.Node) -> fx.Node | None:
        """The attribute that holds a folded node; None for any other."""
        if node not in self._values:
            return None
        if node not in self._placed:
            numbered = (f"constant_{at}" for at in itertools.count(len(self._placed)))
            name = next(name for name in numbered if name not in self._taken)
            self._taken = {*self._taken, name}
            self._root.register_buffer(name, self._values[node].contiguous())
            self._placed[node] = self._graph.get_attr(name)
        return self._placed[node]

    def _is_constant(self, node: fx.Node) -> bool:
        random = torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]
        leaves = tree_iter((node.args, node.kwargs))
        varies = any(isinstance(leaf, Size) for leaf in leaves)
        known = all(given in self._values for given in node.all_input_nodes)
        return known and not random and not varies

"""Stage 2 for U-shaped models: which values of a graph lie on all ways to others.

Takes nodes in the order of the ways and what comes before each; gives a tree. Read from the inputs
on, a node's ancestors in it **dominate** it: no way leads to the node but through them. Read from
the output back, they **post-dominate** it: no way leads on from the node but through them.
Source: Cooper, Harvey and Kennedy, A Simple, Fast Dominance Algorithm; without loops one pass does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import final

from torch import fx


@final
class DominatorTree:
    """Every node below the last node that lies on all ways to it, if there is one."""

    def __init__(
        self, nodes: Iterable[fx.Node], before: Mapping[fx.Node, Sequence[fx.Node]]
    ) -> None:
        self._above: dict[fx.Node, fx.Node | None] = {}
        self._depth: dict[fx.Node | None, int] = {None: 0}
        self._bit: dict[fx.Node, int] = {}
        self._on_all_ways: dict[fx.Node | None, int] = {None: 0}
        for at, node in enumerate(nodes):
            above = self.meeting(before[node])
            self._above[node] = above
            self._depth[node] = self._depth[above] + 1
            self._bit[node] = 1 << at
            self._on_all_ways[node] = self._on_all_ways[above] | 1 << at

    def meeting(self, nodes: Sequence[fx.Node]) -> fx.Node | None:
        """The last node that lies on all ways to all of these, which may be one of them."""
        one: fx.Node | None = nodes[0] if nodes else None
        for other in nodes[1:]:
            one = self._meet(one, other)
        return one

    def lies_on_all_ways(self, node: fx.Node, to: fx.Node) -> bool:
        """Whether every way to a node leads through the other, or is there."""
        return bool(self._on_all_ways[to] & self._bit[node])

    def until(self, node: fx.Node, end: fx.Node) -> Iterator[fx.Node]:
        """A node and those above it, up to but without one of them."""
        at: fx.Node | None = node
        while at is not None and at is not end:
            yield at
            at = self._above[at]

    def _meet(self, one: fx.Node | None, other: fx.Node | None) -> fx.Node | None:
        while one is not other:
            if one is not None and self._depth[one] >= self._depth[other]:
                one = self._above[one]
            elif other is not None:
                other = self._above[other]
        return one

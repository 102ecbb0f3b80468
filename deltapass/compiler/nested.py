"""Stage 2 for U-shaped models: blocks that lie inside each other, each between two of its values.

Takes a captured graph; gives a stack of nested blocks, or nothing. A U-shaped model joins what it
had on its way down to what comes back up, by concatenation:

    a = down(x);  b = inner(a, ...);  y = up(cat(b, a))

A nested block is all that lies between a and b: b is all of it that the rest of the model reads,
and a all that it reads of the sample. That is dominance: a dominates b from the noisy sample on,
and b post-dominates whatever reads a but for what goes past the block. No operator but the join is
looked at, no name and no class.
Source: Delta-Cache between two places of equal resolution, Appendix G; DeepCache, arXiv:2312.00858.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

from torch import fx

from deltapass.compiler.dominance import DominatorTree
from deltapass.compiler.flow import Flow, reached
from deltapass.compiler.streams import CONCATENATIONS
from deltapass.graph.stack import Block, Ends, Stack

LEAST_SHARE: Final = 0.5  # of the model's multiply-accumulates, what the outermost block holds


def find_nested(flow: Flow) -> Stack | None:
    """The nested blocks, the outermost first; each holds all those after it.

    Args:
        flow: What is known of a graph.

    Returns:
        The stack, with the ends of every block; None if the model has no such block, or none that
        holds most of its work.
    """
    found = sorted(_Finder(flow).inner_parts(), key=lambda part: -flow.macs(part.block))
    nested: list[_Inner] = []
    for part in found:
        if not nested or part.lies_within(nested[-1]):
            nested.append(part)
    if not nested or flow.macs(nested[0].block) < LEAST_SHARE * flow.macs_of_model:
        return None
    return Stack(
        blocks=tuple(part.block for part in nested),
        found_by="what is joined again",
        ends=tuple(part.ends for part in nested),
    )


@final
@dataclass(frozen=True, slots=True)
class _Inner:
    """One inner part: its nodes, and the values at its two ends."""

    block: Block
    ends: Ends

    def lies_within(self, other: _Inner) -> bool:
        """Whether the other part begins before it and goes on behind it."""
        return other.block.first < self.block.first and self.block.stop < other.block.stop


@final
class _Finder:
    """Reads the part of a graph that depends on the noisy sample and that some result needs."""

    def __init__(self, flow: Flow) -> None:
        captured = flow.captured
        self._flow, self._captured = flow, captured
        self._at = {node: at for at, node in enumerate(captured.nodes)}
        names = reached(captured)
        needed: set[fx.Node] = set()
        for node in reversed(captured.nodes):
            if node.op == "output" or not needed.isdisjoint(node.users):
                needed.add(node)
        self._needed = needed
        self._nodes = [node for node in captured.nodes if node.name in names and node in needed]
        known = set(self._nodes)
        self._reads = {n: [r for r in n.all_input_nodes if r in known] for n in self._nodes}
        self._users = {n: sorted(u for u in n.users if u in known) for n in self._nodes}
        self._ahead = DominatorTree(self._nodes, self._reads)
        self._behind = DominatorTree(self._nodes[::-1], self._users)
        self._above = self._ancestors()

    def inner_parts(self) -> Iterator[_Inner]:
        """One for every value that goes past an inner part: the largest that it goes past.

        One that ends in a value of its own shape is preferred, if it holds half of that.
        """
        for value in self._nodes:
            if self._captured.spec(value) is None or len(self._users[value]) < 2:
                continue
            form, ways = self._form(value), self._ends(value)
            alike = [[end for end in ends if self._form(end) == form] for ends in ways]
            largest, alike_too = self._largest(value, ways), self._largest(value, alike)
            macs = [self._flow.macs(part.block) for part in (*largest, *alike_too)]
            yield from alike_too if alike_too and macs[-1] >= macs[0] / 2 else largest

    def _largest(self, value: fx.Node, ways: Sequence[Sequence[fx.Node]]) -> list[_Inner]:
        """The costliest part from a value to the last end of one of these ways, if there is any."""
        parts = (self._inner(value, ends[-1]) for ends in ways if ends)
        found = sorted((part for part in parts if part), key=lambda p: self._flow.macs(p.block))
        return found[-1:]

    def _ends(self, value: fx.Node) -> list[list[fx.Node]]:
        """Where a block that a value enters and goes past can end, in order, by its users."""
        users = self._users[value]
        join = self._behind.meeting(users)
        if join is None or join.target not in CONCATENATIONS:
            return []
        return [
            [
                node
                for node in self._behind.until(user, join)
                if self._captured.spec(node) is not None and self._is_inner(value, node)
            ]
            for user in users
        ]

    def _is_inner(self, value: fx.Node, end: fx.Node) -> bool:
        """Whether nothing but the value enters between the two, and nothing but the end leaves."""
        inside = (user for user in self._users[value] if self._leads(user, end))
        return self._ahead.lies_on_all_ways(value, end) and all(
            self._behind.lies_on_all_ways(end, user) for user in inside
        )

    def _form(self, node: fx.Node) -> object:
        spec = self._captured.spec(node)
        return spec and (spec.shape, spec.dtype, spec.device)

    def _inner(self, value: fx.Node, end: fx.Node) -> _Inner | None:
        """What lies between two values, if it lies together and no other value of it is read."""
        inside = [n for n in self._nodes if self._leads(n, end) and self._leads(value, n)]
        first = min(self._at[node] for node in inside if node is not value)
        stop = self._at[end] + 1
        for node in self._captured.nodes[first : stop - 1]:
            if any(self._at[user] >= stop for user in node.users if user in self._needed):
                return None
        block = Block(name=value.name, first=first, stop=stop)
        return _Inner(block, Ends(live_in=value.name, live_out=end.name))

    def _leads(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether a value is the other, or something that was computed for it."""
        return one is other or bool(self._above[other] >> self._at[one] & 1)

    def _ancestors(self) -> dict[fx.Node, int]:
        above: dict[fx.Node, int] = {}
        for node in self._nodes:
            mask = 0
            for read in self._reads[node]:
                mask |= above[read] | 1 << self._at[read]
            above[node] = mask
        return above

"""Stage 2 without metadata: find blocks as the longest repeating sequence of operations.

Takes a captured graph; gives blocks, or none. Layout (strides) is left out of the comparison,
because a first block often differs from the rest in that alone. A last block that computes
something else than the others is not found this way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from torch import fx

from deltapass.graph.keys import comparable
from deltapass.graph.program import Captured
from deltapass.graph.stack import Block


def find_repeats(captured: Captured) -> tuple[Block, ...]:
    """Blocks as full periods of the longest repeating run of operations.

    Args:
        captured: The graph.

    Returns:
        Two or more blocks of equal length in program order, or nothing.
    """
    nodes = [node for node in captured.nodes if node.op.startswith("call")]
    numbers: dict[object, int] = {}
    equal = (numbers.setdefault(each, len(numbers)) for each in signatures(captured, nodes))
    period, start, length = _longest_run(np.array(list(equal)))
    if length < 2 * period or not period:
        return ()
    offset = _best_cut(nodes, period, start, length)
    positions = {node: at for at, node in enumerate(captured.nodes)}
    count = (length - (offset - start)) // period
    return tuple(
        Block(
            name=f"repeat.{index}",
            first=positions[nodes[offset + index * period]],
            stop=positions[nodes[offset + (index + 1) * period - 1]] + 1,
        )
        for index in range(count)
    )


def signatures(captured: Captured, nodes: Iterable[fx.Node]) -> Iterator[object]:
    """What tells an operation from others: operator, literals and input shapes."""

    def shape(value: fx.Node) -> object:
        spec = captured.spec(value)
        return (spec.shape, spec.dtype) if spec else None

    for node in nodes:
        # How many values it reads tells h * h from h * g.
        read = len(node.all_input_nodes)
        yield node.target, read, comparable((node.args, node.kwargs), shape)


def _longest_run(signatures: np.ndarray) -> tuple[int, int, int]:
    """(period, start, length) of the run of s[i] == s[i + period] that covers most; short first."""
    best = (0, 0, 0)
    for period in range(1, len(signatures) // 2 + 1):
        equal = np.concatenate(([0], signatures[:-period] == signatures[period:], [0]))
        edges = np.flatnonzero(np.diff(equal.astype(np.int8)))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            length = int(stop - start) + period
            if length // period >= 2 and (length // period) * period > best[2] * 1.02:
                best = (period, int(start), length)
    return best


def _best_cut(nodes: list[fx.Node], period: int, start: int, length: int) -> int:
    """Where in the first period to cut: most full blocks, then fewest values alive, then first."""
    place = {node: at for at, node in enumerate(nodes)}

    def last_read(node: fx.Node) -> int:
        return max((place.get(user, len(nodes)) for user in node.users), default=-1)

    reads = list(map(last_read, nodes))

    def rank(at: int) -> tuple[int, int, int]:
        blocks = (length - (at - start)) // period
        alive = sum(read >= at + period for read in reads[at : at + period])
        return -blocks, alive, at

    return min(range(start, start + period), key=rank)

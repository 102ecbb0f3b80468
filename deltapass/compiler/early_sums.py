"""Stage 2, where no blocks were found: sums with what is handed in, where their stream is made.

A U-Net adds the residuals of a control network to its skips once it is all the way down, so that
the sums lie among what the skips go past:

    a = down(x);  b = inner(a, ...);  s = a + residual;  y = up(cat(b, s))

Moved to where a is made, they lie before it. An order is all that changes, so every value stays
what it is, bit for bit.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from deltapass.compiler.addends import ADDITIONS, CARRIERS, PARTS, SCALED
from deltapass.graph.program import Captured, Role


def with_early_sums(captured: Captured) -> Captured:
    """The same graph, in which no such sum comes later than it must; itself if none does.

    What is done to a value that was handed in before it is added (taken out of a list, scaled,
    cast) goes along.
    """
    handed = {given.name for given in captured.inputs if given.role is Role.DATA}
    order = {node: (at,) for at, node in enumerate(captured.nodes)}
    keys: dict[fx.Node, tuple[int, ...]] = {}
    for node, own in order.items():
        read = node.all_input_nodes
        given = [value for value in read if value.name in handed]
        passed = node.target in PARTS | CARRIERS | SCALED and len(read) == len(given) == 1
        if passed:
            handed.add(node.name)
        moves = passed or (node.target in ADDITIONS and len(read) == 2 and len(given) == 1)
        keys[node] = (*max(keys[value] for value in read), *own) if moves else own
    nodes = sorted(captured.nodes, key=keys.__getitem__)
    return captured if nodes == list(captured.nodes) else _in_order(captured, nodes)


def _in_order(captured: Captured, nodes: list[fx.Node]) -> Captured:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.lint()
    names = {node.name: copies[node].name for node in nodes}
    return replace(
        captured,
        graph=graph,
        values={names[name]: value for name, value in captured.values.items()},
        macs={names[name]: macs for name, macs in captured.macs.items()},
        varying={names[name]: varying for name, varying in captured.varying.items()},
    )

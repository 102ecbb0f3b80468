"""compiler/dominance.py: against the definition, by leaving out one node at a time."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
from torch import fx

from deltapass.compiler.dominance import DominatorTree

Before = Mapping[fx.Node, Sequence[fx.Node]]


def drawn(seed: int, count: int = 14) -> tuple[list[fx.Node], Before]:
    """A graph of one input, in which each node reads one to three of those before it."""
    draw, graph = random.Random(seed), fx.Graph()
    nodes = [graph.placeholder("x")]
    before: dict[fx.Node, Sequence[fx.Node]] = {nodes[0]: ()}
    for _ in range(count):
        read = draw.sample(nodes, min(len(nodes), draw.randint(1, 3)))
        node = graph.call_function(max, tuple(read))
        nodes.append(node)
        before[node] = read
    return nodes, before


def reached_without(nodes: Sequence[fx.Node], before: Before, left_out: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in nodes:
        if node is not left_out and (not before[node] or not found.isdisjoint(before[node])):
            found.add(node)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_a_node_lies_on_all_ways_if_nothing_is_reached_without_it(seed: int) -> None:
    nodes, before = drawn(seed)
    tree = DominatorTree(nodes, before)
    for one in nodes:
        reached = reached_without(nodes, before, one)
        assert [tree.lies_on_all_ways(one, to) for to in nodes] == [n not in reached for n in nodes]


@pytest.mark.parametrize("seed", range(5))
def test_the_meeting_is_the_last_node_on_all_ways_to_all(seed: int) -> None:
    nodes, before = drawn(seed)
    tree = DominatorTree(nodes, before)
    for some in (nodes[-1:], nodes[-2:], nodes[3::4]):
        shared = [n for n in nodes if all(tree.lies_on_all_ways(n, to) for to in some)]
        assert tree.meeting(some) is shared[-1]
        assert list(tree.until(some[-1], nodes[0]))[-1] is not nodes[0]


def test_what_no_way_is_shared_to_meets_nowhere() -> None:
    graph = fx.Graph()
    one, two = graph.placeholder("one"), graph.placeholder("two")
    both = graph.call_function(max, (one, two))
    tree = DominatorTree([one, two, both], {one: (), two: (), both: (one, two)})
    assert tree.meeting((one, two)) is None
    assert not tree.lies_on_all_ways(one, both)
    assert list(tree.until(both, one)) == [both]

"""Inputs that are added to a residual stream between blocks, such as those of a control network.

They are made anew for every step, from the noisy sample: they belong to the step and say nothing
about whose trajectory it is, unlike prompts and labels.
"""

from __future__ import annotations

from torch import fx

from deltapass.graphs import Captured, Role, Stack
from deltapass.streams import ADDITIONS, CARRIERS


def residual_inputs(captured: Captured, stack: Stack) -> frozenset[str]:
    """Names of the data inputs that do nothing but enter a stream within the stack, by addition."""
    nodes = list(captured.module.graph.nodes)
    place = {node: at for at, node in enumerate(nodes)}
    begin = stack.blocks[0].first
    data = {given.name for given in captured.inputs if given.role is Role.DATA}
    return frozenset(
        node.name
        for node in nodes
        if node.op == "placeholder" and node.name in data
        if node.users and all(_enters(user, node, captured, begin, place) for user in node.users)
    )


def _enters(
    user: fx.Node, value: fx.Node, captured: Captured, begin: int, place: dict[fx.Node, int]
) -> bool:
    """Whether `user` adds `value` as it is to something of its shape, inside the stack."""
    if captured.spec(user) is None or captured.spec(value) is None:
        return False
    if user.target in ADDITIONS:
        mine, sums = captured.spec(value), captured.spec(user)
        return place[user] >= begin and bool(mine and sums and mine.shape == sums.shape)
    if user.target in CARRIERS:
        return bool(user.users) and all(
            _enters(later, user, captured, begin, place) for later in user.users
        )
    return False

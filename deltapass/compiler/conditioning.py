"""Which inputs stay the same along a trajectory, so that a change of them makes deltas worthless.

These are all data inputs, except those that are added to a residual stream between blocks, such as
those of a control network. Such inputs are made anew for every step, from the noisy sample: they
belong to the step and say nothing about whose trajectory it is, unlike prompts and labels. What is
added before the first block, or to something other than a stream, may be a prompt and is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, final

import torch
from torch import fx

from deltapass.compiler.addends import ADDITIONS, CARRIERS, PARTS, SCALED, Addends, same_shape
from deltapass.compiler.outline import Outline
from deltapass.graph.program import Captured, Found, Role, shown
from deltapass.graph.stack import Block, Stack

aten = torch.ops.aten

TITLES: Final[Mapping[Role, str]] = MappingProxyType(
    {
        Role.SAMPLE: "sample",
        Role.TIMESTEP: "timestep",
        Role.DATA: "conditioning",
        Role.PER_STEP: "per step",
    }
)
NONE_FOUND: Final = "none found; state it in options={'inputs': {...}}"


def conditioning_of(outline: Outline) -> dict[int, str]:
    """Position -> name of the inputs that stay the same along a trajectory."""
    inputs = outline.captured.inputs
    passing = added_inputs(outline.captured, outline.stack)
    return {
        at: given.name
        for at, given in enumerate(inputs)
        if given.role is Role.DATA and given.name not in passing
    }


def roles_shown(outline: Outline) -> tuple[str, ...]:
    """What each input of a model is taken for, and how that was found, a line a role."""
    passing = added_inputs(outline.captured, outline.stack)
    told: dict[str, list[str]] = {title: [] for title in TITLES.values()}
    for given in outline.captured.inputs:
        if given.name in passing:
            told[TITLES[Role.PER_STEP]].append(f"{shown(given.name)} (only added to the stream)")
        elif given.role in TITLES:
            how = "" if given.found is Found.REST else f" ({given.found.value})"
            told[TITLES[given.role]].append(f"{shown(given.name)}{how}")
    needed = (TITLES[Role.SAMPLE], TITLES[Role.TIMESTEP])
    lines = {title: ", ".join(names) for title, names in told.items() if names or title in needed}
    return tuple(f"{title:<13} {names or NONE_FOUND}" for title, names in lines.items())


def added_inputs(captured: Captured, stack: Stack) -> frozenset[str]:
    """Names of the data inputs that are only ever added, perhaps scaled, to a stream."""
    data = {given.name for given in captured.inputs if given.role is Role.DATA}
    nodes = captured.graph.find_nodes(op="placeholder")
    finder = _Finder(captured, stack)
    return frozenset(
        node.name for node in nodes if node.name in data and finder.is_only_added(node)
    )


@final
class _Finder:
    def __init__(self, captured: Captured, stack: Stack) -> None:
        self._place = {node: at for at, node in enumerate(captured.nodes)}
        self._captured, self._blocks, self._addends = captured, stack.blocks, Addends(captured)
        self._ends = {name for ends in stack.ends for name in (ends.live_in, ends.live_out)}

    def is_only_added(self, value: fx.Node) -> bool:
        """Whether all that is done with a value is adding it to a stream."""
        return bool(value.users) and all(self._is_added(user, value) for user in value.users)

    def _is_added(self, user: fx.Node, value: fx.Node) -> bool:
        if user.target in ADDITIONS:
            return self._is_stream_sum(user, value)
        scaled = user.target in SCALED and len(user.all_input_nodes) == 1
        handed_on = scaled or user.target in CARRIERS or user.target in PARTS
        return handed_on and self.is_only_added(user)

    def _is_stream_sum(self, addition: fx.Node, value: fx.Node) -> bool:
        """Whether the sum lies in the stack and continues something that entered its block.

        Of nested blocks, whether it or what it continues is where one begins or ends.
        """
        stream = self._addends.continued(addition)
        at = self._place[addition]
        whole = same_shape(self._captured, value, addition)  # not broadcast onto it
        if not whole or stream is None or stream is value:
            return False
        if self._ends:
            return not self._ends.isdisjoint((stream.name, addition.name))
        if at < self._blocks[0].first:
            return False
        block = self._block_at(at)
        return block is None or self._place[self._addends.beginning(stream)] < block.first

    def _block_at(self, at: int) -> Block | None:
        return next((block for block in self._blocks if block.first <= at < block.stop), None)

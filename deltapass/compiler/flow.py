"""Stage 2: what the blocks of a graph hand on, and which of them follow one another.

Takes a captured graph and ranges of its nodes; says whether a range is a residual block, whether
its stream starts at the noisy sample, and whether one block carries on what another hands on.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final, final

import torch
from torch import fx

from deltapass.compiler.addends import (
    ADDITIONS,
    CARRIERS,
    PARTS,
    Addends,
    added_in_place,
    addends_of,
    carried,
)
from deltapass.compiler.repeats import signatures
from deltapass.compiler.streams import CONCATENATIONS, Stream, pair_streams
from deltapass.errors import StreamError
from deltapass.graph.program import Captured, Macs, Role
from deltapass.graph.stack import Block

aten = torch.ops.aten

# Operators that put values together and take them apart again, but compute nothing from them.
MOVES: Final = (
    CARRIERS
    | PARTS
    | CONCATENATIONS
    | {
        torch.flatten, torch.unflatten, torch.permute, torch.transpose, torch.unsqueeze,
        "flatten", "unflatten", "permute", "transpose", "unsqueeze",
        aten.flatten.using_ints, aten.permute.default, aten.transpose.int, aten.unsqueeze.default,
    }
)  # fmt: skip


@final
class Flow:
    """The streams of a graph's blocks. Answers are kept, for blocks are asked about often."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self._addends = Addends(captured)
        self._place = {node.name: at for at, node in enumerate(captured.nodes)}
        self._of_sample = reached(captured)
        self._known: dict[tuple[Block, ...], tuple[Stream, ...]] = {}

    def macs(self, *blocks: Block) -> float:
        """Multiply-accumulates of blocks, attention counted."""
        covered = (node for block in blocks for node in self._nodes(block))
        macs = self.captured.macs
        return sum(macs[node.name].full for node in covered if node.name in macs)

    @cached_property
    def macs_of_model(self) -> float:
        """Multiply-accumulates of the whole graph."""
        return sum(self.captured.macs.values(), Macs()).full

    def signature(self, block: Block) -> tuple[object, ...]:
        """Equal for blocks of equal operations on values of equal shapes."""
        return tuple(signatures(self.captured, self._nodes(block)))

    def streams(self, *blocks: Block) -> tuple[Stream, ...]:
        """The residual streams over consecutive blocks; none if they hand on anything else.

        A live-out continues a live-in by data flow, or, as in blocks that end with a norm, by shape
        alone. Then something must be added onto that live-in within the block, for the layers of a
        plain Sequential keep their input's shape too. What costs nothing, as dropout, is no block.
        """
        if blocks not in self._known:
            costs = self.macs(*blocks) or not self.captured.macs
            self._known[blocks] = self._paired(blocks) if costs else ()
        return self._known[blocks]

    def starts_at_sample(self, block: Block) -> bool:
        """Whether a stream of a block was made from the noisy sample, not from text alone.

        Where no input is known to be the sample, from any but the timestep.
        """
        return any(stream.live_in in self._of_sample for stream in self.streams(block))

    def leads(self, one: Block, two: Block) -> bool:
        """Whether block two carries on streams of block one: all that come from the sample.

        On the way they may be summed onto, concatenated and cut, but nothing is computed from them.
        """
        streams = [s for s in self.streams(two) if s.live_in in self._of_sample]
        return bool(streams) and all(self._comes_from(self._node(s.live_in), one) for s in streams)

    def is_read_by(self, one: Block, two: Block) -> bool:
        """Whether block two reads what block one hands on, and hands on a value like it."""
        given = set(self._outs(one))
        read = {value for node in self._nodes(two) for value in node.all_input_nodes} & given
        made = {self._shape(node) for node in self._outs(two)}
        return any(self._shape(value) in made for value in read)

    def is_seam(self, one: Block, two: Block) -> bool:
        """Whether the streams of two blocks in a row are laid out anew between them.

        No delta reaches over that, though each block has its own: a concatenation of two streams
        of the first is one stream of the second.
        """
        both = self.streams(one) and self.streams(two)
        return bool(both) and not self.streams(one, two)

    def _paired(self, blocks: tuple[Block, ...]) -> tuple[Stream, ...]:
        for by_shape in (False, True):
            try:
                found = pair_streams(
                    self.captured, blocks, "the stack", by_shape=by_shape, addends=self._addends
                )
            except StreamError:
                continue
            if not by_shape or all(self._is_summed_onto(s.live_in, blocks) for s in found):
                return found
        return ()

    def _is_summed_onto(self, name: str, blocks: tuple[Block, ...]) -> bool:
        """Whether something is added onto a value within blocks, perhaps after a cast."""
        users = list(self._node(name).users)
        while users:
            user = users.pop()
            inside = blocks[0].first <= self._place[user.name] < blocks[-1].stop
            if inside and user.target in ADDITIONS and addends_of(self.captured, user):
                return True
            if inside and user.target in CARRIERS and carried(self.captured, user) is not None:
                users.extend(user.users)
        return False

    def _comes_from(self, value: fx.Node, one: Block) -> bool:
        """Whether a value made after block one is put together from what that hands on alone."""
        if self._place[value.name] < one.stop:
            return one.first <= self._place[value.name]
        if value.target in ADDITIONS:
            return any(self._comes_from(term, one) for term in addends_of(self.captured, value))
        if value.target is aten.slice_scatter.default:
            whole = added_in_place(value)
            return whole is not None and self._comes_from(whole, one)
        given = value.all_input_nodes if value.target in MOVES else ()
        return bool(given) and all(self._comes_from(each, one) for each in given)

    def _outs(self, block: Block) -> list[fx.Node]:
        inside = set(self._nodes(block))
        return [node for node in inside if any(user not in inside for user in node.users)]

    def _shape(self, node: fx.Node) -> object:
        spec = self.captured.spec(node)
        return spec and (spec.shape, spec.dtype)

    def _nodes(self, block: Block) -> tuple[fx.Node, ...]:
        return self.captured.nodes[block.first : block.stop]

    def _node(self, name: str) -> fx.Node:
        return self.captured.nodes[self._place[name]]


def reached(captured: Captured) -> frozenset[str]:
    """Names of all values that depend on the noisy sample."""
    data = [i for i in captured.inputs if i.spec and i.role in (Role.SAMPLE, Role.DATA)]
    starts = [i.name for i in data if i.role is Role.SAMPLE]
    reached = set(starts or (i.name for i in data if i.spec and i.spec.dtype.is_floating_point))
    for node in captured.nodes:
        if any(value.name in reached for value in node.all_input_nodes):
            reached.add(node.name)
    return frozenset(reached)

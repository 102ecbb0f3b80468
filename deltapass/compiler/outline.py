"""Stage 3: captured graph + stack -> a program of calls, in which equal blocks share one body.

Before, some thousand operations. After, for 28 blocks:

    full(sample, timestep, labels):
        h0, c = prologue(sample, timestep, labels)
        h1 = block_0(h0, c)
        h2 = block_1(h1, c)      # blocks 1 .. 27 call the same body with their own weights
        ...
        out = epilogue(h28, c)
        return out

Weights are arguments of a body, so a body is lowered once however many blocks use it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

from torch import fx

from deltapass.compiler.cross_attention import CrossAttentions, cross_attentions
from deltapass.compiler.regions import CallBuilder, Operations
from deltapass.graph.program import (
    Body,
    Call,
    Captured,
    Literal,
    Macs,
    Program,
    Role,
    TensorSpec,
)
from deltapass.graph.stack import Block, Stack
from deltapass.schedule.rules import Span

BlockCalls = tuple[tuple[int, ...], ...]


@final
@dataclass(frozen=True, kw_only=True)
class Outline:
    """The full model as a program, with the calls of each block marked.

    Attributes:
        program: Prologue, blocks (with whatever lies between them) and epilogue.
        block_calls: For every block, the index of its call in `program.calls`; of one that others
            lie inside of, those of its way down and of its way up.
        captured: The graph it came from.
        stack: The blocks.
        regions: For every call, the operations that it was made of.
    """

    program: Program
    block_calls: BlockCalls
    captured: Captured
    stack: Stack
    regions: tuple[Operations, ...]

    @cached_property
    def cross_attentions(self) -> CrossAttentions:
        """The cross-attention of its blocks. The graph is read when first asked."""
        return cross_attentions(self.captured, self.stack)

    @cached_property
    def finer(self) -> Program:
        """The program with every cross-attention in calls of its own, in all blocks alike."""
        builder = CallBuilder(self.captured)
        for call, nodes in zip(self.program.calls, self.regions, strict=True):
            for label, part in self.cross_attentions.parted(call.label, nodes):
                builder.add(label, part)
        return replace(self.program, calls=tuple(builder.calls))

    def program_for(self, spans: Iterable[Span]) -> Program:
        """The program to rewrite for spans: the finer one where cross-attention is kept."""
        finer = any(span.is_cross_attention for span in spans)
        return self.finer if finer else self.program

    @property
    def bodies(self) -> tuple[Body, ...]:
        """The distinct bodies, in order of first use."""
        return tuple({call.body.key: call.body for call in self.program.calls}.values())

    @property
    def block_macs(self) -> tuple[Macs, ...]:
        """Multiply-accumulates of every block."""
        calls = self.program.calls
        return tuple(
            sum((calls[index].body.macs for index in own), Macs()) for own in self.block_calls
        )

    def share(self, span: Span) -> float:
        """What skipping a span saves of the model's MACs, with attention; 1.0 where it has none."""
        first, stop = self.calls_of(span)
        total = self.program.macs.full
        skipped = sum(call.body.macs.full for call in self.program.calls[first:stop])
        return skipped / total if total else 1.0

    def calls_of(self, span: Span) -> tuple[int, int]:
        """Index of the first call of a span, and of the first one behind it."""
        own = [index for block in self.block_calls[span.start : span.stop] for index in block]
        return min(own), max(own) + 1


def outline(captured: Captured, stack: Stack) -> Outline:
    """Cut a captured graph into regions and give equal regions one body.

    Args:
        captured: Functional graph of static shapes.
        stack: Its blocks.

    Returns:
        The outline; running its program is running the graph.

    Raises:
        NoBlocksError: If a region hands on something other than tensors.
    """
    builder = CallBuilder(captured)
    add = _add_nested if stack.is_nested else _add_in_turn
    block_calls = add(builder, stack.blocks)
    return Outline(
        program=_program(captured, builder.calls),
        block_calls=block_calls,
        captured=captured,
        stack=stack,
        regions=tuple(builder.regions),
    )


def _add_in_turn(builder: CallBuilder, blocks: Sequence[Block]) -> BlockCalls:
    """Calls of blocks that follow each other."""
    calls, nodes = [], builder.captured.nodes
    position = 0
    for index, block in enumerate(blocks):
        builder.add("prologue" if index == 0 else "between", nodes[position : block.first])
        calls.append((builder.add("block", nodes[block.first : block.stop]),))
        position = block.stop
    builder.add("epilogue", nodes[position:])
    return tuple(calls)


def _add_nested(builder: CallBuilder, blocks: Sequence[Block]) -> BlockCalls:
    """Calls of blocks that lie inside each other: down to the innermost, and up again."""
    nodes = builder.captured.nodes
    builder.add("prologue", nodes[: blocks[0].first])
    pairs = tuple(itertools.pairwise(blocks))
    down = [builder.add("block", nodes[outer.first : inner.first]) for outer, inner in pairs]
    innermost = builder.add("block", nodes[blocks[-1].first : blocks[-1].stop])
    up = [builder.add("block", nodes[inner.stop : outer.stop]) for outer, inner in reversed(pairs)]
    builder.add("epilogue", nodes[blocks[0].stop :])
    return (*zip(down, reversed(up), strict=True), (innermost,))


def _program(captured: Captured, calls: Sequence[Call]) -> Program:
    """The calls as a program with the model's inputs and outputs."""
    given: Any = captured.graph.output_node().args[0]
    results = given if isinstance(given, tuple | list) else (given,)
    weights = (i.name for i in captured.inputs if i.role is Role.WEIGHT)
    return Program(
        name="full",
        inputs=(*(i.name for i in captured.inputs), *captured.constants),
        calls=tuple(calls),
        results=tuple(r.name if isinstance(r, fx.Node) else Literal(r) for r in results),
        specs={n: s for n, s in captured.values.items() if isinstance(s, TensorSpec)},
        weights=frozenset((*weights, *captured.constants)),
    )

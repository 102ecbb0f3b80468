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
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

from torch import fx

from deltapass.errors import NoBlocksError
from deltapass.graph.keys import Key, comparable, key_of_attribute
from deltapass.graph.program import (
    Body,
    Call,
    Captured,
    Literal,
    Macs,
    Program,
    Role,
    TensorSpec,
    Varying,
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
    """

    program: Program
    block_calls: BlockCalls
    captured: Captured
    stack: Stack

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
    builder = _Builder(captured)
    add = _add_nested if stack.is_nested else _add_in_turn
    block_calls = add(builder, stack.blocks)
    return Outline(
        program=_program(captured, builder.calls),
        block_calls=block_calls,
        captured=captured,
        stack=stack,
    )


def _add_in_turn(builder: _Builder, blocks: Sequence[Block]) -> BlockCalls:
    """Calls of blocks that follow each other."""
    calls = []
    position = 0
    for index, block in enumerate(blocks):
        builder.add("prologue" if index == 0 else "between", position, block.first)
        calls.append((builder.add("block", block.first, block.stop),))
        position = block.stop
    builder.add("epilogue", position, len(builder.captured.nodes))
    return tuple(calls)


def _add_nested(builder: _Builder, blocks: Sequence[Block]) -> BlockCalls:
    """Calls of blocks that lie inside each other: down to the innermost, and up again."""
    builder.add("prologue", 0, blocks[0].first)
    pairs = tuple(itertools.pairwise(blocks))
    down = [builder.add("block", outer.first, inner.first) for outer, inner in pairs]
    innermost = builder.add("block", blocks[-1].first, blocks[-1].stop)
    up = [builder.add("block", inner.stop, outer.stop) for outer, inner in reversed(pairs)]
    builder.add("epilogue", blocks[0].stop, len(builder.captured.nodes))
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


@final
@dataclass
class _Builder:
    """Collects calls region by region; bodies with equal keys are kept once."""

    captured: Captured
    calls: list[Call] = field(default_factory=list)
    bodies: dict[Key, Body] = field(default_factory=dict)

    def add(self, label: str, first: int, stop: int) -> int:
        """Turn the operations at positions [first, stop), if any, into one call.

        Returns:
            The index of the last call.
        """
        nodes = self.captured.nodes[first:stop]
        kept = (n for n in nodes if n.op not in ("placeholder", "output") and not self._follows(n))
        own = tuple(kept)
        if not own:
            return len(self.calls) - 1
        region = _Region(self.captured, (*self._followers(own), *own), own)
        key = region.key()
        if key not in self.bodies:
            alike = sum(body.name.startswith(label) for body in self.bodies.values())
            name = f"{label}_{alike}" if alike or label == "block" else label
            self.bodies[key] = region.body(name, key)
        inputs, outputs = (
            tuple(node.name for node in nodes) for nodes in (region.inputs, region.outputs)
        )
        self.calls.append(Call(label=label, body=self.bodies[key], inputs=inputs, outputs=outputs))
        return len(self.calls) - 1

    def _follows(self, node: fx.Node) -> bool:
        """Whether whatever reads a node takes it along: sub-graphs, numbers made of a float."""
        return node.op == "get_attr" or isinstance(self.captured.values[node.name], float)

    def _followers(self, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """What these nodes take along, in order."""
        found: set[fx.Node] = set()
        waiting = list(nodes)
        while waiting:
            read = (value for value in waiting.pop().all_input_nodes if self._follows(value))
            new = [value for value in read if value not in found]
            found.update(new)
            waiting += new
        return sorted(found)


@final
@dataclass(frozen=True)
class _Region:
    """A run of operations that becomes one call: its own, after those that they take along."""

    captured: Captured
    nodes: tuple[fx.Node, ...]
    own: tuple[fx.Node, ...]

    @cached_property
    def inputs(self) -> tuple[fx.Node, ...]:
        """Values from outside, in order of first use: equal blocks take them in equal order."""
        own = set(self.nodes)
        used = dict.fromkeys(value for node in self.nodes for value in node.all_input_nodes)
        return tuple(value for value in used if value not in own)

    @cached_property
    def outputs(self) -> tuple[fx.Node, ...]:
        """Values that later regions or the model's output read."""
        here = set(self.nodes)
        return tuple(node for node in self.own if any(user not in here for user in node.users))

    def key(self) -> Key:
        """Operations, edges, literals and input layouts, free of names."""
        number = {node: at for at, node in enumerate((*self.inputs, *self.nodes))}
        operations = tuple(
            (
                node.op,
                self._target(node),
                comparable((node.args, node.kwargs), number.__getitem__),
            )
            for node in self.nodes
        )
        specs = tuple(self.captured.values[node.name] for node in self.inputs)
        outputs = tuple(number[node] for node in self.outputs)
        return Key((specs, operations, outputs, self.varying))

    @cached_property
    def varying(self) -> tuple[Varying | None, ...]:
        """Formulas of the inputs' sizes; empty where none of them varies."""
        found = tuple(self.captured.varying.get(node.name) for node in self.inputs)
        return found if any(found) else ()

    def _target(self, node: fx.Node) -> object:
        attribute = node.op == "get_attr"
        return key_of_attribute(self.captured.root, node) if attribute else node.target

    def body(self, name: str, key: Key) -> Body:
        """Copy the region into a graph of its own."""
        graph = fx.Graph()
        copies = {node: graph.placeholder(f"in_{at}") for at, node in enumerate(self.inputs)}
        for node in self.nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in self.outputs))
        graph.lint()
        return Body(
            name=name,
            module=fx.GraphModule(self.captured.root, graph),
            key=key,
            inputs=self._specs(self.inputs),
            outputs=self._specs(self.outputs),
            macs=sum((self.captured.macs.get(n.name, Macs()) for n in self.nodes), Macs()),
            varying=self.varying,
        )

    def _specs(self, nodes: Sequence[fx.Node]) -> tuple[TensorSpec, ...]:
        specs = []
        for node in nodes:
            spec = self.captured.spec(node)
            if spec is None:
                problem = f"value {node.name!r} between blocks is no tensor"
                raise NoBlocksError(self.captured.operations, problem)
            specs.append(spec)
        return tuple(specs)

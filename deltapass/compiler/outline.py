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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from torch import fx

from deltapass.errors import InternalError, NoBlocksError
from deltapass.graph.program import (
    Body,
    Call,
    Captured,
    Literal,
    Macs,
    Program,
    Role,
    Stack,
    TensorSpec,
)
from deltapass.graph.sizes import Size


@final
@dataclass(frozen=True, kw_only=True)
class Outline:
    """The full model as a program, with the calls of each block marked.

    Attributes:
        program: Prologue, blocks (with whatever lies between them) and epilogue.
        block_calls: For every block, the index of its call in `program.calls`.
        captured: The graph it came from.
        stack: The blocks.
    """

    program: Program
    block_calls: tuple[int, ...]
    captured: Captured
    stack: Stack

    @property
    def bodies(self) -> tuple[Body, ...]:
        """The distinct bodies, in order of first use."""
        return tuple({call.body.key: call.body for call in self.program.calls}.values())

    @property
    def block_macs(self) -> tuple[Macs, ...]:
        """Multiply-accumulates of every block."""
        return tuple(self.program.calls[index].body.macs for index in self.block_calls)


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
    block_calls = []
    position = 0
    for index, block in enumerate(stack.blocks):
        builder.add("prologue" if index == 0 else "between", position, block.first)
        builder.add("block", block.first, block.stop)
        block_calls.append(len(builder.calls) - 1)
        position = block.stop
    builder.add("epilogue", position, len(builder.nodes))
    return Outline(
        program=builder.program(),
        block_calls=tuple(block_calls),
        captured=captured,
        stack=stack,
    )


@final
@dataclass
class _Builder:
    """Collects calls region by region; bodies with equal keys are kept once."""

    captured: Captured
    calls: list[Call] = field(default_factory=list)
    bodies: dict[tuple[object, ...], Body] = field(default_factory=dict)

    @property
    def nodes(self) -> list[fx.Node]:
        """All nodes of the captured graph, in order."""
        return list(self.captured.module.graph.nodes)

    def add(self, label: str, first: int, stop: int) -> None:
        """Turn the operations at positions [first, stop) into one call."""
        kept = ("placeholder", "output")
        nodes = [node for node in self.nodes[first:stop] if node.op not in kept]
        if not nodes:
            return
        region = _Region(captured=self.captured, nodes=tuple(nodes))
        key = region.key()
        if key not in self.bodies:
            alike = sum(body.name.startswith(label) for body in self.bodies.values())
            name = f"{label}_{alike}" if alike or label == "block" else label
            self.bodies[key] = region.body(name, key)
        self.calls.append(
            Call(
                label=label,
                body=self.bodies[key],
                inputs=tuple(node.name for node in region.inputs),
                outputs=tuple(node.name for node in region.outputs),
            )
        )

    def program(self) -> Program:
        """The calls as a program with the model's inputs and outputs."""
        output = self.nodes[-1]
        given: Any = output.args[0]
        results = given if isinstance(given, tuple | list) else (given,)
        captured = self.captured
        weights = {i.name for i in captured.inputs if i.role is Role.WEIGHT}
        return Program(
            name="full",
            inputs=(*(i.name for i in captured.inputs), *captured.constants),
            calls=tuple(self.calls),
            results=tuple(r.name if isinstance(r, fx.Node) else Literal(r) for r in results),
            specs={n: s for n, s in captured.values.items() if isinstance(s, TensorSpec)},
            weights=frozenset(weights | set(captured.constants)),
        )


@final
@dataclass(frozen=True, kw_only=True)
class _Region:
    """A run of operations that becomes one call."""

    captured: Captured
    nodes: tuple[fx.Node, ...]

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """Values from outside, in order of first use: equal blocks take them in equal order."""
        own = set(self.nodes)
        outside: dict[fx.Node, None] = {}
        for node in self.nodes:
            outside.update({value: None for value in node.all_input_nodes if value not in own})
        return tuple(outside)

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        """Values that later regions or the model's output read."""
        own = set(self.nodes)
        return tuple(node for node in self.nodes if any(user not in own for user in node.users))

    def key(self) -> tuple[object, ...]:
        """Operations, edges, literals and input layouts, free of names."""
        number = {node: at for at, node in enumerate((*self.inputs, *self.nodes))}
        operations = tuple(
            (node.op, self._target(node), _frozen((node.args, node.kwargs), number))
            for node in self.nodes
        )
        specs = tuple(self.captured.values[node.name] for node in self.inputs)
        return (specs, operations, tuple(number[node] for node in self.outputs))

    def _target(self, node: fx.Node) -> object:
        return _held(self.captured.module, node) if node.op == "get_attr" else node.target

    def body(self, name: str, key: tuple[object, ...]) -> Body:
        """Copy the region into a graph of its own."""
        graph = fx.Graph()
        env = {node: graph.placeholder(f"in_{at}") for at, node in enumerate(self.inputs)}
        for node in self.nodes:
            env[node] = graph.node_copy(node, env.__getitem__)
        graph.output(tuple(env[node] for node in self.outputs))
        graph.lint()
        return Body(
            name=name,
            module=fx.GraphModule(self.captured.module, graph),
            key=key,
            inputs=self._specs(self.inputs),
            outputs=self._specs(self.outputs),
            macs=sum((self.captured.macs.get(n.name, Macs()) for n in self.nodes), Macs()),
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


def _frozen(value: Any, number: Mapping[fx.Node, int]) -> object:
    """Arguments as a hashable value, with nodes replaced by their number."""
    if isinstance(value, fx.Node):
        return ("node", number[value])
    if isinstance(value, slice):
        return ("slice", _frozen((value.start, value.stop, value.step), number))
    if isinstance(value, dict):
        return tuple((name, _frozen(item, number)) for name, item in sorted(value.items()))
    if isinstance(value, tuple | list):
        return (type(value).__name__, *(_frozen(item, number) for item in value))
    # 1, 1.0 and True are equal to Python but not to a graph; and two dimensions that may vary are
    # not one because they have one size in the example.
    return (type(value).__name__, value.formula if isinstance(value, Size) else repr(value))


def verify(program: Program) -> None:
    """Check that every value is made before it is used, and used with the layout it has.

    Raises:
        InternalError: If not; that is a bug of ours, never the user's.
    """
    made = set(program.inputs)
    for call in program.calls:
        for name, wanted in zip(call.inputs, call.body.inputs, strict=True):
            if name not in made:
                raise InternalError(f"{program.name}: {call.label} reads {name!r} too early")
            found = program.specs[name]
            if found != wanted:
                raise InternalError(
                    f"{program.name}: {call.label} wants {name!r} as {wanted} with strides "
                    f"{wanted.stride}, it is {found} with strides {found.stride}"
                )
        made.update(call.outputs)
    missing = [name for name in (*program.value_results, *program.deltas) if name not in made]
    if missing:
        raise InternalError(f"{program.name}: results {missing} are never made")


def _held(module: fx.GraphModule, node: fx.Node) -> object:
    """What a graph holds under an attribute: of a sub-graph its operations, with all literals."""
    held = getattr(module, str(node.target), None)
    if not isinstance(held, fx.GraphModule):
        return node.name
    return node.name, tuple(
        (n.op, _held(held, n) if n.op == "get_attr" else str(n.target), str(n.args), str(n.kwargs))
        for n in held.graph.nodes
    )

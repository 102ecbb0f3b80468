"""Stage 3, second half: operations of a captured graph that become one call of one body."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

from torch import fx

from deltapass.errors import NoBlocksError, TensorFormError
from deltapass.graph.keys import Key, comparable, key_of_attribute
from deltapass.graph.program import Body, Call, Captured, Macs, TensorSpec, Varying

Operations = tuple[fx.Node, ...]


@final
@dataclass
class CallBuilder:
    """Collects calls region by region; bodies with equal keys are kept once.

    `regions` are the operations of each call, in order, without those that it takes along.
    """

    captured: Captured
    calls: list[Call] = field(default_factory=list)
    regions: list[Operations] = field(default_factory=list)
    bodies: dict[Key, Body] = field(default_factory=dict)

    def add(self, label: str, nodes: Iterable[fx.Node]) -> int:
        """Turn these operations, if there are any, into one call.

        Returns:
            The index of the last call.

        Raises:
            NoBlocksError: If they hand on something other than tensors.
        """
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
        self.regions.append(own)
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
            outputs=self._plain(self.outputs),
            macs=sum((self.captured.macs.get(n.name, Macs()) for n in self.nodes), Macs()),
            varying=self.varying,
        )

    def _plain(self, nodes: Sequence[fx.Node]) -> tuple[TensorSpec, ...]:
        """Specs of what is handed on: a delta of a tensor that holds others would hold none."""
        specs = self._specs(nodes)
        for node, spec in zip(nodes, specs, strict=True):
            if spec.wrapped is not None:
                raise TensorFormError(node.name, f"a {spec.wrapped.kind.__name__}, between blocks")
        return specs

    def _specs(self, nodes: Sequence[fx.Node]) -> tuple[TensorSpec, ...]:
        specs = []
        for node in nodes:
            spec = self.captured.spec(node)
            if spec is None:
                problem = f"value {node.name!r} between blocks is no tensor"
                raise NoBlocksError(self.captured.operations, problem)
            specs.append(spec)
        return tuple(specs)

"""Which inputs an output continues, told by data flow.

Goes backwards from an output along what carries it: through the residual stream, not into what
blocks add to it. The noisy sample lies at the end of that way. A prompt that is attended to does
not, nor one whose own stream is dropped at the end, nor what is broadcast onto the stream.

    out <- head <- h28 <- h27 + block(h27, text, c) <- ... <- h0 <- embed(sample) + places
                    |            not followed                        followed
                    * (1 + scale), which is smaller: not followed

Where it cannot be told which of two values is carried on, both are followed: inputs may be found
that are no sample, but a sample is not missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, final

from torch import fx

from deltapass.compiler.addends import CARRIERS, carried
from deltapass.compiler.windows import (
    ANYWHERE,
    Window,
    before,
    chosen_part,
    name_of,
    parts_within,
)
from deltapass.graph.program import Captured, TensorSpec

SUMS: Final = frozenset({"add", "iadd", "sub", "isub"})
POINTWISE: Final = SUMS | {
    "mul", "imul", "div", "truediv", "itruediv", "addcmul", "lerp", "where", "maximum", "minimum",
}  # fmt: skip
# Operators that pick from the first operand, by indices.
PICKING: Final = frozenset({"getitem", "gather", "index_select", "take_along_dim", "index"})


@final
class Continuation:
    """Of one graph: the data inputs that its outputs continue.

    Attributes:
        data: The inputs that count, by name.
    """

    def __init__(self, captured: Captured, data: frozenset[str]) -> None:
        self._captured, self.data = captured, data
        self._place = {node: at for at, node in enumerate(captured.nodes)}
        self._above: dict[fx.Node, int] = {}  # all that a value is computed from, as bits
        self._chains: dict[fx.Node, int] = {}  # what a value is a sum onto, as bits
        inputs = 0
        for node, at in self._place.items():
            above = 1 << at
            for value in node.all_input_nodes:
                above |= self._above[value]
            self._above[node] = above
            inputs |= (1 << at) if node.op == "placeholder" and node.name in data else 0
        self._inputs = inputs

    def of(self, output: fx.Node) -> frozenset[str]:
        """Names of the inputs that an output continues."""
        found, seen = set(), set()
        todo: list[tuple[fx.Node, Window]] = [(output, ANYWHERE)]
        while todo:
            state = todo.pop()
            if state in seen:
                continue
            seen.add(state)
            node, window = state
            if node.op == "placeholder":
                found.add(node.name)
            else:
                todo.extend(self._carrying(node, window))
        return frozenset(found & self.data)

    def _carrying(self, node: fx.Node, window: Window) -> Iterator[tuple[fx.Node, Window]]:
        """The operands that a value carries on, and the part of each that matters."""
        known = parts_within(self._captured, node, window)
        if known is None:
            source = chosen_part(self._captured, node, window)
            known = [source] if source is not None else self._generic(node, window)
        for value, within in known:
            if self._depends(value):
                yield value, within

    def _generic(self, node: fx.Node, window: Window) -> list[tuple[fx.Node, Window]]:
        operands = self._followed(node)
        return [(value, before(self._captured, node, value, window)) for value in operands]

    def _followed(self, node: fx.Node) -> list[fx.Node]:
        operands = [value for value in node.all_input_nodes if self._depends(value)]
        name = name_of(node.target)
        if name in PICKING:
            first = node.args[0] if node.args else None
            return [first] if isinstance(first, fx.Node) and first in operands else operands
        if name not in POINTWISE:
            return operands
        if name == "where" and node.args and node.args[0] in operands and len(operands) > 1:
            operands = [value for value in operands if value is not node.args[0]]
        whole = [value for value in self._whole(node) if value in operands]
        return self._continued(whole)

    def _continued(self, operands: list[fx.Node]) -> list[fx.Node]:
        """Without those that a block added to another one: `f(x)` of `x + f(x)`."""
        return [
            one
            for one in operands
            if not any(self._is_onto(other, one) for other in operands if other is not one)
        ]

    def _is_onto(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether the sum of both is surely a block's: `other` was computed from the stream `one`.

        What is added again and again is no stream, though it was added before to what it meets;
        nor is what it meets an addend, if that is a stream.
        """
        if not self._reads(other, one) or self._reads(one, other) or self._sums(one) > 1:
            return False
        return not self._is_stream(other, self._chain(one))

    def _reads(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether `one` is computed from `other`, or from what that is a sum onto."""
        return bool(self._above[one] & self._chain(other))

    def _sums(self, value: fx.Node) -> int:
        """In how many sums a value is an addend, also after it was handed on."""
        count = 0
        for user in value.users:
            if name_of(user.target) in SUMS:
                count += 1
            elif user.target in CARRIERS and carried(self._captured, user) is value:
                count += self._sums(user)
        return count

    def _is_stream(self, value: fx.Node, known: int) -> bool:
        """Whether a value comes straight from a residual sum, not one among `known` (as bits)."""
        todo, seen = [value], set()
        while todo:
            node = todo.pop()
            if node in seen or known >> self._place[node] & 1:
                continue
            seen.add(node)
            operands = self._whole(node)
            if name_of(node.target) in SUMS:
                if self._direct(operands) is not None:
                    return True
                todo.extend(operands)
            elif len(operands) == 1:
                todo.extend(operands)
        return False

    def _whole(self, node: fx.Node) -> list[fx.Node]:
        """The operands that count; of pointwise operators those of the result's own shape."""
        operands = [value for value in node.all_input_nodes if self._depends(value)]
        if name_of(node.target) not in POINTWISE:
            return operands
        spec = self._captured.spec(node)
        whole = [one for one in operands if spec and _shape(self._captured, one) == spec.shape]
        return whole or operands

    def _direct(self, terms: list[fx.Node]) -> fx.Node | None:
        """The addend from which all others were computed."""
        found = [
            one
            for one in terms
            if all(self._above[other] >> self._place[one] & 1 for other in terms)
        ]
        return found[0] if len(found) == 1 and len(terms) > 1 else None

    def _depends(self, value: fx.Node) -> bool:
        return bool(self._above[value] & self._inputs)

    def _chain(self, value: fx.Node) -> int:
        """A value, what it was handed on from, and what that is a sum onto, and so on."""
        below: list[fx.Node] = []
        todo: fx.Node | None = value
        while todo is not None and todo not in self._chains:
            below.append(todo)
            todo = self._onto(todo)
        bits = self._chains[todo] if todo is not None else 0
        for node in reversed(below):
            bits |= 1 << self._place[node]
            self._chains[node] = bits
        return bits

    def _onto(self, node: fx.Node) -> fx.Node | None:
        if node.target in CARRIERS:
            return carried(self._captured, node)
        if name_of(node.target) not in SUMS:
            return None
        terms = self._whole(node)
        return terms[0] if len(terms) == 1 else self._direct(terms)


def _shape(captured: Captured, value: fx.Node) -> tuple[int, ...] | None:
    spec: TensorSpec | None = captured.spec(value)
    return spec.shape if spec is not None else None

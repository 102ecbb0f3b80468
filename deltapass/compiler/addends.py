"""Which addend a sum continues, where by data flow alone it could be either of two.

Takes a captured graph; says of an addition which operand is the stream and which a side input,
such as the residual that a control network hands in. Told by how a value is used: a stream is
read on its way, for blocks compute from it what they add to it; a side input is only ever added.
Source: our own; control residuals are those of ControlNet, arXiv:2302.05543.
"""

from __future__ import annotations

import operator
from typing import Any, Final, final

import torch
from torch import fx

from deltapass.graph.program import Captured, Role

aten = torch.ops.aten

ADDITIONS: Final = frozenset(
    {operator.add, operator.iadd, torch.add, "add", "add_", aten.add.Tensor, aten.add_.Tensor}
)
SPLITS: Final = frozenset(
    {
        torch.split, torch.chunk, torch.split_with_sizes, "split", "chunk", "split_with_sizes",
        aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default,
    }
)  # fmt: skip
# Operators that hand a stream on: casts, clamps, copies, views that keep the shape.
CARRIERS: Final = frozenset(
    {
        "to", "type_as", "float", "half", "bfloat16", "contiguous", "clone", "clamp", "clip",
        "squeeze", "view", "reshape", "nan_to_num", "type", "double", "view_as", "reshape_as",
        torch.clamp, torch.clip, torch.clone, torch.nan_to_num, torch.squeeze, torch.reshape,
        torch.nn.functional.dropout, aten.clone.default, aten.clamp.default,
        aten._to_copy.default,
        aten.to.dtype, aten.view.default, aten.reshape.default, aten.squeeze.dim,
        aten.alias.default, aten.contiguous.default, aten.dropout.default,
        aten._unsafe_view.default,
    }
)  # fmt: skip
# Operators that take a part of what a model is given, such as one residual of a stack of them.
PARTS: Final = SPLITS | {operator.getitem, torch.unbind, "unbind", "narrow", torch.narrow} | {
    aten.slice.Tensor, aten.select.int, aten.unbind.int,
}  # fmt: skip

SCALED: Final = frozenset({operator.mul, torch.mul, "mul", aten.mul.Tensor, aten.mul.Scalar})

# Operators that read of their later operands type, shape or place alone; and of all of them.
AS_ANOTHER: Final = frozenset(
    {"type_as", "view_as", "reshape_as", "expand_as", "to", aten.type_as.default,
     aten.expand_as.default, aten.view_as.default, aten.reshape_as.default}
)  # fmt: skip
LIKE_ANOTHER: Final = frozenset(
    {torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, "new_zeros", "new_ones",
     "new_full", "new_empty", aten.zeros_like.default, aten.ones_like.default,
     aten.full_like.default, aten.empty_like.default, aten.new_zeros.default,
     aten.new_ones.default, aten.new_full.default, aten.new_empty.default}
)  # fmt: skip


def numbers_read(node: fx.Node) -> list[fx.Node]:
    """The operands whose numbers an operation reads, not just their type or shape."""
    if node.target in LIKE_ANOTHER:
        return []
    return node.all_input_nodes[:1] if node.target in AS_ANOTHER else node.all_input_nodes


def same_shape(captured: Captured, one: fx.Node, other: fx.Node) -> bool:
    """Whether both are single tensors of one shape."""
    first, second = captured.spec(one), captured.spec(other)
    return first is not None and second is not None and first.shape == second.shape


def addends_of(captured: Captured, addition: fx.Node) -> list[fx.Node]:
    """The operands that have the sum's own shape: a stream is never one that is broadcast."""
    given = [term for term in addition.args[:2] if isinstance(term, fx.Node)]
    return [term for term in given if same_shape(captured, term, addition)]


def carried(captured: Captured, carrier: fx.Node) -> fx.Node | None:
    """The value that one of `CARRIERS` hands on, if it keeps the shape."""
    source = carrier.args[0] if carrier.args else None
    return source if isinstance(source, fx.Node) and same_shape(captured, source, carrier) else None


def handed_in(captured: Captured, value: fx.Node) -> bool:
    """Whether it is an input, weight or constant, or a part of one: nothing the model computed.

    Noisy samples are left out: a model may take one for its stream as it is.
    """
    while value.target in CARRIERS | PARTS:
        source = value.args[0] if value.args else None
        if not isinstance(source, fx.Node):
            break
        value = source
    return value.op == "placeholder" and value.name not in samples_of(captured)


def samples_of(captured: Captured) -> frozenset[str]:
    """Names of the inputs that are noisy samples."""
    return frozenset(given.name for given in captured.inputs if given.role is Role.SAMPLE)


def read_before(value: fx.Node, addition: fx.Node) -> bool:
    """Whether something was computed from a value before it is added, other than sums and casts."""
    passing = ADDITIONS | CARRIERS
    return any(user.target not in passing and user < addition for user in value.users)


def added_in_place(scatter: fx.Node) -> fx.Node | None:
    """The whole of which a part was added to: `x` of `x[:, 3:] += c`, made functional.

    That is slice_scatter(x, slice(x, ...) + c, ...), a sum onto x with zeros beside c.
    """
    whole: Any = scatter.args[0]
    part: Any = scatter.args[1]
    return whole if _adds_to(part, whole, scatter.args[2:]) else None


def _adds_to(part: fx.Node, whole: fx.Node, bounds: tuple[Any, ...]) -> bool:
    """Whether `part` is a sum onto the slice of `whole` that these bounds take out."""
    if part.target is aten.slice.Tensor:
        return part.args[0] is whole and part.args[1:] == bounds
    if part.target is aten.copy.default:  # (what is overwritten, with what)
        terms = part.args[1:2]
    elif part.target in ADDITIONS:
        terms = part.args[:2]
    else:
        terms = part.args[:1] if part.target in CARRIERS else ()
    return any(_adds_to(term, whole, bounds) for term in terms if isinstance(term, fx.Node))


@final
class Addends:
    """The addend that each sum of a graph continues. The graph is read when first asked.

    Of two addends of the sum's shape it is

    1. the one that is read: from which, or from what it was summed onto, some operation before
       the sum computed something else, while the other was only handed on and added;
    2. where neither was read, as where a stack starts with a sum: the one that was computed from
       the noisy sample, while the other was not, such as a position embedding that all blocks
       add; else the one that the model made, while the other was handed in (`handed_in`);
    3. where both were read: the later one of two values of one stream, as in a long skip.

    Otherwise neither: two streams are added, and which of them goes on is not guessed.
    """

    def __init__(self, captured: Captured) -> None:
        self._captured = captured
        self._onto: dict[fx.Node, fx.Node] = {}  # sums and carriers: what each continues
        self._root: dict[fx.Node, fx.Node] = {}  # what the chain of these began with
        self._read: set[fx.Node] = set()  # roots that were read so far
        self._samples = samples_of(captured)
        self._noisy: set[fx.Node] = set()  # what was computed from a noisy sample

    def continued(self, addition: fx.Node) -> fx.Node | None:
        """The operand that an addition is a sum onto; None if that cannot be told.

        It cannot, either, if that operand is used again after the sum and the other is not:
        then the other may be a stream of its own that ends in the sum, such as a running total
        of what the blocks give.
        """
        self._visit_all()
        chosen = self._onto.get(addition)
        if chosen is None or not self._lives_on(chosen, addition):
            return chosen
        others = (term for term in addends_of(self._captured, addition) if term is not chosen)
        certain = all(
            self._lives_on(other, addition) or handed_in(self._captured, other) for other in others
        )
        return chosen if certain else None

    def beginning(self, value: fx.Node) -> fx.Node:
        """What the chain of sums and carriers that ends in a value began with."""
        self._visit_all()
        return self._root[value]

    def _visit_all(self) -> None:
        if not self._root:
            for node in self._captured.nodes:
                self._visit(node)

    def _lives_on(self, value: fx.Node, addition: fx.Node) -> bool:
        """Whether the value, or what it was handed on from, is used after the sum."""
        # What nobody reads is no use: functionalisation leaves views of overwritten values behind.
        if any(user > addition and (user.users or user.op == "output") for user in value.users):
            return True
        source = carried(self._captured, value) if value.target in CARRIERS else None
        return source is not None and self._lives_on(source, addition)

    def _visit(self, node: fx.Node) -> None:
        if node.name in self._samples or not self._noisy.isdisjoint(numbers_read(node)):
            self._noisy.add(node)
        onto = self._choose(node)
        self._root[node] = node if onto is None else self._root[onto]
        if onto is not None:
            self._onto[node] = onto
        elif node.target not in ADDITIONS:
            self._read.update(self._root[value] for value in node.all_input_nodes)
        elif any(map(self._is_read, addends_of(self._captured, node))):
            self._read.add(node)  # a sum of streams, from which a new one starts

    def _choose(self, node: fx.Node) -> fx.Node | None:
        if node.target in ADDITIONS:
            return self._of_addends(addends_of(self._captured, node))
        if node.target is aten.slice_scatter.default:
            return added_in_place(node)
        return carried(self._captured, node) if node.target in CARRIERS else None

    def _of_addends(self, terms: list[fx.Node]) -> fx.Node | None:
        if len(terms) == 1:
            return terms[0]
        read = [term for term in terms if self._is_read(term)]
        noisy = [term for term in terms if term in self._noisy]
        made = [term for term in terms if not handed_in(self._captured, term)]
        later = [
            one
            for one in terms
            for other in terms
            if one is not other and self._follows(one, other)
        ]
        unread = noisy if len(noisy) == 1 else made
        sure = unread if not read else (read if len(read) == 1 else later)
        return sure[0] if len(sure) == 1 else None

    def _is_read(self, value: fx.Node) -> bool:
        return self._root[value] in self._read

    def _follows(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether `one` is a sum onto `other`."""
        while one in self._onto and one is not other:
            one = self._onto[one]
        return one is other

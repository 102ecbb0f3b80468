"""Stage 4, for spans whose cross-attention is kept: what it is, and what serves it alone.

Cross-attention is told by what is multiplied: queries made from the noisy sample by keys or values
made from conditioning alone. Joint attention, whose keys come from both, is none. Its output is
followed to the sum by which it goes on; the addend there is what is kept of it. So all that lies
between, such as a projection or a gate, is kept too:

    q = to_q(norm(h)); k, v = to_k(text), to_v(text)
    a = to_out(attention(q, k, v))                      # the addend
    h = h + a

Source: TGATE, arXiv:2404.02747, which keeps the outputs of cross-attention; how they are found is
ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import fx
from torch.utils._pytree import tree_iter

from deltapass.compiler.addends import ADDITIONS, SCALED, addends_of, numbers_read
from deltapass.compiler.flow import reached
from deltapass.compiler.streams import Stream
from deltapass.errors import NoCrossAttentionError, StreamError, counted
from deltapass.graph.program import Captured, Role, shown
from deltapass.graph.stack import Stack
from deltapass.schedule.rules import Span

aten = torch.ops.aten

# Products of matrices that are added onto something: the factors come second.
ADDED: Final = frozenset(
    {torch.baddbmm, torch.addbmm, "baddbmm", "baddbmm_", aten.baddbmm.default, aten.addbmm.default}
)
FACTORS: Final = ("query", "key", "value")  # of attention; a mask is none
BRANCH: Final = "cross_attention"  # label of the calls that serve cross-attention alone
REST: Final = "rest"  # of what follows it within its region


@final
@dataclass(frozen=True, slots=True)
class CrossAttentions:
    """The cross-attention of a graph.

    Attributes:
        addends: What is kept: addend -> its block, None outside of all.
        serving: The operations that serve nothing but addends, these included.
        unclean: What no addend can be told of: value -> its block, and what becomes of it.
        found: What was found instead, for messages, where there is none.
    """

    addends: Mapping[fx.Node, int | None]
    serving: frozenset[fx.Node]
    unclean: Mapping[fx.Node, tuple[int | None, str]]
    found: str

    def streams(self, captured: Captured, span: Span, blocks: int) -> tuple[Stream, ...]:
        """One stream without a live-in for each addend in a span, in program order.

        A span of the whole stack has those outside of all blocks too, as a U-Net may have them.

        Raises:
            NoCrossAttentionError: If there is none.
            StreamError: If one of it is not simply added.
        """
        whole = len(span) == blocks
        for value, (block, problem) in self.unclean.items():
            if _holds(span, block, whole=whole):
                raise StreamError(str(span), value.name, problem)
        kept = [a for a, block in self.addends.items() if _holds(span, block, whole=whole)]
        if not kept:
            raise NoCrossAttentionError(str(span), self.found)
        specs = ((node.name, captured.spec(node)) for node in kept)
        return tuple(Stream(live_in="", live_out=name, spec=spec) for name, spec in specs if spec)

    def parted(
        self, label: str, region: Sequence[fx.Node]
    ) -> Iterator[tuple[str, Sequence[fx.Node]]]:
        """A region's operations as labelled runs: those that serve addends alone are apart.

        Nothing but an addend reads those, so they can wait until it is made.
        """
        plain: list[fx.Node] = []
        waiting: list[fx.Node] = []
        for node in region:
            (waiting if node in self.serving else plain).append(node)
            if node in self.addends:
                yield label, plain
                yield BRANCH, waiting
                label, plain, waiting = (REST if plain else label), [], []
        yield label, plain
        yield BRANCH, waiting


def _holds(span: Span, block: int | None, *, whole: bool) -> bool:
    return whole if block is None else span.start <= block < span.stop


def cross_attentions(captured: Captured, stack: Stack) -> CrossAttentions:
    """Find the cross-attention of a graph."""
    finder = _Finder(captured)
    for node in captured.nodes:
        finder.visit(node)
    place = {node: at for at, node in enumerate(captured.nodes)}
    blocks = {node: _block_of(stack, place[node]) for node in captured.nodes}
    return CrossAttentions(
        addends={addend: blocks[addend] for addend in finder.addends},
        serving=_serving(captured, finder.addends),
        unclean={value: (blocks[value], why) for value, why in finder.unclean.items()},
        found=_found(captured, finder),
    )


def _block_of(stack: Stack, at: int) -> int | None:
    """The innermost block that covers a position."""
    held = [i for i, block in enumerate(stack.blocks) if block.first <= at < block.stop]
    return held[-1] if held else None


def _serving(captured: Captured, addends: Sequence[fx.Node]) -> frozenset[fx.Node]:
    """What is read by addends alone, and by what nobody reads: a further result of attention."""
    serving, unread = set(addends), set[fx.Node]()
    for node in reversed(captured.nodes):
        if node.op.startswith("call") and unread.issuperset(node.users):
            unread.add(node)
        elif node.op.startswith("call") and serving.issuperset(node.users.keys() - unread):
            serving.add(node)
    for node in captured.nodes:
        if node in unread and not serving.isdisjoint(node.all_input_nodes):
            serving.add(node)
    return frozenset(serving)


def _found(captured: Captured, finder: _Finder) -> str:
    """What there is instead of cross-attention."""
    data = [i for i in captured.inputs if i.role is Role.DATA and i.spec is not None]
    if not data:
        return "the model is given nothing but the sample and the timestep"
    names = ", ".join(shown(given.name) for given in data)
    if not finder.products:
        return f"it has no attention, {names} reach it otherwise"
    products = counted(finder.products, "attention product")
    return (
        f"of {products} none takes keys or values from {names} alone: they come from the sample, "
        "or from both as in joint attention"
    )


@final
class _Finder:
    """Follows what cross-attention gives, operation by operation, to where it is added."""

    def __init__(self, captured: Captured) -> None:
        self._captured = captured
        self._noisy = reached(captured)
        data = (i.name for i in captured.inputs if i.role is Role.DATA and i.spec is not None)
        self._told: set[str] = set(data)  # what depends on conditioning
        self._given: set[fx.Node] = set()  # what is an output of cross-attention
        self.addends: list[fx.Node] = []
        self.unclean: dict[fx.Node, str] = {}
        self.products = 0  # of two values, both made by the model

    def visit(self, node: fx.Node) -> None:
        """Take in one operation; all before it must have been."""
        if any(value.name in self._told for value in node.all_input_nodes):
            self._told.add(node.name)
        read = numbers_read(node)
        given = [value for value in read if value in self._given]
        if self._is_product(node):
            self._given.add(node)
        elif given:
            self._follow(node, given, [value for value in read if self._is_another(value)])

    def _is_product(self, node: fx.Node) -> bool:
        """Whether values made from the sample are multiplied by some made from conditioning."""
        if node.name not in self._captured.macs:
            return False
        first, *others = factors_of(node) or [node]
        if first.name not in self._noisy or not others:
            return False
        self.products += any(value.name in self._noisy for value in others)
        return all(v.name in self._told and v.name not in self._noisy for v in others)

    def _is_another(self, value: fx.Node) -> bool:
        """Whether a value was made from the sample, without being what cross-attention gives."""
        return value.name in self._noisy and value not in self._given

    def _follow(self, node: fx.Node, given: list[fx.Node], others: list[fx.Node]) -> None:
        if not others:
            if node.op == "output":
                self.unclean |= dict.fromkeys(given, "is cross-attention that nothing adds")
            else:
                self._given.add(node)
        elif node.target in ADDITIONS and len(given) == 1:
            self._add(given[0], node)
        elif node.target in SCALED:
            self._given.add(node)
        else:
            name = getattr(node.target, "__name__", str(node.target))
            problem = f"is cross-attention that {name!r} joins with other values, not a sum"
            self.unclean |= dict.fromkeys(given, problem)

    def _add(self, addend: fx.Node, addition: fx.Node) -> None:
        if addend not in addends_of(self._captured, addition):
            self.unclean[addend] = "is cross-attention that is broadcast onto what it is added to"
        elif addend not in self.addends:
            self.addends.append(addend)


def factors_of(node: fx.Node) -> list[fx.Node]:
    """What a product of matrices, or attention, multiplies, in order."""
    named = [node.kwargs.get(name) for name in FACTORS]
    leaves = tree_iter((node.args, named))
    operands = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
    return operands[node.target in ADDED :][: len(FACTORS)]
